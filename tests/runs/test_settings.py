"""Settings: where defaults come from, the published cells written out once more, and what is refused."""

import json

import pytest

from potstill import files
from potstill.data.augment import DSA
from potstill.errors import PotstillError
from potstill.methods import METHODS
from potstill.runs import settings
from potstill.runs.settings import configure, defaults
from tests.conftest import KEPT, tiny

# cell: N, M, lr images, lr logits, lr step size, batch, T-, T (None: no growth), T+, expand, threshold, depth
PUBLISHED = {
    "cifar10-ipc1": (80, 2, 100, 5, 1e-7, 10, 0, None, 4, None, 1.1, 3),
    "cifar10-ipc10": (80, 2, 100, 2, 1e-5, 100, 0, 10, 20, 1000, 1.0, 3),
    "cifar10-ipc50": (80, 2, 1000, 2, 1e-5, 500, 0, 20, 40, 2000, 1.0, 3),
    "cifar10-ipc500": (40, 2, 50, 10, 1e-5, 1000, 40, None, 60, None, 1.0, 3),
    "cifar10-ipc1000": (100, 2, 50, 10, 1e-5, 1000, 40, None, 60, None, 1.0, 3),
    "cifar100-ipc1": (40, 3, 1000, 10, 1e-5, 1000, 0, 10, 20, 1000, 1.0, 3),
    "cifar100-ipc10": (80, 2, 1000, 10, 1e-5, 1000, 0, 30, 50, 2000, 1.0, 3),
    "cifar100-ipc50": (80, 2, 1000, 10, 1e-5, 1000, 20, None, 70, None, 1.0, 3),
    "cifar100-ipc100": (80, 2, 50, 10, 1e-5, 1000, 30, None, 70, None, 1.0, 3),
    "tiny-imagenet-ipc1": (40, 2, 10000, 10, 1e-4, 1000, 0, 15, 20, 2000, 1.0, 4),
    "tiny-imagenet-ipc10": (40, 2, 100, 10, 1e-4, 500, 10, None, 50, None, 1.0, 4),
    "tiny-imagenet-ipc50": (20, 2, 100, 10, 1e-4, 1000, 40, None, 70, None, 1.0, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_cell(name):
    given = defaults("mine", preset=name)
    own, expert = given.stages[0], given.expert
    steps, span, lr_images, lr_logits, lr_step, batch, low, initial, high, expand, threshold, depth = PUBLISHED[name]
    assert (own.inner_steps, own.expert_epochs, own.batch_size) == (steps, span, batch)
    assert (own.lr_images, own.lr_logits, own.lr_step_size, own.threshold) == (lr_images, lr_logits, lr_step, threshold)
    assert own.start_epochs == (low, high)
    assert own.opening == (None if initial is None else (initial, expand))
    assert given.ipc == int(name.rsplit("ipc")[-1])
    assert (given.network.name, given.network.width, given.network.depth) == ("convnet", 128, depth)
    assert (given.network.norm, given.network.pooling) == ("instance", "avg")
    assert (expert.count, expert.epochs, expert.batch_size, expert.step_size) == (100, 100, 256, 0.01)
    assert (expert.rho, expert.alpha) == (0.01, 0.3)
    assert (own.iterations, own.step_size, own.cooldown) == (10_000, 0.01, 0.0)
    assert (given.transform, given.augment, given.evaluations) == ("zca", DSA, 10)
    assert own.initial == ("random" if name == "cifar100-ipc50" else "correct")
    assert own.label_experts == (1 if name == "cifar100-ipc50" else None)
    assert METHODS["datm"].open_fields(own) == []


@pytest.mark.parametrize("method", ["frepo", "rat-bptt", "at-bptt"])
def test_published_cells_that_bring_each_image_to_one_scale_say_so(method):
    assert METHODS[method].published
    for cell in METHODS[method].published:
        assert defaults("mine", method=(method,), preset=settings.name_of(cell)).transform == "zca-image"


def test_there_are_the_twelve_cells_and_three_of_digits():
    cells = [settings.name_of(cell) for cell in {**METHODS["datm"].published, **METHODS["datm"].tuned}]
    assert set(cells) == {*PUBLISHED, "digits-ipc1", "digits-ipc10", "digits-ipc50"}


@pytest.mark.parametrize(("ipc", "start"), [(1, (8, 11)), (8, (26, 29)), (40, (26, 29))])
def test_the_digits_take_their_tuned_cell_of_the_nearest_size(ipc, start):
    given = defaults("digits", ipc)
    assert (given.dataset, given.ipc, given.stages[0].start_epochs) == ("digits", ipc, start)
    assert given.network.width == 32
    assert METHODS["datm"].open_fields(given.stages[0]) == []


def test_other_data_are_measured_and_so_are_the_digits_without_a_preset():
    for given in (defaults("some/folder", 3), defaults("digits", 3, preset="none")):
        assert METHODS["datm"].open_fields(given.stages[0]) == list(METHODS["datm"].measured)
    assert defaults("digits", 1, preset="none").network.width == 32  # what suits the data stays
    assert defaults("some/folder").expert.epochs == 20


def test_presets_say_how_but_not_on_what():
    with pytest.raises(PotstillError, match="say where they are by --dataset"):
        configure(preset="cifar10-ipc10")
    given = configure("mine", preset="cifar10-ipc10", changes={"seed": 3, "datm": {"iterations": 5}})
    assert (given.ipc, given.seed, given.stages[0].iterations, given.stages[0].inner_steps) == (10, 3, 5, 80)
    assert configure().dataset == "digits"
    assert configure(preset="digits-ipc10").ipc == 10
    with pytest.raises(PotstillError, match="no cell of datm; did you mean .*cifar10-ipc10"):
        configure("mine", preset="cifar10-ipc11")


def test_unknown_names_are_refused_with_those_there_are():
    for changes, words in (
        ({"nonsense": 1}, "nonsense: no such setting; choose among dataset"),
        ({"datm": {"iteration": 1}}, "iteration: no such setting; did you mean iterations"),
        ({"expert": 3}, "expert 3: holds several settings; give a mapping of count"),
        ({"mtt": {"iterations": 3}}, "mtt: is not among the stages datm"),
        ({"method": "dat"}, "method 'dat': unknown; did you mean datm"),
        ({"method": ("datm", "datm")}, "name one method or several different ones"),
    ):
        with pytest.raises(PotstillError, match=words):
            configure(changes=changes)


def test_a_later_stage_begins_with_the_defaults_that_refine():
    alone, later = defaults("digits", 1, ("rat-bptt",)), defaults("digits", 1, ("datm", "rat-bptt"))
    assert alone.stages[0].pool == 0
    assert later.stages[1].pool == METHODS["rat-bptt"].refining["pool"] > 0
    assert later.iterations == later.stages[0].iterations + later.stages[1].iterations


def test_settings_survive_json_and_a_difference_is_named():
    given = tiny(("datm", "rat-bptt"), seed=4)
    assert settings.from_dict(json.loads(json.dumps(settings.as_dict(given)))) == given
    other = tiny(("datm", "rat-bptt"), seed=4, datm={"lr_images": 11.0}, evaluation={"seeds": 3})
    lines = files.differences(settings.fixed_fields(given), settings.fixed_fields(other))
    assert lines == ["stages.datm.lr_images: 10.0, not 11.0"]


def test_another_size_keeps_what_was_changed_and_takes_its_own_defaults():
    given = configure("digits", 1, changes={"datm": {"iterations": 7}, "expert": {"count": 3}, "seed": 5})
    there = settings.at_size(given, 10)
    assert (there.ipc, there.seed, there.expert.count) == (10, 5, 3)
    assert (there.stages[0].iterations, there.stages[0].start_epochs) == (7, (26, 29))


def test_a_set_on_disk_begins_its_own_size_alone():
    given = configure("digits", 1, changes={"start": "runs/mine"})
    assert settings.at_size(given, 1).start == "runs/mine"
    with pytest.raises(PotstillError, match="--start runs/mine: .* not of 1 and of 10 images per class; give its size"):
        settings.at_size(given, 10)


def test_settings_of_0_1_0_are_brought_up_to_date():
    old = files.read_json(KEPT / "finished" / "config.json")["config"]
    given = settings.from_dict(old)
    assert given.method == ("datm", "rat-bptt")
    matched, refined = given.stages
    assert matched.iterations + refined.iterations == old["distil"]["iterations"]
    assert refined.iterations == old["distil"]["polish"]
    assert refined.lr_images == old["distil"]["polish_rates"] * old["distil"]["lr_images"]
    assert matched.start_epochs == (old["window"]["start"], old["window"]["stop"])
    assert given.evaluations == old["distil"]["evaluations"]
    settings.check(given)


@pytest.mark.parametrize(("changes", "word"), [
    ({"ipc": 0}, "ipc 0"), ({"datm": {"iterations": 0}}, "datm.iterations 0"),
    ({"datm": {"step_size": 0.0}}, "step_size 0.0"), ({"expert": {"count": 0}}, "expert.count 0"),
    ({"micro_batch": 0}, "micro_batch 0"),
    ({"transform": "pca"}, "transform 'pca': choose among auto, zca, zca-image, standardise"),
    ({"network": {"norm": "layer"}}, "network.norm 'layer'"), ({"datm": {"adjoint": "tesla"}}, "datm.adjoint"),
    ({"datm": {"label_experts": 0}}, "datm.label_experts 0"), ({"resize": -1}, "resize -1"),
    ({"evaluation": {"full_seeds": -1}}, "evaluation.full_seeds -1"), ({"datm": {"cooldown": 2.0}}, "cooldown 2.0"),
    ({"augment": ("flip", "mirror")}, "augment 'mirror': choose among colour, crop"),
    ({"evaluation": {"protocol": "paper", "step_size": "chosen"}}, "the protocol paper trains with the learned one"),
])  # fmt: skip
def test_values_that_no_stage_could_use(changes, word):
    with pytest.raises(PotstillError) as error:
        settings.check(tiny(**changes))
    assert word in str(error.value)


def test_a_selection_cannot_follow_another_method():
    with pytest.raises(PotstillError, match="herding: selects real images, so it can only be the first stage"):
        settings.check(defaults("digits", 1, ("datm", "herding")))
    settings.check(defaults("digits", 1, ("herding", "rat-bptt")))


@pytest.mark.parametrize(("method", "changes", "sentence"), [
    (("idm", "dm"), {"idm": {"pictures": 2}}, "dm: works on slots of 1×1 pictures, and those of idm hold 2×2"),
    (("dm", "idm"), {}, "idm: works on slots of 2×2 pictures, and those of dm hold 1×1; set --idm.pictures 1"),
    (("cafe",), {"network": {"norm": "batch"}}, "network.norm batch: cafe compares images class by class"),
    (("herding",), {"herding": {"expert": 9}}, "herding.expert 9: there are 2, counted from 0"),
    (("dc",), {"dc": {"pictures": 100}}, "dc.pictures 100: 1 to 8 pictures a side"),
])  # fmt: skip
def test_what_methods_cannot_work_on_is_refused_before_any_work(method, changes, sentence):
    with pytest.raises(PotstillError) as error:
        settings.check(tiny(method, **changes))
    assert sentence in str(error.value)


@pytest.mark.parametrize("damage", [
    lambda plain: plain.pop("stages"), lambda plain: plain.update(stages=[]),
    lambda plain: plain.update(stages={"atm": {}}),
    lambda plain: plain["stages"].update(datm=3), lambda plain: plain.update(network="convnet"),
    lambda plain: plain.update(iqc=plain.pop("ipc")),
])  # fmt: skip
def test_stored_settings_that_are_damaged_are_a_sentence(damage):
    plain = json.loads(json.dumps(settings.as_dict(tiny())))
    damage(plain)
    with pytest.raises(PotstillError):
        settings.from_dict(plain)
