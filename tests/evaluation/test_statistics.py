"""Intervals against SciPy's own, and what they are where there is little to go by."""

import pytest
import torch
from scipy import stats

from potstill import seeds
from potstill.evaluation.statistics import difference, holm, interval, p_value


def accuracies(n, spread=0.05, mean=0.5, seed=0):
    return (mean + spread * torch.randn(n, generator=seeds.generator(seed, "accuracies", n)).double()).tolist()


@pytest.mark.parametrize("n", [2, 5, 12, 60])
def test_interval_is_the_t_interval(n):
    values = accuracies(n, spread=0.01)
    found = interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=sum(values) / n, scale=stats.sem(values))
    assert found["ci95"] == pytest.approx([low, high], abs=1e-12)
    assert found["mean"] == pytest.approx(sum(values) / n)
    assert found["std"] == pytest.approx(stats.tstd(values))
    assert found["per_seed"] == values


def test_one_network_has_no_interval():
    assert interval([0.5]) == {"mean": 0.5, "std": None, "ci95": None, "per_seed": [0.5]}


def test_an_interval_of_accuracies_never_leaves_0_to_1():
    assert interval([0.34, 0.52])["ci95"] == [0.0, 1.0]  # −71 to 157 % by the formula
    low, high = interval([0.97, 0.99, 1.0])["ci95"]
    assert (0.9 < low < 0.97, high) == (True, 1.0)
    assert interval([1.0, 1.0])["ci95"] == [1.0, 1.0]


@pytest.mark.parametrize(("n", "m", "spread"), [(2, 2, 0.05), (2, 5, 0.01), (5, 5, 0.05), (24, 3, 0.2)])
def test_difference_is_welchs(n, m, spread):
    a, b = accuracies(n), accuracies(m, spread, 0.6, seed=1)
    found = difference(interval(a), interval(b))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found["ci95"] == pytest.approx([expected.low, expected.high], rel=1e-10)
    assert found["mean"] == pytest.approx(sum(a) / n - sum(b) / m)


def test_a_difference_is_not_clipped():
    low, high = difference(interval([0.01, 0.31]), interval([0.9, 0.99]))["ci95"]
    assert (low < -1, high > 0) == (True, True)


def test_a_difference_without_spread_or_with_one_network():
    same, one = interval([0.5, 0.5]), interval([0.75])
    assert difference(same, interval([0.25, 0.25])) == {"mean": 0.25, "ci95": [0.25, 0.25]}
    assert difference(one, same) == {"mean": 0.25, "ci95": None}
    assert difference(same, one) == {"mean": -0.25, "ci95": None}


def test_p_value_agrees_with_scipy():
    a, b = [0.5, 0.55, 0.52, 0.6], [0.4, 0.47, 0.51]
    expected = stats.ttest_ind(a, b, equal_var=False).pvalue
    assert p_value(interval(a), interval(b)) == pytest.approx(expected)


def test_p_value_of_single_or_equal_accuracies():
    one, same, other = interval([0.5]), interval([0.5, 0.5]), interval([0.6, 0.6])
    assert p_value(one, other) == 1.0
    assert p_value(same, same) == 1.0
    assert p_value(same, other) == 0.0


def test_holm_rejects_the_smallest_first_until_one_holds():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # against 0.05/4, /3, then 0.03 > /2
    assert holm([0.2, 0.001]) == [False, True]
    assert holm([]) == []
