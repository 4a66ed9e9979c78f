"""A comparison: what it consists of, that it resumes, and the table that its records make."""

import json
import re
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from potstill import files
from potstill.errors import PotstillError
from potstill.evaluation.statistics import interval
from potstill.networks.architectures import NetworkConfig
from potstill.runs.api import run_to_completion
from potstill.studies import budget, compare, execute, task
from potstill.studies.compare import Asked
from potstill.studies.execute import Processes
from tests.conftest import tiny

SHARED = tiny("random", evaluation={"protocol": "quick", "epochs": 3, "full_epochs": 1, "seeds": 2})
NAMES = ("random", "random:labels=soft", "dm:iterations=2,real_batch=20")


def asked(**changes):
    return replace(Asked(SHARED, NAMES, (1, 2), set_seeds=2), **changes)


def compared(out, wanted=None, **more):
    events = []
    record = run_to_completion(compare.compare(wanted or asked(), out, **more), events.append)
    return record, events


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, *compared(out)


# --- what is asked for ---------------------------------------------------------------------------------------------


def test_methods_are_written_with_their_stages_and_changes():
    assert compare.parse("dm") == (("dm",), {"dm": {}})
    assert compare.parse("datm:iterations=100,start_epochs=(8,11)+rat-bptt:labels=hard") == (
        ("datm", "rat-bptt"), {"datm": {"iterations": 100, "start_epochs": (8, 11)}, "rat-bptt": {"labels": "hard"}},
    )  # fmt: skip
    assert compare.parse("dm:lr_images=1e+2")[1] == {"dm": {"lr_images": 100.0}}
    with pytest.raises(PotstillError, match="'100' changes nothing; write dm:FIELD=VALUE"):
        compare.parse("dm:100")


def test_networks_are_written_with_their_changes():
    own = NetworkConfig("convnet", width=8)
    found = compare._networks(asked(networks=("convnet", "convnet:norm=batch", "vgg11:narrower=4")), own)
    assert list(found.values()) == [own, replace(own, norm="batch"), NetworkConfig("vgg11", narrower=4)]
    assert compare._networks(asked(), own) == {"convnet": own}


def test_rows_share_what_is_of_all_and_keep_what_is_their_own():
    dm = compare.row_settings(asked(), NAMES[2], 2)
    assert (dm.ipc, dm.stages[0].iterations, dm.network) == (2, 2, SHARED.network)
    assert dm.expert == SHARED.expert
    assert compare.row_settings(asked(), "datm", 1).method == ("datm",)


def test_published_settings_bring_their_network_and_whitening():
    wanted = asked(published_settings=True, published_as="cifar10")
    assert compare.row_settings(wanted, "frepo", 1).network.name == "wide-convnet"
    assert compare.row_settings(wanted, "frepo", 1).stages[0].iterations == 500_000
    assert compare.row_settings(wanted, "dm:iterations=2", 1).stages[0].iterations == 2, "what is changed is changed"
    assert compare.row_settings(wanted, "herding", 1).network == SHARED.network, "which has no such cell"
    mine = replace(SHARED, classes=("0", "1"), validation=0.3)
    kept = compare.row_settings(replace(wanted, shared=mine), "frepo", 1)
    assert (kept.classes, kept.validation, kept.evaluation) == (("0", "1"), 0.3, SHARED.evaluation)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("dmm",)}, "did you mean dm"),
        ({"methods": ("dm", "dm")}, "stands there twice"),
        ({"methods": ("dm+dm",)}, "stands there twice"),
        ({"methods": ("random", "random:labels=hard")}, "random:labels=hard is the same as random"),
        ({"ipcs": (1, 1)}, "stands there twice"),
        ({"networks": ("resnet",)}, "networks"),
        ({"networks": ("resnet18:narow=2",)}, "did you mean narrower"),
        ({"networks": ("resnet18+mlp",)}, "networks are not joined"),
        ({"networks": ("resnet18:4",)}, "network 'resnet18:4': '4' changes nothing"),
        ({"ipcs": ()}, "no size is named"),
        ({"methods": ("dm:iteration=3",)}, "did you mean iterations"),
        ({"methods": ("dm:iterations=0",)}, "iterations"),
        ({"methods": ("dm:iterations=-1",)}, "raise dm:iterations"),
        ({"methods": ("herding+random",)}, "can only be the first stage.$"),
        ({"ipcs": (1, 4000)}, "the smallest class has"),
        ({"methods": ("idm:pictures=8",), "ipcs": (1, 3)}, "192 images of each class.*lower idm:pictures or --ipcs"),
        ({"shared": tiny("random", evaluation={"protocol": "paper"})}, "the very test images"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, changes, words):
    with pytest.raises(PotstillError, match=words):
        compared(tmp_path, asked(**changes))
    assert not (tmp_path / "sets").exists()


