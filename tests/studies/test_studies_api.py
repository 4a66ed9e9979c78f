"""Comparing from Python."""

import numpy as np
import pytest

import potstill
from potstill.data import dataset
from potstill.errors import PotstillError
from potstill.studies import api

SMALL = {
    "network": {"width": 8, "depth": 2}, "expert": {"count": 1, "epochs": 2}, "evaluations": 1, "progress": False,
    "evaluation": {"seeds": 2, "epochs": 2, "full_epochs": 1},
}  # fmt: skip


@pytest.fixture
def held():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    return (rng.integers(0, 90, (120, 8, 8, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8), labels


def test_data_in_memory_are_written_where_every_process_can_read_them(tmp_path, held):
    found = dataset.load(held)
    again = dataset.load(str(api._written(found, tmp_path)))
    assert again.classes == found.classes
    for name in ("train", "val", "test"):
        one, other = getattr(found, name), getattr(again, name)
        assert one.images.equal(other.images)
        assert one.labels.equal(other.labels)


def test_other_data_in_the_same_folder_are_other_data(tmp_path, held):
    images, labels = held
    first, other = (api._written(dataset.load((x, labels)), tmp_path) for x in (images, 255 - images))
    assert first != other
    assert not dataset.load(str(first)).train.images.equal(dataset.load(str(other)).train.images)


def test_two_processes_compare_data_in_memory(tmp_path, held):
    record = potstill.compare(held, ["dm:iterations=2"], [1], out=tmp_path, set_seeds=2, workers=2, **SMALL)
    assert [row["failed"] for row in record["rows"]] == [None] * 3
    assert (tmp_path / "compare.html").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": "dm"}, "methods"),
        ({"ipcs": [0]}, "ipcs"),
        ({"networks": ["resnet"]}, "networks"),
        ({"workers": 0}, "workers"),
        ({"minutes": -1}, "minutes"),
        ({"iterations": 3}, "iterations: no such setting"),
    ],
)
def test_wrong_values_are_told(tmp_path, held, changes, words):
    with pytest.raises(PotstillError, match=words):
        potstill.compare(held, **{"methods": ["dm"], "ipcs": [1], "out": tmp_path, **SMALL, **changes})
