"""Selections by how hard images are, each by hand."""

import pytest
import torch

from potstill.methods.pruning import D2, STRATA, by_strata, spread_apart, window


def test_the_window_skips_the_hardest_and_takes_the_next():
    hardness = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    assert window(hardness, 2, 0.0).tolist() == [0, 2]
    assert window(hardness, 2, 0.34).tolist() == [4, 3]
    assert window(hardness, 3, 1.0).tolist() == [3, 1, 5], "where too few are left, the easiest"


def test_strata_have_their_budgets():
    """Nine images of hardness 0, three in the middle, one at the top; six to take: 6 / 3, of which the top has one,
    then 5 / 2, then what is left."""
    hardness = torch.tensor([0.0] * 9 + [5.0] * 3 + [10.0])
    rows = by_strata(hardness, 6, 0.0, torch.Generator().manual_seed(0))
    assert sorted(hardness[rows].tolist()) == [0.0, 0.0, 0.0, 5.0, 5.0, 10.0]
    even = torch.arange(500.0)
    rows = by_strata(even, 100, 0.0, torch.Generator().manual_seed(0))
    assert torch.bucketize(even[rows], torch.linspace(0, 499, STRATA + 1)[1:-1]).bincount().tolist() == [2] * STRATA


def test_strata_leave_the_hardest_out_and_take_what_was_never_right_as_hard():
    hardness = torch.tensor([float("inf"), 9.0, *range(8)], dtype=torch.float32)
    rows = by_strata(hardness, 5, 0.2, torch.Generator().manual_seed(0))
    assert not {0, 1} & set(rows.tolist())
    assert len(set(by_strata(hardness, 10, 0.0, torch.Generator().manual_seed(0)).tolist())) == 10


def test_d2_lowers_the_neighbours_of_what_it_took():
    """Two tight pairs and a loner: the second pick is not the first one's twin."""
    found = torch.tensor([[0.0], [0.01], [5.0], [5.01], [100.0]])
    settings = D2(neighbours=1, spread=1.0, lowering=0.1)
    assert spread_apart(torch.tensor([3.0, 2.9, 2.0, 1.9, 0.5]), found, 2, settings).tolist() == [0, 2]


@pytest.mark.parametrize("count", [1, 5])
def test_d2_takes_each_at_most_once(count):
    rows = spread_apart(torch.rand(5), torch.randn(5, 3), count, D2())
    assert len(set(rows.tolist())) == count
