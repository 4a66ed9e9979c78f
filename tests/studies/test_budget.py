"""Iterations that fill so many minutes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from potstill.methods import METHODS
from potstill.runs import settings
from potstill.runs.api import run_to_completion
from potstill.runs.forecast import Cost
from potstill.studies import budget
from potstill.studies.budget import BudgetTask, fitting
from tests.conftest import tiny

COST = Cost(each=0.5, trial=0.0, seconds=60.0, held_bytes=0, memory_bytes=0, engine="")
COST_PLAIN = replace(COST, each=1.5)
MEASURED = tiny("mtt", mtt={"iterations": 5000, "start_epochs": None, "inner_steps": None})


@pytest.fixture
def costs(monkeypatch):
    def set_cost(**changes):
        found = replace(COST, **changes)
        monkeypatch.setattr(budget.forecast, "distilling", lambda run, number: found)
        return found

    return set_cost


def test_iterations_fill_the_minutes(costs):
    costs()
    one = tiny("dm", dm={"iterations": 2})
    assert fitting(one, 1.0) == {"iterations": [120], "assumed": [False], "each": [0.5], "notes": []}
    two = replace(one, method=("dm", "dm"), stages=one.stages * 2)
    assert fitting(two, 1.0)["iterations"] == [60, 60]  # half of the minute each


def test_a_job_that_is_too_short_to_be_compiled_is_timed_as_it_will_be(monkeypatch):
    """Found on CIFAR-10: 41 iterations by the time of a thousand compiled ones took twice the minute."""
    monkeypatch.setattr(
        budget.forecast, "distilling",
        lambda run, number: replace(COST, each=0.5, compiled=True) if run.settings.iterations == 5000 else COST_PLAIN,
    )  # fmt: skip
    found = fitting(replace(MEASURED, compile="auto", stages=(replace(MEASURED.stages[0], start_epochs=(0, 1)),)), 1.0)
    assert (found["iterations"], found["each"]) == ([40], [1.5])


def test_measuring_shrinks_with_the_iterations_that_it_is_to_repay(costs):
    cost = costs(trial=2.0)
    made = fitting(MEASURED, 1.0)
    [found] = made["iterations"]

    def takes(iterations):
        return 0.5 * iterations + cost.measuring(probe(replace(MEASURED.stages[0], iterations=iterations)))

    probe = METHODS["mtt"].probe
    assert takes(found) <= 60 < takes(found + 1)
    assert cost.measuring(probe(MEASURED.stages[0])) > 60, "for all of them there would be no time"
    assert not made["notes"]


def test_what_there_is_no_time_to_measure_is_assumed(tmp_path, costs):
    costs(trial=2.0)
    [timing] = budget.timings(MEASURED, 0.1, 1, 1)
    run_to_completion(timing.perform(tmp_path))
    found, notes = budget.settled([timing], tmp_path)
    assert found.stages[0].start_epochs == (0, (MEASURED.expert.epochs - 1) // 2)
    assert found.stages[0].inner_steps == 20
    assert found.iterations == 12, "all of the time is its iterations'"
    assert notes == ["mtt: 6 s are too few to measure what suits this size; it is assumed. Give more --minutes."]
    settings.check(found)


def test_where_not_even_one_iteration_fits_it_is_said(costs):
    costs(trial=2.0, each=10.0)
    found = fitting(MEASURED, 0.1)
    assert (found["iterations"], found["assumed"]) == ([1], [True])
    assert found["notes"][1] == "mtt: an iteration takes 10 s, more than the 6 s it has; give more --minutes."


def test_the_slowest_of_those_that_time_the_same_decides(tmp_path, costs):
    both = budget.timings(tiny("dm", dm={"iterations": 2}), 1.0, 1, 2)
    for timing, each in zip(both, (0.5, 0.75), strict=True):
        costs(each=each)
        run_to_completion(timing.perform(tmp_path))
    assert budget.settled(both, tmp_path)[0].iterations == 80


def test_a_timing_holds_for_its_data_wherever_they_lie_and_for_its_worker_only(arrays, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    here = replace(MEASURED, dataset=arrays(images, np.arange(60) % 3))
    one = BudgetTask(here, 1.0, 1, 2, 0)
    elsewhere = replace(one, settings=replace(here, dataset=str(shutil.copy(here.dataset, tmp_path / "moved.npz"))))
    assert elsewhere.key == one.key
    longer = replace(here, evaluation=replace(here.evaluation, epochs=301))
    others = [
        replace(one, minutes=2.0), replace(one, threads=2), replace(one, neighbours=1), replace(one, number=1),
        replace(one, settings=longer),
    ]  # fmt: skip
    assert len({one.key, *(other.key for other in others)}) == 6
