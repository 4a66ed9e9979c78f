"""The growing range of start epochs."""

import pytest

from potstill import seeds
from potstill.methods import METHODS
from potstill.methods.start_epochs import StartEpochs
from potstill.methods.trajectory import range_of, span_of
from potstill.runs import settings

CELLS = [settings.name_of(cell) for cell in {**METHODS["datm"].published, **METHODS["datm"].tuned}]


def stage_of(name):
    return settings.defaults("mine", None, ("datm",), name).stages[0]


def test_upper_grows_as_published():
    published = StartEpochs(0, 20, 10, 1000)
    for k in range(0, 1500, 7):
        assert published.upper(k) == min(10 + (20 - 10) * k // 1000, 20)
    assert StartEpochs(0, 4).upper(0) == 4


@pytest.mark.parametrize("name", CELLS)
def test_draws_stay_inside_and_reach_both_ends(name):
    start = range_of(stage_of(name))
    for k in (0, 500, 5000):
        drawn = {start.draw(k, seeds.generator(0, "s", i)) for i in range(1500)}
        assert min(drawn) == start.first
        assert max(drawn) == start.upper(k) - 1


@pytest.mark.parametrize("name", CELLS)
def test_cells_fit_their_own_experts(name):
    given = settings.defaults("mine", None, ("datm",), name)
    start = range_of(given.stages[0])
    assert start.epochs(span_of(given.stages[0]))[-1] <= given.expert.epochs
