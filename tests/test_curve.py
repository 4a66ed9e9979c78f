"""recipes/curve.py: minutes of runs that go on one from another, and records that do not tell them."""

import pytest

from potstill import files
from recipes import curve


def record(experts, distill, *validation):
    return {
        "seconds": {"experts": experts, "distill": distill},
        "iterations": {"iteration": 20},
        "validation": [{"on": "validation", **entry} for entry in validation],
    }


TIMED = record(
    60, 600,
    {"iteration": 0, "accuracy": 0.1, "seconds": 0.0},
    {"iteration": 10, "accuracy": 0.25, "seconds": 300.0},
    {"iteration": 20, "accuracy": 0.3, "seconds": 590.0},
)  # fmt: skip
OLDER = record(30, 90, *({"iteration": done, "accuracy": done / 100} for done in (0, 10, 20)))


def test_minutes_count_experts_and_add_up():
    minutes, accuracies = curve.points([TIMED, OLDER])
    assert minutes == pytest.approx([1, 6, 65 / 6, 11.5, 13])
    assert accuracies == pytest.approx([10, 25, 30, 0, 20])


def test_the_picture_is_of_what_is_named(tmp_path):
    for name, content in {"one": TIMED, "two": OLDER}.items():
        files.write_json(tmp_path / f"{name}.json", content)
    single, both = (curve.drawn(runs, tmp_path) for runs in (["one"], ["one", "one+two"]))
    assert single.startswith(b"\x89PNG")
    assert single == curve.drawn(["one"], tmp_path) != both
