"""What the labels mean."""

import numpy as np
import pytest

from potstill.data.classes import number
from potstill.data.dataset import load
from potstill.errors import PotstillError
from tests.data.making import pixels


def numbered(train, names=None, **parts):
    classes, labels, notes = number({"train": train, **parts}, names)
    return classes, {part: found.tolist() for part, found in labels.items()}, notes


def test_numbers_keep_their_order():
    classes, labels, notes = numbered([10, 2, 0, 1, *range(3, 10)])
    assert classes == tuple(map(str, range(11)))
    assert labels["train"][:3] == [10, 2, 0]
    assert notes == ()


def test_gaps_and_labels_from_one_are_numbered_and_said():
    assert numbered([3, 5, 9, 3])[:2] == (("3", "5", "9"), {"train": [0, 1, 2, 0]})
    classes, labels, notes = numbered([1, 2, 3, 4], test=[4, 1])
    assert (classes, labels) == (("1", "2", "3", "4"), {"train": [0, 1, 2, 3], "test": [3, 0]})
    assert "numbered from 0 in their order" in notes[0]


def test_names_are_sorted_and_stay():
    assert numbered(["dog", "cat", b"emu", "dog"])[:2] == (("cat", "dog", "emu"), {"train": [1, 0, 2, 1]})


def test_given_names_count_from_zero_or_from_one():
    assert numbered([0, 2, 1], ["a", "b", "c"])[1] == {"train": [0, 2, 1]}
    classes, labels, notes = numbered([1, 3, 2], ["a", "b", "c"])
    assert (classes, labels) == (("a", "b", "c"), {"train": [0, 2, 1]})
    assert notes == ("labels run from 1 to 3 and were counted from 0",)
    assert numbered(["c", "a"], ["a", "b", "c"])[1] == {"train": [2, 0]}


@pytest.mark.parametrize("value", [1, 1.0, [1], ["1"], (1,), True, "1"])
def test_ways_to_write_one(value):
    assert numbered([0 if not isinstance(value, str | list) or value == [1] else "0", value])[1]["train"] == [0, 1]


@pytest.mark.parametrize(("value", "words"), [
    ([1, 2], "of type list"), (0.5, "of type float"), ({"a": 1}, "of type dict"), (None, "image 1: has no label"),
    (float("nan"), "image 1: has no label"), ("  ", "image 1: has no label"),
])  # fmt: skip
def test_what_is_no_label(value, words):
    with pytest.raises(PotstillError, match=words):
        numbered([0, value])


def test_a_part_without_labels_is_left_aside():
    _, labels, notes = numbered([0, 1], test=[-1, -1], validation=[1])
    assert list(labels) == ["train", "validation"]
    assert notes == ("the test part has no labels and is left aside",)
    assert numbered([0, 1], test=[None, None])[1] == {"train": [0, 1]}


def test_unknown_labels_are_named():
    with pytest.raises(PotstillError, match=r"test label 7 is out of range: the classes are 0, 1"):
        numbered([0, 1], test=[0, 7])
    with pytest.raises(PotstillError, match=r"label 3 is out of range: the classes are a, b, c"):
        numbered([0, 3], ["a", "b", "c"])
    with pytest.raises(PotstillError, match="class 'a' is named twice"):
        numbered([0, 1], ["a", "a"])


def test_arrays_from_one_and_with_gaps(arrays):
    for labels in (np.arange(40) % 4 + 1, np.array([3, 5, 8, 9])[np.arange(40) % 4]):
        found = load(arrays(pixels(40), labels))
        assert found.classes == tuple(str(value) for value in sorted(set(labels.tolist())))
        assert "numbered from 0" in found.notes[0]


def test_arrays_of_names(arrays):
    assert load(arrays(pixels(40), np.array(["dog", "cat"] * 20))).classes == ("cat", "dog")
    assert load(arrays(pixels(40), np.arange(40)[:, None] % 4)).classes == ("0", "1", "2", "3")
