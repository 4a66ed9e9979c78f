"""Values of every kind that people hold: brought to a field's type, or refused with value, reason and remedy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

from potstill import bounds
from potstill.bounds import APART, Beside, Bounds, Count, Fraction, Part, Positive, Rate, Whole
from potstill.errors import PotstillError


@pytest.mark.parametrize(("value", "hint", "fitted"), [
    (np.int64(3), Count, 3), (np.array(3), Count, 3), (torch.tensor(3), Count, 3), (None, Count | None, None),
    (0, Whole, 0), (np.float32(0.5), Rate, 0.5), (1, Rate, 1.0), (0, Fraction, 0.0), (1, Fraction, 1.0),
    (np.bool_(True), bool, True), (Path("a/b"), str, "a/b"), (torch.device("cuda", 1), str, "cuda:1"),
    ("a/b", Path, Path("a/b")), ([1, 2], tuple[Whole, Whole], (1, 2)), (range(2), tuple[Whole, ...], (0, 1)),
    (np.arange(3), tuple[int, ...], (0, 1, 2)), (np.str_("adam"), Literal["adam", "sgd"], "adam"),
    ("own:net#1", Annotated[Literal["mlp"], Beside("own:")], "own:net#1"),
    ((), tuple[str, ...], ()), (None, tuple[Whole, Whole] | None, None),
])  # fmt: skip
def test_what_fits_is_of_the_fields_type(value, hint, fitted):
    found = bounds.fit(value, hint, "name")
    assert found == fitted
    assert type(found) is type(fitted)


@pytest.mark.parametrize(("value", "hint", "sentence"), [
    (0, Count, "lr_x 0: at least 1 is needed; raise --lr-x."),
    (-1, Whole, "lr_x -1: cannot be negative; raise --lr-x."),
    (-0.5, Rate | None, "lr_x -0.5: cannot be negative; raise --lr-x."),
    (0.0, Positive, "lr_x 0.0: a number above 0 is needed; raise --lr-x."),
    (1.5, Fraction, "lr_x 1.5: a fraction from 0 to 1 is needed; lower --lr-x."),
    (1.0, Part, "lr_x 1.0: a fraction between 0 and 1 is needed; lower --lr-x."),
    (float("nan"), Rate, "lr_x nan: a finite number is needed; correct --lr-x."),
    (float("inf"), Positive, "lr_x inf: a finite number is needed; correct --lr-x."),
    (10**400, float, "a finite number is needed"), (2.0, Count, "lr_x 2.0: is a float, where a whole number is needed"),
    (True, Count, "lr_x True: is a bool, where a whole number is needed"), ("1", Rate, "is a str, where a number is"),
    (1, bool, "lr_x 1: is a int, where yes or no is needed"), (3, str, "is a int, where text is needed"),
    ("a\0b", Path, "holds a zero character"), (b"x", str, "is a bytes, where text is needed"),
    ("adm", Literal["adam", "sgd"], "lr_x 'adm': choose among adam, sgd."), ([], Literal["a"], "choose among a."),
    ("ab", tuple[str, ...], "is a str, where several values are needed"),
    ((1,), tuple[int, int], "2 values are needed"),
    ((0, -1), tuple[Whole, Whole], "lr_x -1: cannot be negative"), (None, Count, "is a NoneType"),
    ("x" * 100, Rate, "..."),
])  # fmt: skip
def test_what_does_not_is_a_sentence(value, hint, sentence):
    with pytest.raises(PotstillError) as error:
        bounds.fit(value, hint, "lr_x")
    assert sentence in str(error.value)


@dataclass(frozen=True)
class Inner:
    rate: Rate = 1.0


@dataclass(frozen=True)
class Outer:
    count: Count = 1
    inner: Inner = field(default_factory=Inner)
    whole: tuple[int, ...] = field(default=(), metadata=APART)


def test_a_dataclass_is_checked_whole_and_inside():
    bounds.check(Outer())
    with pytest.raises(PotstillError, match="^all.inner.rate nan: "):
        bounds.check(Outer(inner=Inner(float("nan"))), "all.")


def test_fields_are_changed_by_name_and_the_changes_are_found_again():
    changes = {"count": 2, "inner": {"rate": 0.5}}
    found = bounds.changed(Outer(), changes)
    assert found == Outer(2, Inner(0.5))
    assert bounds.changes_between(Outer(2, Inner(0.5), (7,)), Outer()) == changes  # what stands apart is no change
    assert bounds.changed(Outer(), {"inner": Inner(3.0)}).inner.rate == 3.0
    for wrong, sentence in (
        ({"whole": (1,)}, "^x.whole: no such setting; choose among count, inner.$"),
        ({"inner": {"rat": 1}}, "^x.inner.rat: no such setting; did you mean rate"),
        ({"inner": 3}, "^x.inner 3: holds several settings; give a mapping of rate.$"),
    ):
        with pytest.raises(PotstillError, match=sentence):
            bounds.changed(Outer(), wrong, "x.")


def test_bounds_with_and_without_their_ends():
    assert Bounds(0, 1).hold(0)
    assert not Bounds(0, 1, without_ends=True).hold(0)
