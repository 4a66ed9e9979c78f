"""Means of a few networks with 95 % intervals, and differences of two such means.

With n accuracies of mean m and standard deviation s (n − 1 in its denominator), Student's interval of the mean is

    m ± t(0.975; n − 1) · s / √n

and Welch's interval of a difference, which does not assume that both spread alike, is

    m_a − m_b ± t(0.975; ν) · √(v_a + v_b),    v = s² / n,    ν = (v_a + v_b)² / (v_a² / (n_a − 1) + v_b² / (n_b − 1))

(B. L. Welch, Biometrika 34, 1947).  Both cover the spread over networks on one set: another set distilled with another
seed may lie outside.
"""

import math
from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]
"""{"mean", "std", "ci95": [low, high], "per_seed": [...]} as :func:`interval` gives it; std and ci95 may be None."""


def interval(accuracies: Sequence[float]) -> Figure:
    """Mean, standard deviation, 95 % interval of the mean, and the accuracies themselves.

    Args:
        accuracies: one for each network, fractions of 1; at least one.

    Returns:
        {"mean", "std", "ci95": [low, high], "per_seed"}, fractions of 1.  The ends of the interval are clipped to
        [0, 1], where accuracies lie.  A single accuracy has no deviation and no interval: both are None.
    """
    n = len(accuracies)
    mean = sum(accuracies) / n
    if n == 1:
        return {"mean": mean, "std": None, "ci95": None, "per_seed": list(accuracies)}
    std = math.sqrt(sum((value - mean) ** 2 for value in accuracies) / (n - 1))
    half = _t_quantile(n - 1) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "ci95": [max(mean - half, 0.0), min(mean + half, 1.0)], "per_seed": [*accuracies]}


def difference(a: Figure, b: Figure) -> dict[str, Any]:
    """Mean of ``a`` less that of ``b``, with Welch's 95 % interval.

    Returns:
        {"mean", "ci95": [low, high]}, fractions of 1, not clipped.  ci95 is None where either figure is of one network.
    """
    mean = a["mean"] - b["mean"]
    if a["std"] is None or b["std"] is None:
        return {"mean": mean, "ci95": None}
    variance, freedom = _welch(a, b)
    if variance == 0:
        return {"mean": mean, "ci95": [mean, mean]}
    half = _t_quantile(freedom) * math.sqrt(variance)
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def p_value(a: Figure, b: Figure) -> float:
    """Of Welch's test that two figures have the same mean, two-sided; 1 where either is of one number."""
    if a["std"] is None or b["std"] is None:
        return 1.0
    from scipy import stats  # imported here so that `import potstill` stays light

    variance, freedom = _welch(a, b)
    if variance == 0:
        return 1.0 if a["mean"] == b["mean"] else 0.0
    return float(2 * stats.t.sf(abs(a["mean"] - b["mean"]) / math.sqrt(variance), freedom))


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected when all are tested together, none falsely with probability 1 − ``level``.

    S. Holm, "A simple sequentially rejective multiple test procedure", 1979: the smallest is held to level / m, the
    next to level / (m − 1), until one is not rejected.
    """
    rejected = [False] * len(p_values)
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[number] > level / (len(p_values) - rank):
            break
        rejected[number] = True
    return rejected


def _welch(a: Figure, b: Figure) -> tuple[float, float]:
    """Variance of the difference of two means, and its degrees of freedom."""
    (n_a, v_a), (n_b, v_b) = ((len(f["per_seed"]), f["std"] ** 2 / len(f["per_seed"])) for f in (a, b))
    variance = v_a + v_b
    if variance == 0:
        return 0.0, 1.0
    return variance, variance**2 / (v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1))


def _t_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t; any positive number of degrees of freedom."""
    from scipy import stats  # imported here so that `import potstill` stays light

    return float(stats.t.ppf(0.975, freedom))
