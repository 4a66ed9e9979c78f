"""Selections by how hard images are: the hardest, those past the hardest, some of every hardness, or spread apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill import seeds
from potstill.bounds import Count, Fraction, Rate, Whole
from potstill.methods import scores
from potstill.methods.method import Begun, Context, Experts, Method, Reads, Start
from potstill.methods.scores import Score
from potstill.methods.selection import Selection, both, features, kind, needs, rows_of, selected

STRATA = 50  # of CCS


@dataclass(frozen=True)
class ByScore(Selection):
    """The hardest images of each class."""

    skip: Fraction = 0.0
    """The hardest part of each class, which is left out: what follows is taken."""


@dataclass(frozen=True)
class Early(ByScore):
    """The hardest images of each class, as experts see them early in their training."""

    score_epoch: Count | None = None
    """Epoch of the experts after which they are asked. None: a tenth of all."""


@dataclass(frozen=True)
class Window(ByScore):
    """The images of each class that follow the hardest ones."""

    skip: Fraction = 0.5
    score: Score = "el2n"
    """How hard an image is: el2n, grand, forgetting or aum."""


@dataclass(frozen=True)
class Ccs(Selection):
    """Coverage-centric selection: without the hardest, as many of each hardness as there are."""

    skip: Fraction = 0.3
    """The hardest part of each class (published: of all images), which is left out: wrong labels gather there."""


@dataclass(frozen=True)
class D2(Selection):
    """Hard images, each lowering the score of those that are near it in feature space."""

    skip: Fraction = 0.4
    """The hardest part of each class, which is left out."""
    neighbours: Count = 5
    """Images that tell an image how hard it is, and are lowered when it is taken."""
    spread: Rate = 1.0
    """γ_f: how fast a neighbour's word fades with its distance, in mean distances of neighbours."""
    lowering: Rate = 0.1
    """γ_r: how fast the lowering fades with the distance."""
    expert: Whole = 0
    """The expert whose last features are compared."""


def window(hardness: Tensor, count: int, skip: float) -> Tensor:
    """Rows (count,) of the hardest past the ``skip`` hardest; where too few are left, of the easiest."""
    order = hardness.argsort(descending=True, stable=True)
    first = min(round(skip * len(order)), len(order) - count)
    return order[first : first + count]


