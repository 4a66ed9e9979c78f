"""★ The inner loop and its adjoints: the one hot spot of the package.

A student starts at θ₀ and takes N steps on batches of the synthetic set,

    gᵢ = ∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ),    θᵢ₊₁ = θᵢ − α gᵢ.

Its gradient needs no unrolled graph.  With λ_N = ∂L/∂θ_N and, from i = N−1 down to 0,

    sᵢ = ⟨∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ), λᵢ₊₁⟩
    ∂L/∂α −= sᵢ     ∂L/∂xᵢ −= α ∂sᵢ/∂xᵢ     ∂L/∂zᵢ −= α ∂sᵢ/∂zᵢ     λᵢ = λᵢ₊₁ − α ∂sᵢ/∂θᵢ

so what must be kept is N + 1 weight vectors and the graph of one micro-batch of one step.  With another optimiser (see
``inner.py``) its moments are kept as well, and the sweep has a λ for each.  A fixed amount of memory
more holds what the steps found on the way out and the sweep can use on the way back.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.adjoint.chain import Residuals, bytes_of
from potstill.adjoint.derivatives import Derivatives, plain
from potstill.adjoint.inner import Inner, Moments, Sgd
from potstill.data import augment
from potstill.data.augment import Drawing
from potstill.errors import PotstillError
from potstill.networks.losses import BatchLoss

KEEP_BYTES = 2**29  # of what is kept beside the weights, whatever the steps and the batch

SGD = Sgd()
Adjoint = Literal["exact", "direct", "frozen", "truncated"]


@dataclass(frozen=True)
class InnerStep:
    """What one inner step was drawn to use, apart from its use: rows of the synthetic set and their augmentation."""

    rows: Tensor  # (b,) distinct
    drawing: Drawing  # of b rows


def unroll(
    theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss, *,
    inner: Inner = SGD, moments: Moments | None = None, adjoint: Adjoint = "exact",
    derivatives: Derivatives | None = None, micro_batch: int | None = None, last: int | None = None,
    keep: int = KEEP_BYTES,
) -> Tensor:  # fmt: skip
    """θ_N after the given steps, differentiable in theta, images, targets and step size.

    Args:
        theta: start of the student (P,).
        images: synthetic images (n, C, H, W).
        targets: their labels (n, K), of the kind that the loss takes.
        step_size: scalar tensor α > 0.
        steps: what each of the N steps draws.
        loss: summed loss of a batch; a step follows the gradient of its mean.
        inner: the student's optimiser.
        moments: its moments before the first step, which are not differentiated in; fresh ones unless given.
        adjoint: "exact", the sweep above; "direct", the graph of the whole unroll, slow and obvious; "frozen", TESLA
            (Cui et al., ICML 2023), which leaves λ at λ_N; "truncated", the sweep over the ``last`` steps alone.
        derivatives: how the loss is differentiated; :func:`plain` unless given.  Ignored by "direct".
        micro_batch: images differentiated at once; bounds memory, and leaves the result the same where the loss is a
            sum over independent images (not with batch norm).
        last: steps that "truncated" differentiates; the memory of the others is not kept.
        keep: bytes for what the steps find on the way out; makes the sweep faster, not another.

    Returns:
        θ_N (P,).  Calling ``backward`` on any function of it runs the chosen adjoint.

    Raises:
        PotstillError: ``last`` is no number of the steps, or "frozen" was asked for with another optimiser than SGD.

    Example:
        >>> theta_N = unroll(theta, images, logits, step_size, steps, label_loss(network))
        >>> ((theta_N - target) ** 2).sum().backward()
    """
    moments = inner.begin(theta.detach()) if moments is None else moments
    if adjoint == "direct":
        return unroll_graph(theta, images, targets, step_size, steps, loss, inner, moments, micro_batch)[0]
    if adjoint == "truncated" and (last is None or not 0 < last <= len(steps)):
        raise PotstillError(f"adjoint 'truncated' differentiates the last 1 to {len(steps)} steps; got last={last}.")
    if adjoint == "frozen" and inner.keeps:
        raise PotstillError(f"adjoint 'frozen' is TESLA's for SGD, not for {inner}; take adjoint 'exact'.")
    start = len(steps) - last if adjoint == "truncated" and last is not None else 0
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (theta, images, targets, step_size))
    if not wanted:
        start, keep = len(steps), 0
    sweep = _Sweep(steps, derivatives or plain(loss), inner, moments, micro_batch, start, adjoint == "frozen", keep)
    return _Unroll.apply(theta, images, targets, step_size, sweep)


def unroll_graph(
    theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss,
    inner: Inner, moments: Moments, micro_batch: int | None = None,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """θ_N (P,) and the moments after it by the definition, with the graph of all N steps.

    The oracle of tests and the reference of benchmarks; arguments as in :func:`unroll`.
    """
    theta = theta if theta.requires_grad else theta.detach().requires_grad_()
    for step in steps:
        total = sum(
            loss(theta, augment.apply(images[rows], drawing), targets[rows])
            for rows, drawing in _micro_batches(step, micro_batch)
        )
        (gradient,) = torch.autograd.grad(total, theta, create_graph=True)  # type: ignore[arg-type]
        theta, moments = inner.step(theta, gradient, len(step.rows), moments, step_size)
    return theta, moments


def _micro_batches(step: InnerStep, size: int | None) -> Iterator[tuple[Tensor, Drawing]]:
    size = size or len(step.rows)
    for first in range(0, len(step.rows), size):
        part = slice(first, first + size)
        yield step.rows[part], step.drawing[part]


@dataclass
class _Tape:
    """What the reverse sweep needs of the forward one, for the steps that it reaches."""

    snapshots: list[Tensor] = field(default_factory=list)  # θ before each step
    residuals: list[list[Residuals]] = field(default_factory=list)  # of each step's micro-batches
    totals: list[Tensor] = field(default_factory=list)  # summed gradient of each step, where the optimiser keeps any
    moments: list[Moments] = field(default_factory=list)  # before each step, likewise


@dataclass(frozen=True)
class _Sweep:
    """The steps of an unroll, forwards and backwards, as two plain functions of tensors."""

    steps: Sequence[InnerStep]
    derivatives: Derivatives
    inner: Inner
    moments: Moments  # before the first step
    micro_batch: int | None
    start: int  # first step that the reverse sweep reaches
    frozen: bool
    budget: int  # bytes of residuals that may be kept for the reverse sweep

    def forward(
        self, theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor
    ) -> tuple[Tensor, _Tape]:  # fmt: skip
        """θ_N, and what the reverse sweep needs of the steps that it reaches."""
        tape, budget, moments = _Tape(), self.budget, self.moments
        for i, step in enumerate(self.steps):
            reached = i >= self.start
            gradients, residuals = [], []
            for rows, drawing in _micro_batches(step, self.micro_batch):
                x = augment.apply(images[rows], drawing)
                gradient, found = self.derivatives.gradient(theta, x, targets[rows])
                size = bytes_of(found)
                keep = reached and size <= budget
                budget -= size if keep else 0
                gradients.append(gradient)
                residuals.append(found if keep else ())
            total = _sum(gradients)
            if reached:
                tape.snapshots.append(theta)
                tape.residuals.append(residuals)
            if reached and self.inner.keeps:
                tape.totals.append(total)
                tape.moments.append(moments)
            theta, moments = self.inner.step(theta, total, len(step.rows), moments, step_size)
        return theta, tape

    def backward(
        self, tape: _Tape, images: Tensor, targets: Tensor, step_size: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients in theta, images, targets and step size, from ``adjoint`` = λ_N = ∂L/∂θ_N (P,)."""
        d_images, d_targets, d_step_size = (torch.zeros_like(tensor) for tensor in (images, targets, step_size))
        adjoints = tuple(torch.zeros_like(adjoint) for _ in self.moments[:-1])  # but for Adam's count
        for k in reversed(range(len(self.steps) - self.start)):
            step, theta = self.steps[self.start + k], tape.snapshots[k]
            kept = (tape.totals[k], len(step.rows), tape.moments[k]) if self.inner.keeps else (adjoint, len(step.rows), ())
            back = self.inner.back(adjoint, adjoints, *kept, step_size)
            adjoints = back.moments
            d_theta = []
            residuals, tape.residuals[k] = tape.residuals[k], [()] * len(tape.residuals[k])  # let go, whoever holds it
            for (rows, drawing), found in zip(_micro_batches(step, self.micro_batch), residuals, strict=True):
                with torch.enable_grad():
                    raw = images[rows].detach().requires_grad_()
                    x = augment.apply(raw, drawing)
                s, s_theta, s_x, s_z = self.derivatives.directional(theta, x, targets[rows], back.direction, found)
                (s_raw,) = torch.autograd.grad(x, raw, s_x) if x is not raw else (s_x,)
                if back.step_size is None:
                    d_step_size -= s / len(step.rows)
                d_images.index_add_(0, rows, s_raw * -back.weight)
                d_targets.index_add_(0, rows, s_z * -back.weight)
                d_theta.append(s_theta)
            if back.step_size is not None:
                d_step_size += back.step_size
            if not self.frozen:  # TESLA is this sweep with its last assignment left out
                adjoint = torch.addcmul(adjoint, _sum(d_theta), back.weight, value=-1)
        return adjoint, d_images, d_targets, d_step_size


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Their sum; a single one as it is, for to copy weights takes a noticeable part of a small step."""
    return functools.reduce(torch.add, parts)


class _Unroll(torch.autograd.Function):
    """Hangs a sweep into autograd: snapshots forward, adjoint backward."""

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, sweep: _Sweep
    ) -> Tensor:  # fmt: skip
        end, tape = sweep.forward(theta, images, targets, step_size)
        ctx.save_for_backward(images, targets, step_size)
        ctx.tape, ctx.sweep = tape, sweep
        return end if sweep.steps else end.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        images, targets, step_size = ctx.saved_tensors
        return (*ctx.sweep.backward(ctx.tape, images, targets, step_size, adjoint), None)
