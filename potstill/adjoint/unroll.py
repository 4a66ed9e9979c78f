"""★ The inner loop and its adjoints: the one hot spot of the package.

A student starts at θ₀ and takes N steps on batches of the synthetic set,

    gᵢ = ∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ),    θᵢ₊₁ = θᵢ − α gᵢ.

Its gradient needs no unrolled graph.  With λ_N = ∂L/∂θ_N and, from i = N−1 down to 0,

    sᵢ = ⟨∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ), λᵢ₊₁⟩
    ∂L/∂α −= sᵢ     ∂L/∂xᵢ −= α ∂sᵢ/∂xᵢ     ∂L/∂zᵢ −= α ∂sᵢ/∂zᵢ     λᵢ = λᵢ₊₁ − α ∂sᵢ/∂θᵢ

so what must be kept is N + 1 weight vectors and the graph of one micro-batch of one step.  A fixed amount of memory
more holds what the steps found on the way out and the sweep can use on the way back.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.adjoint.chain import Kept, bytes_of
from potstill.adjoint.derivatives import Derivatives, plain
from potstill.data import augment
from potstill.data.augment import Drawing
from potstill.errors import PotstillError
from potstill.networks.losses import BatchLoss

KEEP_BYTES = 2**29  # of what is kept beside the weights, whatever the steps and the batch

Adjoint = Literal["exact", "direct", "frozen", "truncated"]


@dataclass(frozen=True)
class InnerStep:
    """What one inner step was drawn to use, apart from its use: rows of the synthetic set and their augmentation."""

    rows: Tensor  # (b,) distinct
    drawing: Drawing  # of b rows


def unroll(
    theta: Tensor, images: Tensor, logits: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss, *,
    adjoint: Adjoint = "exact", derivatives: Derivatives | None = None, micro_batch: int | None = None,
    last: int | None = None, keep: int = KEEP_BYTES,
) -> Tensor:  # fmt: skip
    """θ_N after the given steps, differentiable in theta, images, logits and step size.

    Args:
        theta: start of the student (P,).
        images: synthetic images (n, C, H, W).
        logits: their label logits (n, K).
        step_size: scalar tensor α > 0.
        steps: what each of the N steps draws.
        loss: summed loss of a batch; a step follows the gradient of its mean.
        adjoint: "exact", the sweep above; "direct", the graph of the whole unroll, slow and obvious; "frozen", TESLA
            (Cui et al., ICML 2023), which leaves λ at λ_N; "truncated", the sweep over the ``last`` steps alone.
        derivatives: how the loss is differentiated; :func:`plain` unless given.  Ignored by "direct".
        micro_batch: images differentiated at once; bounds memory, and leaves the result the same where the loss is a
            sum over independent images (not with batch norm).
        last: steps that "truncated" differentiates.
        keep: bytes for what the steps find on the way out; makes the sweep faster, not another.

    Returns:
        θ_N (P,).  Calling ``backward`` on any function of it runs the chosen adjoint.

    Example:
        >>> theta_N = unroll(theta, images, logits, step_size, steps, label_loss(network))
        >>> ((theta_N - target) ** 2).sum().backward()
    """
    if adjoint == "direct":
        return _direct(theta, images, logits, step_size, steps, loss, micro_batch)
    if adjoint == "truncated" and (last is None or not 0 < last <= len(steps)):
        raise PotstillError(f"adjoint 'truncated' differentiates the last 1 to {len(steps)} steps; got last={last}.")
    start = len(steps) - last if adjoint == "truncated" and last is not None else 0
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (theta, images, logits, step_size))
    sweep = _Sweep(steps, derivatives or plain(loss), micro_batch, start, adjoint == "frozen", keep if wanted else 0)
    return _Unroll.apply(theta, images, logits, step_size, sweep)


def _direct(
    theta: Tensor, images: Tensor, logits: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss,
    micro_batch: int | None,
) -> Tensor:  # fmt: skip
    """The definition, with the graph of all N steps: the oracle of tests and the reference of benchmarks."""
    theta = theta if theta.requires_grad else theta.detach().requires_grad_()
    for step in steps:
        mean = sum(
            loss(theta, augment.apply(images[rows], drawing), logits[rows]) / len(step.rows)
            for rows, drawing in _micro_batches(step, micro_batch)
        )
        (gradient,) = torch.autograd.grad(mean, theta, create_graph=True)  # type: ignore[arg-type]
        theta = theta - step_size * gradient
    return theta


def _micro_batches(step: InnerStep, size: int | None) -> Iterator[tuple[Tensor, Drawing]]:
    size = size or len(step.rows)
    for first in range(0, len(step.rows), size):
        part = slice(first, first + size)
        yield step.rows[part], step.drawing[part]


@dataclass(frozen=True)
class _Sweep:
    """The steps of an unroll, forwards and backwards, as two plain functions of tensors."""

    steps: Sequence[InnerStep]
    derivatives: Derivatives
    micro_batch: int | None
    start: int  # first step that the reverse sweep reaches
    frozen: bool
    room: int  # bytes that may be kept for the reverse sweep

    def forward(
        self, theta: Tensor, images: Tensor, logits: Tensor, step_size: Tensor
    ) -> tuple[Tensor, list[list[Kept]]]:  # fmt: skip
        """All snapshots θ₀ … θ_N (N + 1, P), and of each step's micro-batches what there is room for."""
        snapshots = theta.new_empty(len(self.steps) + 1, len(theta))
        snapshots[0] = theta
        room = self.room
        all_kept = []
        for i, step in enumerate(self.steps):
            gradients, kept = [], []
            for rows, drawing in _micro_batches(step, self.micro_batch):
                x = augment.apply(images[rows], drawing)
                gradient, found = self.derivatives.gradient(snapshots[i], x, logits[rows])
                size = bytes_of(found)
                keep = i >= self.start and size <= room
                room -= size if keep else 0
                gradients.append(gradient)
                kept.append(found if keep else ())
            torch.addcmul(snapshots[i], _sum(gradients), step_size / len(step.rows), value=-1, out=snapshots[i + 1])
            all_kept.append(kept)
        return snapshots, all_kept

    def backward(
        self, snapshots: Tensor, all_kept: list[list[Kept]], images: Tensor, logits: Tensor, step_size: Tensor,
        adjoint: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients in theta, images, logits and step size, from ``adjoint`` = λ_N = ∂L/∂θ_N (P,)."""
        d_images, d_logits, d_step_size = (torch.zeros_like(tensor) for tensor in (images, logits, step_size))
        for i in reversed(range(self.start, len(self.steps))):
            step = self.steps[i]
            weight = step_size / len(step.rows)
            d_theta = []
            kept_here, all_kept[i] = all_kept[i], [()] * len(all_kept[i])  # let go, whoever holds the graph
            for (rows, drawing), kept in zip(_micro_batches(step, self.micro_batch), kept_here, strict=True):
                with torch.enable_grad():
                    raw = images[rows].detach().requires_grad_()
                    x = augment.apply(raw, drawing)
                s, s_theta, s_x, s_z = self.derivatives.directional(snapshots[i], x, logits[rows], adjoint, kept)
                (s_raw,) = torch.autograd.grad(x, raw, s_x) if x is not raw else (s_x,)
                d_step_size -= s / len(step.rows)
                d_images.index_add_(0, rows, s_raw * -weight)
                d_logits.index_add_(0, rows, s_z * -weight)
                d_theta.append(s_theta)
            if not self.frozen:  # TESLA is this sweep with its last assignment left out
                adjoint = torch.addcmul(adjoint, _sum(d_theta), weight, value=-1)
        return adjoint, d_images, d_logits, d_step_size


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Their sum; a single one as it is, for to copy weights takes a noticeable part of a small step."""
    return functools.reduce(torch.add, parts)


class _Unroll(torch.autograd.Function):
    """Hangs a sweep into autograd: snapshots forward, adjoint backward."""

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, images: Tensor, logits: Tensor, step_size: Tensor, sweep: _Sweep
    ) -> Tensor:  # fmt: skip
        snapshots, kept = sweep.forward(theta, images, logits, step_size)
        ctx.save_for_backward(images, logits, step_size)
        ctx.snapshots, ctx.kept, ctx.sweep = snapshots, kept, sweep
        return snapshots[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        images, logits, step_size = ctx.saved_tensors
        return (*ctx.sweep.backward(ctx.snapshots, ctx.kept, images, logits, step_size, adjoint), None)