def test_a_network_that_the_images_do_not_suit_is_refused_before_any_work(tmp_path, arrays):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    small = tiny("random", dataset=arrays(images, np.arange(60) % 3))
    told = "^--networks alexnet: images of 4×4 pixels vanish in this network; leave it out.$"
    with pytest.raises(PotstillError, match=told):
        compared(tmp_path, asked(shared=small, networks=("convnet", "alexnet")))


def test_a_wrong_network_is_named_before_any_row_is_planned(tmp_path):
    with pytest.raises(PotstillError, match="^networks 'vgg12'"):
        compared(tmp_path, asked(networks=("convnet", "vgg12")))


def test_minutes_decide_the_iterations_once_for_a_store(tmp_path, monkeypatch, caplog):
    timed = []
    found = {"iterations": [7], "assumed": [False], "each": [1.0], "notes": ["give more --minutes."]}
    monkeypatch.setattr(budget, "fitting", lambda own, minutes: timed.append(minutes) or found)
    for _ in range(2):
        caplog.clear()
        made = run_to_completion(compare.plan(asked(minutes=0.5), tmp_path))
        assert f"{NAMES[2]} at 1 per class: give more --minutes." in caplog.text
    iterations = {row.name: row.settings.iterations for row in made.rows}
    assert iterations == {"random": 0, "random:labels=soft": 0, NAMES[2]: 7}
    assert timed == [0.5, 0.5], "one for each size"


def test_a_row_that_cannot_be_timed_is_named(tmp_path, monkeypatch):
    def fitting(own, minutes):
        raise PotstillError("there is no room for it.")

    monkeypatch.setattr(budget, "fitting", fitting)
    told = "dm:iterations=2,real_batch=20 at {} per class: there is no room for it"
    words = f"{told.format(1)}.; {told.format(2)}. Mend that, or leave those methods out."
    with pytest.raises(PotstillError, match=f"^{re.escape(words)}$"):
        run_to_completion(compare.plan(asked(minutes=0.5), tmp_path))


def test_what_cannot_be_is_refused_before_anything_is_timed(tmp_path):
    wanted = asked(methods=("random", NAMES[2], "datm:start_epochs=(90,95)"), ipcs=(1,), minutes=0.5)
    with pytest.raises(PotstillError, match="^datm.* at 1 per class: "):
        run_to_completion(compare.plan(wanted, tmp_path))
    assert not (tmp_path / "budgets").exists()


def test_iterations_are_timed_by_all_workers_of_a_machine_at_once(tmp_path):
    wanted = asked(methods=("random", NAMES[2]), ipcs=(1,), minutes=0.01)
    events = []
    with closing(Processes(2)) as executor:
        made = run_to_completion(compare.plan(wanted, tmp_path, executor), events.append)
        assert compare.as_plain(made, executor.threads)["environment"]["threads"] == executor.threads
    told = [event["doing"] for event in events if event["stage"] == "timing" and "doing" in event]
    assert told[0] == "2 at once: timing dm, 1 per class; timing dm, 1 per class"
    records = [files.read_json(path) for path in (tmp_path / "budgets").glob("*.json")]
    slowest = max(records, key=lambda record: record["each"])
    assert len(records) == 2
    assert made.rows[1].settings.iterations == slowest["iterations"][0]


@pytest.mark.parametrize("ending", ["done", "refused", "interrupted"])
def test_workers_are_let_go_however_a_comparison_ends(tmp_path, ending):
    class Recording:
        threads = neighbours = 1
        closed = 0

        def submit(self, one, folder):
            future = Future()
            future.set_result(execute.run_task(one, folder))
            return future

        def capacity(self):
            return 1

        def close(self):
            self.closed += 1

    executor = Recording()
    wanted = asked(methods=("random", "dmm") if ending == "refused" else ("random",), ipcs=(1,))
    steps = compare.compare(wanted, tmp_path, executor=executor)
    if ending == "done":
        run_to_completion(steps)
    elif ending == "refused":
        with pytest.raises(PotstillError):
            run_to_completion(steps)
    else:
        next(steps)
        steps.close()
    assert executor.closed == 1


# --- what it gives -------------------------------------------------------------------------------------------------


