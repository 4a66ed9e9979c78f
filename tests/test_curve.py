"""recipes/curve.py: minutes of runs that go on one from another, and records that do not tell them."""

import pytest

from potstill import files
from potstill.errors import PotstillError
from recipes import curve


def record(experts, distill, *entries, by="validation", identity=None):
    return {
        "seconds": {"experts": experts, "distill": distill},
        "iterations": {"iteration": 20},
        "experts": identity,
        by: [{"on": "validation", **entry} for entry in entries],
    }


TIMED = record(
    60, 600,
    {"iteration": 0, "accuracy": 0.1, "seconds": 0.0},
    {"iteration": 10, "accuracy": 0.25, "seconds": 300.0},
    {"iteration": 20, "accuracy": 0.3, "seconds": 540.0},
    identity={"seed": 0, "count": 2},
)  # fmt: skip
UNTIMED = [{"iteration": done, "accuracy": done / 100} for done in (0, 10, 20)]


def flat(pieces):
    return [value for piece in pieces for point in piece for value in point]


def test_minutes_are_those_without_evaluations_and_add_up():
    pieces = curve.points([TIMED, record(30, 90, *UNTIMED)])
    assert flat(pieces) == pytest.approx([1, 10, 6, 25, 10, 30, 10.5, 0, 12, 20])


def test_experts_that_two_runs_share_are_counted_once():
    fewer = {**TIMED, "experts": {"seed": 0, "count": 1}}
    assert flat(curve.points([TIMED, fewer])[1:]) == pytest.approx([10, 10, 15, 25, 19, 30])
    other = {**TIMED, "experts": {"seed": 1, "count": 2}}
    assert curve.points([TIMED, other])[1][0] == pytest.approx((11, 10))


def test_older_records_and_methods_without_experts():
    assert flat(curve.points([record(None, 90, *UNTIMED, by="judged")])) == pytest.approx([0, 0, 1.5, 20])
    with pytest.raises(PotstillError, match="without evaluations on the way"):
        curve.points([record(30, 90)])


def test_the_picture_is_of_what_is_named(tmp_path):
    for name, content in {"one": TIMED, "two": record(30, 90, *UNTIMED)}.items():
        files.write_json(tmp_path / f"{name}.json", content)
    single, both = (curve.drawn(runs, tmp_path) for runs in (["one"], ["one", "one+two"]))
    assert single.startswith(b"\x89PNG")
    assert single == curve.drawn(["one"], tmp_path) != both
