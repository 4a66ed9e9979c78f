"""The images that a synthetic set begins with: real ones, those that an expert solves, or noise.  Rows are of the
training split, grouped by class in the order of the classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.methods.method import Context, Start
from potstill.methods.soft_labels import expert_logits

NOISE_NORM = 1.0  # L2 norm of an image of noise (RaT-BPTT)


def rows_by_class(labels: Tensor, order: Tensor, ipc: int, classes: int) -> Tensor:
    """The first ``ipc`` rows of each class in ``order``, class after class (K · ipc,)."""
    return torch.cat([order[labels[order] == label][:ipc] for label in range(classes)])


def random_rows(ctx: Context, pictures: int = 1) -> Tensor:
    """Rows of random real images, IPC · f² of each class (n · f²,)."""
    return rows_by_class(ctx.problem.train.labels, _shuffled(ctx), ctx.ipc * pictures**2, ctx.classes)


@torch.no_grad()
def correct_rows(ctx: Context, pictures: int = 1) -> Tensor:
    """Rows of the first IPC · f² of the shuffled images of each class that expert 0 classifies correctly (n · f²,).

    At its last epoch (DATM, section 4.1).  Where a class has fewer, the images nearest to it (least loss) follow.
    """
    assert ctx.experts is not None
    labels, order = ctx.problem.train.labels, _shuffled(ctx)
    outputs = expert_logits(ctx.problem, ctx.experts, 0, ctx.problem.train.images[order])
    rank = F.cross_entropy(outputs, labels[order], reduction="none")
    rank[outputs.argmax(1) == labels[order]] = 0.0  # solved images are all alike, and stay in shuffled order
    return rows_by_class(labels, order[rank.argsort(stable=True)], ctx.ipc * pictures**2, ctx.classes)


def tiles(ctx: Context, rows: Tensor, pictures: int) -> Tensor:
    """The real images of so many rows (n, C, H, W); or f × f of them side by side in a slot, each shrunk.

    What :func:`~potstill.data.distilled.decode` takes apart again (IDC, section 3.2).
    """
    split, size = ctx.problem.train, ctx.problem.dataset.shape[1:]
    if pictures == 1:
        return split.images[rows].clone()
    h, w = (-(-side // pictures) for side in size)
    small = F.interpolate(split.images[rows], size=(h, w), mode="area")
    grid = small.view(-1, pictures, pictures, small.shape[1], h, w).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, small.shape[1], pictures * h, pictures * w)[:, :, : size[0], : size[1]].contiguous()


def images_and_labels(
    ctx: Context, how: Literal["random", "noise"], start: Start | None, pictures: int = 1, norm: float | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images (n, C, H, W) and classes (n,) of a set that is there already, of random real images, or of noise."""
    if start is not None:
        return start.images.clone(), start.labels.clone()
    images = tiles(ctx, random_rows(ctx, pictures), pictures) if how == "random" else noise(ctx, norm)
    return images, labels_in_order(ctx)


def noise(ctx: Context, norm: float | None = NOISE_NORM) -> Tensor:
    """Images (n, C, H, W) of Gaussian noise, each scaled to a norm (RaT-BPTT: 1); None: as drawn, of variance 1."""
    shape = (ctx.ipc * ctx.classes, *ctx.problem.dataset.shape)
    images = torch.randn(shape, generator=ctx.draws("noise"))
    if norm is None:
        return images.to(ctx.problem.device)
    norms = images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (norm * images / norms).to(ctx.problem.device)


def labels_in_order(ctx: Context) -> Tensor:
    """The class of each slot where slots are grouped by class (n,)."""
    return torch.arange(ctx.classes, device=ctx.problem.device).repeat_interleave(ctx.ipc)


def _shuffled(ctx: Context) -> Tensor:
    count = len(ctx.problem.train.labels)
    return torch.randperm(count, generator=ctx.draws("start")).to(ctx.problem.device)
