"""Selections: real images with their own labels.  The simplest stand-in, and what distilling has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.bounds import Whole
from potstill.methods import initial
from potstill.methods.method import Begun, Context, Experts, Method, Start

BATCH = 500  # images whose features are computed at once


@dataclass(frozen=True)
class Random:
    """Random images of each class; nothing to set."""


@dataclass(frozen=True)
class Herding:
    """Images whose mean feature stays near that of their class."""

    expert: Whole = 0
    """The expert whose last features (the input of the last layer) are compared."""


def select_random(ctx: Context, settings: Random, start: Start | None) -> Begun:
    """IPC random images of each class."""
    return selected(ctx, initial.random_rows(ctx))


@torch.no_grad()
def select_herding(ctx: Context, settings: Herding, start: Start | None) -> Begun:
    """IPC images of each class in the order of :func:`herd`, by the features of an expert at its last epoch."""
    assert ctx.experts is not None
    theta, buffers = (x.to(ctx.problem.device) for x in ctx.experts.last(settings.expert))
    split, rows = ctx.problem.train, []
    for label in range(ctx.classes):
        own = (split.labels == label).nonzero().flatten()
        features = torch.cat(
            [ctx.problem.network.features(theta, split.images[r], buffers, training=False) for r in own.split(BATCH)]
        )
        rows.append(own[herd(features, ctx.ipc)])
    return selected(ctx, torch.cat(rows))


def herd(features: Tensor, count: int) -> Tensor:
    """Rows (count,) of features (n, F) whose running mean follows the mean of all (Welling, ICML 2009).

    The k-th is argmin_x ‖k μ − Σ_selected h − h(x)‖ among those that are left.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    left = torch.ones(len(features), dtype=torch.bool, device=features.device)
    rows = []
    for k in range(1, count + 1):
        distance = (k * mean - total - features).square().sum(1)
        row = int(distance.masked_fill(~left, torch.inf).argmin())
        rows.append(row)
        left[row] = False
        total += features[row]
    return torch.tensor(rows, device=features.device)


def selected(ctx: Context, rows: Tensor) -> Begun:
    """The set that a selection of rows of the training split is."""
    split = ctx.problem.train
    return Begun({"images": split.images[rows].clone()}, split.labels[rows].clone(), rows=rows)


RANDOM = Method(
    name="random", title="Random real images", family="selection", citation="the control of every comparison",
    settings=Random, begin=select_random,
)  # fmt: skip
HERDING = Method(
    name="herding", title="Herding", family="selection",
    citation='Welling, "Herding Dynamical Weights to Learn", ICML 2009',  # by features as in Rebuffi et al., CVPR 2017
    settings=Herding, begin=select_herding, needs=lambda settings: Experts(range(0)),
)  # fmt: skip
