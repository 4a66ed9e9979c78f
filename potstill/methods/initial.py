"""The images that a synthetic set begins with: real ones, those that an expert solves, or noise.  Rows are of the
training split, grouped by class in the order of the classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.methods.method import Context
from potstill.methods.soft_labels import expert_logits

NOISE_NORM = 1.0  # L2 norm of an image of noise (RaT-BPTT)


def rows_by_class(labels: Tensor, order: Tensor, ipc: int, classes: int) -> Tensor:
    """The first ``ipc`` rows of each class in ``order``, class after class (K · ipc,)."""
    return torch.cat([order[labels[order] == label][:ipc] for label in range(classes)])


def random_rows(ctx: Context) -> Tensor:
    """Rows of random real images, IPC of each class (n,)."""
    return rows_by_class(ctx.problem.train.labels, _shuffled(ctx), ctx.ipc, ctx.classes)


@torch.no_grad()
def correct_rows(ctx: Context) -> Tensor:
    """Rows of the first IPC of the shuffled images of each class that expert 0 classifies correctly (n,).

    At its last epoch (DATM, section 4.1).  Where a class has fewer, the images nearest to it (least loss) follow.
    """
    assert ctx.experts is not None
    labels, order = ctx.problem.train.labels, _shuffled(ctx)
    outputs = expert_logits(ctx.problem, ctx.experts, 0, ctx.problem.train.images[order])
    rank = F.cross_entropy(outputs, labels[order], reduction="none")
    rank[outputs.argmax(1) == labels[order]] = 0.0  # solved images are all alike, and stay in shuffled order
    return rows_by_class(labels, order[rank.argsort(stable=True)], ctx.ipc, ctx.classes)


def noise(ctx: Context) -> Tensor:
    """Images (n, C, H, W) of Gaussian noise, each scaled to norm 1 (RaT-BPTT)."""
    shape = (ctx.ipc * ctx.classes, *ctx.problem.dataset.shape)
    images = torch.randn(shape, generator=ctx.draws("noise"))
    norms = images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (NOISE_NORM * images / norms).to(ctx.problem.device)


def labels_in_order(ctx: Context) -> Tensor:
    """The class of each slot where slots are grouped by class (n,)."""
    return torch.arange(ctx.classes, device=ctx.problem.device).repeat_interleave(ctx.ipc)


def _shuffled(ctx: Context) -> Tensor:
    count = len(ctx.problem.train.labels)
    return torch.randperm(count, generator=ctx.draws("start")).to(ctx.problem.device)
