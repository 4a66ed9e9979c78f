"""Selections: real images with their own labels or those of the experts.  What distilling has to beat.

What is here is shared by all of them; the rules by which images are chosen stand in ``coverage.py`` (by features),
``pruning.py`` (by how hard images are) and ``glister.py`` (by gradients).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.bounds import Whole
from potstill.data.labels import Kind
from potstill.methods import initial
from potstill.methods.method import Begun, Context, Experts, Method, Start
from potstill.methods.soft_labels import mean_logits

BATCH = 500  # images whose features are computed at once


@dataclass(frozen=True)
class Selection:
    """Random images of each class."""

    labels: Literal["hard", "soft"] = "hard"
    """hard: the class of each image; soft: what the experts say of it."""
    label_epoch: Whole | None = None
    """Epoch after which the experts speak: early ones are better teachers of few images. None: the last one."""


def kind(settings: Selection) -> Kind:
    """Labels are classes, or the experts' logits."""
    return "logits" if settings.labels == "soft" else "hard"


def needs(settings: Selection) -> Experts | None:
    """The experts that speak, where labels are soft."""
    if settings.labels == "hard":
        return None
    return at_epoch(settings.label_epoch)


def at_epoch(epoch: int | None) -> Experts:
    """Experts with the snapshot of one epoch; None: the last one, which is always kept."""
    return Experts(range(0) if epoch is None else range(epoch, epoch + 1))


def both(one: Experts, other: Experts | None) -> Experts:
    """Experts with the snapshots that two purposes need."""
    if other is None or one.epochs is None or other.epochs is None:
        return one if other is None or one.epochs is None else other
    wanted = [*one.epochs, *other.epochs]
    return Experts(range(min(wanted), max(wanted) + 1) if wanted else range(0))


def selected(ctx: Context, settings: Selection, rows: Tensor) -> Begun:
    """The set that a selection of rows of the training split is."""
    split = ctx.problem.train
    images, labels = split.images[rows].clone(), split.labels[rows].clone()
    variables = {"images": images}
    if settings.labels == "soft":
        assert ctx.experts is not None
        variables["logits"] = mean_logits(
            ctx.problem, ctx.experts, ctx.expert_count, images, labels, settings.label_epoch
        )
    return Begun(variables, labels, rows=rows)


@torch.no_grad()
def features(ctx: Context, expert: int, rows: Tensor) -> Tensor:
    """The input of an expert's last layer (len(rows), F), after its last epoch, of training images."""
    assert ctx.experts is not None
    theta, buffers = (x.to(ctx.problem.device) for x in ctx.experts.last(expert))
    network, images = ctx.problem.network, ctx.problem.train.images
    return torch.cat([network.features(theta, images[part], buffers, training=False) for part in rows.split(BATCH)])


def rows_of(ctx: Context, label: int) -> Tensor:
    """Rows of the training images of a class."""
    return (ctx.problem.train.labels == label).nonzero().flatten()


def select_random(ctx: Context, settings: Selection, start: Start | None) -> Begun:
    """IPC random images of each class."""
    return selected(ctx, settings, initial.random_rows(ctx))


RANDOM = Method(
    name="random", title="Random real images", family="selection", citation="the control of every comparison",
    settings=Selection, begin=select_random, kind=kind, needs=needs,
)  # fmt: skip