def test_the_record_holds_a_row_for_each_method_and_size(done):
    _, record, _ = done
    assert [(row["name"], row["ipc"]) for row in record["rows"]] == [(name, ipc) for ipc in (1, 2) for name in NAMES]
    for row in record["rows"]:
        assert row["failed"] is None
        assert len(row["accuracy"]["convnet"]["per_seed"]) == 2, "sets"
        assert len(row["networks"]["convnet"]["per_seed"]) == 4, "two networks a set"
        assert row["images"] == 10 * row["ipc"]
    assert len(record["full"]["convnet"]["per_seed"]) == 2
    kinds = {row["name"]: row["labels"] for row in record["rows"]}
    assert kinds == {"random": "hard", "random:labels=soft": "logits", NAMES[2]: "hard"}
    gains = {row["name"]: row["gain"]["convnet"] for row in record["rows"] if row["ipc"] == 2}
    assert gains["random"] is None
    assert gains[NAMES[2]]["over"] == "random"
    assert gains["random:labels=soft"] is None


def test_the_same_command_does_nothing_again(done):
    out, record, _ = done
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again, events = compared(out)
    assert again["rows"] == record["rows"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == written
    assert not any("epoch" in event or "loss" in event for event in events)


def test_two_comparisons_share_a_store(done, tmp_path):
    store, record, _ = done
    other, events = compared(tmp_path, asked(methods=("dm:iterations=2,real_batch=20",), ipcs=(2,)), folder=store)
    assert other["rows"][0]["accuracy"] == record["rows"][-1]["accuracy"]
    assert not any("loss" in event for event in events)
    assert not (tmp_path / "sets").exists()


def test_the_table_is_drawn_from_what_is_there(done, tmp_path):
    out, _, _ = done
    made = compare.read_plan(out)
    empty = compare.results(made, tmp_path)
    assert all(row["accuracy"] == {"convnet": None} and not row["best"]["convnet"] for row in empty["rows"])
    assert empty["full"] == {"convnet": None}
    with pytest.raises(PotstillError, match="holds no comparison"):
        compare.read_plan(tmp_path)


def test_a_failure_is_told_in_its_row_and_stops_no_other(tmp_path, monkeypatch):
    whole = task.SetTask.perform

    def failing(self, folder):
        if self.settings.method == ("dm",):
            raise PotstillError("there is no room; free some.")
        yield from whole(self, folder)

    monkeypatch.setattr(task.SetTask, "perform", failing)
    record, _ = compared(tmp_path, asked(methods=(NAMES[2], "random"), ipcs=(1,)))
    failed, fine = record["rows"]
    assert failed["failed"] == "there is no room; free some."
    assert failed["accuracy"] == {"convnet": None}
    assert fine["failed"] is None
    assert fine["accuracy"]["convnet"]


# --- statistics ----------------------------------------------------------------------------------------------------


def column(**accuracies):
    rows = [
        {"name": name, "labels": "hard", "accuracy": {"net": interval(values)}} for name, values in accuracies.items()
    ]
    compare._compare_column(rows, "net")
    return {row["name"]: row for row in rows}


def test_the_best_of_a_column_and_what_is_not_shown_to_be_worse():
    found = column(random=[0.2, 0.21, 0.22], close=[0.49, 0.52, 0.5], best=[0.5, 0.51, 0.52], far=[0.3, 0.31, 0.32])
    assert {name for name, row in found.items() if row["best"]["net"]} == {"close", "best"}
    assert found["best"]["gain"]["net"]["mean"] == pytest.approx(0.3)
    assert found["random"]["gain"]["net"] is None


def test_of_one_set_the_best_alone_is_marked():
    assert {name for name, row in column(a=[0.2], b=[0.9]).items() if row["best"]["net"]} == {"b"}


def test_a_method_is_held_against_the_control_with_its_kind_of_labels():
    rows = [
        {"name": name, "labels": labels, "accuracy": {"net": interval([value, value + 0.01])}}
        for name, labels, value in (("random", "hard", 0.2), ("random:labels=soft", "logits", 0.3),
                                    ("a", "hard", 0.5), ("b", "raw", 0.5))
    ]  # fmt: skip
    compare._compare_column(rows, "net")
    assert [row["gain"]["net"]["over"] for row in rows[2:]] == ["random", "random:labels=soft"]


def test_the_plan_says_what_is_unlike_published(tmp_path):
    wanted = asked(methods=("dm:iterations=2",), ipcs=(1,), published_as="cifar10")
    row = compare.as_plain(run_to_completion(compare.plan(wanted, tmp_path)), 1)["rows"][0]
    assert row["published"] is None, "it is changed"
    assert any(line.startswith("dm.iterations 2 (published 20000") for line in row["changed"])
    plain = compare.as_plain(run_to_completion(compare.plan(replace(wanted, methods=("dm",)), tmp_path)), 1)
    assert plain["rows"][0]["published"]["accuracy"] == pytest.approx(0.26)


def test_a_plan_survives_json(done):
    out, _, _ = done
    assert files.plain(json.loads((out / compare.PLAN).read_text())) == compare.read_plan(out)
