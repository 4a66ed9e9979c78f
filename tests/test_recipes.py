"""Every recipe runs end to end at a tiny budget, in pieces too, and leaves its record."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

import potstill
from potstill.cli import main, runners
from potstill.errors import PotstillError
from potstill.methods import published
from potstill.runs import recipes, settings

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(path.stem for path in RECIPES.glob("*.toml"))
CELLS = {f"{dataset}-ipc{ipc}" for dataset, ipc in published.cells("datm") if dataset != "tiny-imagenet"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in the shape of CIFAR: cifar10 and cifar100, as folders with train.npz and test.npz."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        (folder / name).mkdir()
        for split, count in (("train", 6 * classes), ("test", classes)):
            pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            np.savez(folder / name / f"{split}.npz", images=pixels, labels=np.arange(count) % classes)
    return folder


def run(recipe, images, out, *flags):
    """Exit code of a recipe at a tiny budget."""
    data = [] if recipe.startswith("digits") else ["--dataset", str(images / recipe.partition("-")[0])]
    where = ["--out", str(out / "run"), "--record", str(out / "record.json")]
    return main.main(["run", "--recipe", recipe, "--tiny", *data, *where, *flags])


def test_there_is_one_for_each_published_cell():
    assert CELLS | {"digits-ipc1", "digits-ipc10", "digits-ipc50"} == {
        name for name in ALL if not name.endswith("-cpu")
    }


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_says_what_it_is_and_its_settings_hold(name, monkeypatch):
    recipe = recipes.load_recipe(name)
    assert len(recipe.about) > 40
    given = recipe.settings(dataset="mine")
    settings.check(given)
    for method, stage in zip(given.methods, given.stages, strict=True):
        assert method.open_fields(stage) == []  # a recipe leaves nothing to chance


@pytest.mark.parametrize("name", ["cifar10-ipc10", "cifar10-ipc1-cpu", "cifar100-ipc1-cpu", "digits-ipc1"])
def test_a_recipe_runs_end_to_end(name, images, tmp_path, capsys):
    assert run(name, images, tmp_path) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["recipe"] == name
    assert {"distilled", "random", "full"} <= record["accuracy"].keys()
    assert {"config", "commit", "environment", "seconds", "peak_memory_bytes"} <= record.keys()
    data = None if name.startswith("digits") else images / name.partition("-")[0]
    compact = potstill.load(tmp_path / "record.safetensors", dataset=data)
    assert (compact.images - potstill.load(tmp_path / "run").images).abs().max() < 0.01


def test_the_values_of_the_cpu_recipe_of_cifar10():
    given = recipes.load_recipe("cifar10-ipc1-cpu").settings(dataset="mine")
    matched, refined = given.stages
    assert (given.expert.count, given.expert.epochs, given.expert.rho) == (26, 2, 0.0)
    assert (matched.iterations, matched.lr_images, matched.threshold) == (1500, 1000.0, 1.1)
    assert (refined.iterations, refined.lr_images, refined.window, refined.pool) == (1800, 300.0, 40, 8)
    assert (given.transform, given.keep, given.evaluation.step_size) == ("zca", "last", "chosen")


def test_flags_change_a_recipe(monkeypatch):
    seen = []
    monkeypatch.setitem(runners.RUNNERS, runners.Run, seen.append)
    flags = "--recipe cifar10-ipc1-cpu --dataset mine --method datm --datm.iterations 7".split()
    assert main.main(["run", *flags]) == 0
    given = seen[0].settings
    assert (given.method, given.stages[0].iterations, given.stages[0].inner_steps) == (("datm",), 7, 40)


def test_a_recipe_works_in_pieces(images, tmp_path, capsys):
    for _ in range(2):
        assert run("cifar10-ipc1", images, tmp_path, "--minutes", "0") == 130  # each piece ends after its first event
        assert "The same command continues" in capsys.readouterr().err
        assert not (tmp_path / "record.json").exists()
    assert run("cifar10-ipc1", images, tmp_path) == 0
    assert json.loads((tmp_path / "record.json").read_text())["iterations"]["iteration"] == 2


def test_what_is_wrong_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text("about = ")
    (tmp_path / "mine.toml").write_text('preset = "cifar10-ipc1"\n[datm]\nnonsense = 3\n')
    for flags, words in (
        (["--recipe", "cifar10-ipc2"], "recipe 'cifar10-ipc2': there is none; did you mean"),
        (["--recipe", "cifar10-ipc1"], "data/cifar10: no such folder; name by --dataset"),
        (["--recipe", "own.toml"], "own.toml: not valid TOML"),
        (["--recipe", "mine.toml", "--dataset", "x"], "nonsense: no such setting"),
        (["--recipe", "cifar10-ipc1", "--preset", "none"], "leave --preset and --start out"),
    ):
        assert main.main(["run", *flags]) == 1
        assert words in capsys.readouterr().err


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('about = "x"\ndataset = "digits"\nmethod = ["random"]\nseed = 4\nresize = "none"\n')
    given = recipes.load_recipe(str(path)).settings()
    assert (given.method, given.seed, given.resize) == (("random",), 4, None)
    with pytest.raises(PotstillError, match="there is none"):
        recipes.load_recipe("nothing")


def test_the_page_of_the_records_is_what_they_make_of_it(capsys):
    runpy.run_path(str(RECIPES / "table.py"), run_name="__main__")
    assert capsys.readouterr().out == (RECIPES.parent / "records" / "README.md").read_text()