def by_strata(hardness: Tensor, count: int, skip: float, generator: torch.Generator) -> Tensor:
    """Rows (count,) at random from strata of equal width in hardness, the ``skip`` hardest left out (CCS).

    From the least populated stratum on, each gives what it has, at most its share of what is still to be taken.
    """
    kept = hardness.argsort(descending=True, stable=True)
    kept = kept[min(round(skip * len(kept)), len(kept) - count) :]
    values = hardness[kept].nan_to_num(posinf=float(hardness[hardness.isfinite()].max()) + 1)
    edges = torch.linspace(float(values.min()), float(values.max()), STRATA + 1)[1:-1]
    place = torch.bucketize(values, edges)
    strata = sorted((kept[place == k] for k in range(STRATA)), key=len)
    left, taken = count, []
    for number, rows in enumerate(strata):
        budget = min(len(rows), left // (len(strata) - number))
        if number == len(strata) - 1:
            budget = min(len(rows), left)
        taken.append(rows[torch.randperm(len(rows), generator=generator)[:budget]])
        left -= budget
    chosen = torch.cat(taken)
    if left:  # the largest strata had no more: any others
        others = kept[~torch.isin(kept, chosen)]
        chosen = torch.cat([chosen, others[torch.randperm(len(others), generator=generator)[:left]]])
    return chosen


def spread_apart(hardness: Tensor, found: Tensor, count: int, settings: D2) -> Tensor:
    """Rows (count,) by D2: neighbours add to a score, and the largest one in turn lowers those near it.

        s_i ← s_i + Σ_{j ∈ kNN(i)} e^(−γ_f d_ij²) s_j;    then   i* = argmax s,   s_j ← s_j − e^(−γ_r d_ij²) s_i*

    Distances are in units of the mean distance of neighbours, for features of another network are on another scale.
    """
    near = min(settings.neighbours, len(found) - 1)
    distance, who = torch.cdist(found, found).fill_diagonal_(torch.inf).topk(near, largest=False)
    squared = (distance / distance.mean().clamp_min(1e-12)).square()
    told = hardness + ((-settings.spread * squared).exp() * hardness[who]).sum(1)
    rows = []
    for _ in range(count):
        row = int(told.argmax())
        rows.append(row)
        told[who[row]] -= (-settings.lowering * squared[row]).exp() * told[row]
        told[row] = -torch.inf
    return torch.tensor(rows)


def _by_class(ctx: Context, settings: Selection, choose: Callable[[Tensor, int], Tensor]) -> Begun:
    """The set that ``choose`` (rows of a class on the CPU, the class) takes of each class."""
    rows = [choose(rows_of(ctx, label).cpu(), label) for label in range(ctx.classes)]
    return selected(ctx, settings, torch.cat(rows).to(ctx.problem.device))


def _hardest(score: Score | None) -> Callable[[Context, Any, Start | None], Begun]:
    def begin(ctx: Context, settings: Any, start: Start | None) -> Begun:
        """The hardest IPC images of each class, past those that are skipped."""
        hardness = scores.hardness(ctx, score or settings.score, getattr(settings, "score_epoch", None))
        return _by_class(ctx, settings, lambda own, _: own[window(hardness[own], ctx.ipc, settings.skip)])

    return begin


def select_ccs(ctx: Context, settings: Ccs, start: Start | None) -> Begun:
    """IPC images of each class from strata of AUM."""
    hardness = scores.hardness(ctx, "aum", None)

    def choose(own: Tensor, label: int) -> Tensor:
        return own[by_strata(hardness[own], ctx.ipc, settings.skip, seeds.generator(ctx.seed, "strata", label))]

    return _by_class(ctx, settings, choose)


def select_d2(ctx: Context, settings: D2, start: Start | None) -> Begun:
    """IPC images of each class, hard and apart from one another."""
    hardness = scores.hardness(ctx, "forgetting", None)
    finite = hardness[hardness.isfinite()]
    hardness = hardness.nan_to_num(posinf=float(finite.max()) + 1 if len(finite) else 1.0)

    def choose(own: Tensor, label: int) -> Tensor:
        most = max(ctx.ipc, len(own) - round(settings.skip * len(own)))
        own = own[hardness[own].argsort(descending=True, stable=True)[len(own) - most :]]
        found = features(ctx, settings.expert, own.to(ctx.problem.device)).cpu()
        return own[spread_apart(hardness[own], found, ctx.ipc, settings)]

    return _by_class(ctx, settings, choose)


def _needs(score: Score | None) -> Callable[[Any], Experts]:
    def needed(settings: Any) -> Experts:
        epoch = getattr(settings, "score_epoch", None)
        return both(scores.needs(score or settings.score, epoch), needs(settings))

    return needed


def _method(
    name: str, title: str, citation: str, settings: type[Selection], score: Score | None,
    begin: Callable[[Context, Any, Start | None], Begun] | None = None, reads: Reads = "outputs",
) -> Method:  # fmt: skip
    return Method(
        name=name, title=title, family="selection", citation=citation, settings=settings,
        begin=begin or _hardest(score), kind=kind, needs=_needs(score), reads=reads,
    )  # fmt: skip


_DIET = 'Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training", NeurIPS 2021'
EL2N = _method("el2n", "EL2N", _DIET, Early, "el2n")
GRAND = _method("grand", "GraNd", _DIET, Early, "grand", reads="features")
FORGETTING = _method(
    "forgetting", "Forgetting events",
    'Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019', ByScore,
    "forgetting",
)  # fmt: skip
WINDOW = _method(
    "window", "Window past the hardest",
    'Lee and Chung, "SelMatch: Effectively Scaling Up Dataset Distillation via Selection-Based Initialization", '
    "ICML 2024 (its control)", Window, None,
)  # fmt: skip
CCS = _method(
    "ccs", "Coverage-centric coreset selection",
    'Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023', Ccs, "aum", select_ccs,
)  # fmt: skip
D2_PRUNING = _method(
    "d2", "D2 pruning", 'Maharana et al., "D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data '
    'Pruning", ICLR 2024', D2, "forgetting", select_d2, reads="features",
)  # fmt: skip
