"""Every recipe of a published cell runs end to end at a tiny budget, in pieces too, and leaves its record."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import potstill

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(path.stem for path in RECIPES.glob("cifar*_ipc*.py"))
CELLS = [name for name in ALL if not name.endswith("_cpu")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in the shape of CIFAR: cifar10 and cifar100, as folders with train.npz and test.npz."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        (folder / name).mkdir()
        for part, count in (("train", 6 * classes), ("test", classes)):
            pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            np.savez(folder / name / f"{part}.npz", images=pixels, labels=np.arange(count) % classes)
    return folder


@pytest.fixture
def cook(monkeypatch, images, tmp_path):
    monkeypatch.syspath_prepend(str(RECIPES))

    def run(recipe, *flags):
        out = ["--out", f"{tmp_path}/run", "--record", f"{tmp_path}/record.json"]
        data = str(images / recipe.partition("_")[0])
        monkeypatch.setattr(sys, "argv", [recipe, "--tiny", "--data", data, *out, *flags])
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        return json.loads((tmp_path / "record.json").read_text())

    return run


def test_there_is_one_for_each_published_cell():
    published = runpy.run_path(str(RECIPES / "table.py"))["PUBLISHED"]
    assert sorted(name.replace("-", "_") for name in published) == CELLS


@pytest.mark.parametrize("recipe", ALL)
def test_a_recipe_runs_end_to_end(recipe, cook, tmp_path):
    record = cook(recipe)
    assert record["recipe"] == recipe.replace("_", "-") + "-tiny"
    assert {"distilled", "random", "random_soft", "full"} <= record["accuracy"].keys()
    assert {"config", "commit", "environment", "seconds", "peak_memory_bytes"} <= record.keys()
    assert (tmp_path / "record.safetensors").exists()


def test_the_digits_run_by_their_recipe(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(RECIPES))
    flags = ["--ipc", "2", "--tiny", "--out", f"{tmp_path}/run", "--record", f"{tmp_path}/record.json"]
    monkeypatch.setattr(sys, "argv", ["digits.py", *flags])
    runpy.run_path(str(RECIPES / "digits.py"), run_name="__main__")
    assert json.loads((tmp_path / "record.json").read_text())["recipe"] == "digits-ipc2-tiny"


def test_the_page_of_the_records_is_what_they_make_of_it(capsys):
    runpy.run_path(str(RECIPES / "table.py"), run_name="__main__")
    assert capsys.readouterr().out == (RECIPES.parent / "records" / "README.md").read_text()


def test_a_recipe_works_in_pieces(cook, tmp_path, capsys):
    for _ in range(3):
        with pytest.raises(SystemExit) as end:
            cook("cifar10_ipc1", "--minutes", "0")  # each piece ends after its first event
        assert end.value.code == 130
        assert "the same command continues" in capsys.readouterr().out
        assert not (tmp_path / "record.json").exists()
    assert cook("cifar10_ipc1")["iterations"]["iteration"] == 2


def test_wrong_data_end_a_recipe_by_a_sentence(cook):
    with pytest.raises(SystemExit, match=r"^error: nowhere\.npz"):
        cook("cifar10_ipc1", "--data", "nowhere.npz")


def test_a_recipe_without_its_data_says_where_it_looked(cook, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cook("cifar10_ipc1", "--data", "data/cifar10")
    assert "data/cifar10: no such folder; name by --data" in capsys.readouterr().err


def test_the_set_beside_a_record_can_be_loaded(cook, tmp_path):
    cook("cifar10_ipc1")
    compact, whole = potstill.load(tmp_path / "record.safetensors"), potstill.load(tmp_path / "run")
    assert (compact.images - whole.images).abs().max() < 0.01
