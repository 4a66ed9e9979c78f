"""DD-Ranking's scores: what the images of a set teach, apart from what soft labels and augmentation add to any images.

    HLR = full − distilled_hard                 hard-label recovery: what the images alone leave missing; low is good
    IOR = distilled − random                    improvement over random images, both trained on in the same way
    LRS = norm(w · IOR − (1 − w) · HLR)         label-robust score, w = 1/2
    ARS = norm(γ · IOR + (1 − γ) · (distilled_plain − random_plain))          augmentation-robust score, γ = 1/2
    norm(v) = (e^v − e⁻¹) / (e − e⁻¹)           from [−1, 1] to [0, 1]; a set no better than random has ARS 0.269

The names are test accuracies, :data:`ACCURACIES`.  Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset
Distillation", arXiv 2505.13300, 2025; the equations are those of its package, ``ddranking`` 0.2.0.  That package puts
accuracies in per cent into norm, which is meant for fractions: its LRS and ARS are other numbers than these.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from potstill import bounds
from potstill.bounds import Fraction
from potstill.errors import PotstillError
from potstill.evaluation.statistics import Figure

Score = Literal["hlr", "ior", "lrs", "ars"]
ALL: tuple[Score, ...] = get_args(Score)
ACCURACIES = {
    "full": "the full training set, hard labels",
    "distilled_hard": "the set's images with hard labels",
    "distilled": "the set as it is meant: its own labels, with augmentation",
    "random": "as many random real images, trained on like the set: labels of the same kind, with augmentation",
    "distilled_plain": "the set with its own labels, without augmentation",
    "random_plain": "the random real images with labels of the same kind, without augmentation",
}
"""Test accuracies that scores are computed from: by name, what the networks were trained on."""
_NEEDED: dict[Score, tuple[str, ...]] = {
    "hlr": ("full", "distilled_hard"),
    "ior": ("distilled", "random"),
    "lrs": ("full", "distilled_hard", "distilled", "random"),
    "ars": ("distilled", "random", "distilled_plain", "random_plain"),
}


def hard_label_recovery(full: float, distilled_hard: float) -> float:
    """HLR in [−1, 1]: accuracy of the full set less that of the images with hard labels; 0 where nothing is lost."""
    return full - distilled_hard


def improvement_over_random(distilled: float, random: float) -> float:
    """IOR in [−1, 1]: accuracy of the set less that of as many random real images, both trained on alike."""
    return distilled - random


def label_robust(hlr: float, ior: float, weight: float = 0.5) -> float:
    """LRS in [0, 1] of the two above; ``weight`` w is the share of IOR.

    Raises:
        PotstillError: the weight is no fraction.
    """
    w = bounds.fit(weight, Fraction, "weight")
    return normalised(w * ior - (1 - w) * hlr)


def augmentation_robust(with_augmentation: float, without: float, weight: float = 0.5) -> float:
    """ARS in [0, 1] of the improvements over random images with and without augmentation; ``weight`` γ: the former's.

    Raises:
        PotstillError: the weight is no fraction.
    """
    w = bounds.fit(weight, Fraction, "weight")
    return normalised(w * with_augmentation + (1 - w) * without)


def normalised(value: float) -> float:
    """(e^v − e⁻¹) / (e − e⁻¹): from [−1, 1] to [0, 1], rising ever faster."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def needed(which: Sequence[Score] = ALL) -> tuple[str, ...]:
    """Names of the accuracies that some scores need, each once, in the order of :data:`ACCURACIES`.

    Raises:
        PotstillError: there is no such score.
    """
    for name in which:
        bounds.fit(name, Score, "score")
    return tuple(name for name in ACCURACIES if any(name in _NEEDED[score] for score in which))


def scores(
    accuracies: Mapping[str, float] | Callable[[str], float], which: Sequence[Score] = ALL, weight: float = 0.5
) -> dict[Score, float]:  # fmt: skip
    """Scores from the accuracies they need.

    Args:
        accuracies: fractions of 1 by the names of :data:`ACCURACIES`, or a function that gives the one of a name and
            is called once for each of :func:`needed`.
        which: the scores.
        weight: w of LRS and γ of ARS.

    Raises:
        PotstillError: an accuracy is missing (what to train is said) or no fraction of 1; no such score.

    Example:
        >>> scores({"distilled": 0.66, "random": 0.5}, ["ior"])["ior"]
        0.16000000000000003
    """
    if callable(accuracies):
        given = {name: accuracies(name) for name in needed(which)}
    else:
        _check_complete(accuracies, which)
        given = {name: accuracies[name] for name in needed(which)}
    for name, value in given.items():
        if not 0 <= value <= 1:  # per cents above all, of which norm would make a meaningless number
            raise PotstillError(f"accuracy {name} {value}: accuracies are fractions of 1; divide per cents by 100.")
    return {score: _one(score, given, weight) for score in which}


def _one(score: Score, a: Mapping[str, float], weight: float) -> float:
    if score == "hlr":
        return hard_label_recovery(a["full"], a["distilled_hard"])
    improvement = improvement_over_random(a["distilled"], a["random"])
    if score == "ior":
        return improvement
    if score == "lrs":
        return label_robust(hard_label_recovery(a["full"], a["distilled_hard"]), improvement, weight)
    return augmentation_robust(improvement, improvement_over_random(a["distilled_plain"], a["random_plain"]), weight)


def from_results(accuracy: Mapping[str, Figure], hard: bool) -> dict[str, float]:
    """The accuracies that a run has measured already, as :func:`scores` takes them; the others are still to be trained.

    Args:
        accuracy: "accuracy" of its results.json.
        hard: whether the labels of its set are hard: they are then compared with random images with hard labels, else
            with those that have soft ones, where there were experts to give them.
    """
    names = {"full": "full", "distilled": "distilled", "random": "random" if hard else "random_soft"}
    if hard:
        names["distilled_hard"] = "distilled"
    return {name: accuracy[own]["mean"] for name, own in names.items() if own in accuracy}


def _check_complete(accuracies: Mapping[str, float], which: Sequence[Score]) -> None:
    missing = [name for name in needed(which) if name not in accuracies]
    if missing:
        trained = "; ".join(f"{name}: {ACCURACIES[name]}" for name in missing)
        raise PotstillError(
            f"scores {', '.join(which)}: {len(missing)} accuracies are missing; train networks on {trained}."
        )
