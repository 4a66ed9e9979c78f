"""GLISTER: the images that lower the loss of validation images most, one after another.

A gain grows with the norm of an image's own gradient, so that few images are the hardest of their class: at 10 per
class of CIFAR-10, experts give their class 1 to 4 %.  A public library that published tables rest on takes the softmax
twice in its loss, whose gradient vanishes where a network is wrong and sure; here the loss is the paper's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.bounds import Positive, Whole
from potstill.data.labels import one_hot
from potstill.methods.method import Begun, Context, Experts, Method, Start
from potstill.methods.scores import last_layer
from potstill.methods.selection import Selection, at_epoch, both, kind, needs, rows_of, selected


@dataclass(frozen=True)
class Glister(Selection):
    """Images whose gradients agree with that of the validation images."""

    step: Positive = 0.1
    """η: how far the last layer moves along the mean gradient of what is selected."""
    expert: Whole = 0
    """The expert whose last layer is trained on."""


def greedy(
    errors: Tensor, h: Tensor, outputs: Tensor, h_val: Tensor, labels: Tensor, count: int, step: float
) -> Tensor:  # fmt: skip
    """Rows (count,) by greedy generalisation gain (Killamsetty et al., AAAI 2021, algorithm 1), in the last layer.

    The gain of x is ⟨∂ℓ(x)/∂(W, b), ∂L_val/∂(W, b)⟩; after each pick the layer has moved by −η times the mean gradient
    of what is selected, and the validation outputs with it.

    Args:
        errors: softmax f(x) − y of the candidates (n, K).
        h: their features (n, F).
        outputs: of the validation images (V, K).
        h_val: their features (V, F).
        labels: their classes (V,).
        count: rows to take.
        step: η.
    """
    h, h_val = (torch.cat([x, torch.ones_like(x[:, :1])], 1) for x in (h, h_val))  # the bias is one more feature
    truth, moved = one_hot(labels, outputs.shape[1]), torch.zeros(errors.shape[1], h.shape[1]).to(h)
    left, rows = torch.ones(len(errors), dtype=torch.bool, device=h.device), []
    for taken in range(count):
        now = outputs - step / max(taken, 1) * h_val @ moved.T
        gradient = (now.softmax(1) - truth).T @ h_val / len(h_val)  # (K, F + 1)
        gain = ((errors @ gradient) * h).sum(1)
        row = int(gain.masked_fill(~left, -torch.inf).argmax())
        rows.append(row)
        left[row] = False
        moved += errors[row, :, None] * h[row]
    return torch.tensor(rows, device=h.device)


def select(ctx: Context, settings: Glister, start: Start | None) -> Begun:
    """IPC images of each class that serve its validation images best."""
    val, split, rows = ctx.problem.val, ctx.problem.train, []
    for label in range(ctx.classes):
        own, seen = rows_of(ctx, label), (val.labels == label).nonzero().flatten()
        asked = (val.images[seen], val.labels[seen]) if len(seen) else (split.images[own], split.labels[own])
        errors, h = last_layer(ctx, split.images[own], split.labels[own], settings.expert)
        errors_val, h_val = last_layer(ctx, *asked, settings.expert)
        outputs = (errors_val + one_hot(asked[1], ctx.classes)).clamp_min(1e-12).log()  # up to a constant
        rows.append(own[greedy(errors, h, outputs, h_val, asked[1], ctx.ipc, settings.step)])
    return selected(ctx, settings, torch.cat(rows))


def _needs(settings: Glister) -> Experts:
    return both(at_epoch(None), needs(settings))


GLISTER = Method(
    name="glister", title="GLISTER", family="selection", reads="features",
    citation='Killamsetty et al., "GLISTER: Generalization based Data Subset Selection for Efficient and Robust '
    'Learning", AAAI 2021', settings=Glister, begin=select, kind=kind, needs=_needs,
)  # fmt: skip
