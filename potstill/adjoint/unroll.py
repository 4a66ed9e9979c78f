"""★ The inner loop and its adjoints: the one hot spot of the package.

A student starts at θ₀ and takes N steps on batches of the synthetic set,

    gᵢ = ∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ),    θᵢ₊₁ = θᵢ − α gᵢ.

Its gradient needs no unrolled graph.  With λ_N = ∂L/∂θ_N and, from i = N−1 down to 0,

    sᵢ = ⟨∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ), λᵢ₊₁⟩
    ∂L/∂α −= sᵢ     ∂L/∂xᵢ −= α ∂sᵢ/∂xᵢ     ∂L/∂zᵢ −= α ∂sᵢ/∂zᵢ     λᵢ = λᵢ₊₁ − α ∂sᵢ/∂θᵢ

so what must be kept is N + 1 weight vectors and the graph of one micro-batch of one step.  A fixed amount of memory
more holds what the steps found on the way out and the sweep can use on the way back.

Other inner optimisers (``inner.py``) put λ_g = ∂L/∂gᵢ, which the adjoint of their step gives, where SGD has −α λᵢ₊₁;
Adam's needs three more vectors a step: the gradient and both moments.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.adjoint.chain import Residuals, bytes_of
from potstill.adjoint.derivatives import Derivatives, eager
from potstill.adjoint.inner import SGD, Inner, Moments
from potstill.data import augment
from potstill.data.augment import Drawing
from potstill.errors import PotstillError
from potstill.networks.losses import BatchLoss

KEEP_BYTES = 2**29  # of residuals kept beside the weights, whatever the steps and the batch

Adjoint = Literal["exact", "direct", "frozen", "truncated"]


@dataclass(frozen=True)
class InnerStep:
    """What one inner step was drawn to use, apart from its use: rows of the synthetic set and their augmentation."""

    rows: Tensor  # (b,) distinct
    drawing: Drawing  # of b rows


def unroll(
    theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss, *,
    inner: Inner = SGD, moments: Moments | None = None, adjoint: Adjoint = "exact", last: int | None = None,
    derivatives: Derivatives | None = None, micro_batch: int | None = None, keep: int = KEEP_BYTES,
) -> Tensor:  # fmt: skip
    """θ_N after the given steps, differentiable in theta, images, targets, step size and moments.

    Args:
        theta: start of the student (P,).
        images: synthetic images (n, C, H, W).
        targets: their labels (n, K), of the kind that the loss takes.
        step_size: scalar tensor α > 0.
        steps: what each of the N steps draws.
        loss: summed loss of a batch; a step follows the gradient of its mean.
        inner: the optimiser that takes the steps.
        moments: what it carries from the steps before; those of a fresh student unless given.
        adjoint: "exact", the sweep above; "direct", the graph of the whole unroll, slow and obvious; "frozen", TESLA
            (Cui et al., ICML 2023), which takes every gᵢ as a function of images and targets alone, so that λ stays at
            λ_N; "truncated", the exact sweep over the ``last`` steps alone, which takes what the steps before them
            reached as a constant, and needs memory for the ``last`` steps only.
        last: steps that "truncated" differentiates.
        derivatives: how the loss is differentiated; :func:`plain` unless given.  Ignored by "direct".
        micro_batch: images differentiated at once; bounds memory, and leaves the result the same where the loss is a
            sum over independent images (not with batch norm).
        keep: bytes for what the steps find on the way out; makes the sweep faster, not another.

    Returns:
        θ_N (P,).  Calling ``backward`` on any function of it runs the chosen adjoint.  Where no gradient can follow,
        nothing is kept, and memory does not grow with N.

    Raises:
        PotstillError: ``last`` is not among the steps, or the moments are not of this optimiser and network.

    Example:
        >>> theta_N = unroll(theta, images, logits, step_size, steps, label_loss(network))
        >>> ((theta_N - target) ** 2).sum().backward()
    """
    return unroll_with_moments(
        theta, images, targets, step_size, steps, loss, inner=inner, moments=moments, adjoint=adjoint, last=last,
        derivatives=derivatives, micro_batch=micro_batch, keep=keep,
    )[0]  # fmt: skip


def unroll_with_moments(
    theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss, *,
    inner: Inner = SGD, moments: Moments | None = None, adjoint: Adjoint = "exact", last: int | None = None,
    derivatives: Derivatives | None = None, micro_batch: int | None = None, keep: int = KEEP_BYTES,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """θ_N as :func:`unroll` gives it, and the moments after it, which later steps go on with; both differentiable.

    Example:
        >>> with torch.no_grad():  # RaT-BPTT: steps without a graph, then a window
        ...     theta, moments = unroll_with_moments(theta, *synthetic, before, loss, inner=Adam())
        >>> theta_N = unroll(theta, *synthetic, window, loss, inner=Adam(), moments=moments)
    """
    moments = inner.initial_moments(theta) if moments is None else moments
    if [vector.shape for vector in moments.vectors] != [theta.shape] * inner.vectors:
        shapes = [tuple(vector.shape) for vector in moments.vectors]
        raise PotstillError(
            f"moments of shapes {shapes}: {type(inner).__name__} carries {inner.vectors} of {tuple(theta.shape)}; pass "
            "those that the same optimiser returned for this network."
        )
    if adjoint == "truncated" and (last is None or not 0 < last <= len(steps)):
        raise PotstillError(f"adjoint 'truncated' differentiates the last 1 to {len(steps)} steps; got last={last}.")
    differentiable = (theta, images, targets, step_size, *moments.vectors)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    if wanted and adjoint == "direct":
        return _direct(theta, moments, images, targets, step_size, steps, loss, inner, micro_batch)
    derivatives = eager(loss) if derivatives is None or adjoint == "direct" else derivatives
    constant = len(steps) if not wanted else len(steps) - last if adjoint == "truncated" and last is not None else 0
    walked, swept = (
        _Sweep(part, derivatives, micro_batch, inner, adjoint == "frozen", room)
        for part, room in ((steps[:constant], 0), (steps[constant:], keep))
    )
    if constant:
        theta, moments = walked.end(theta, moments, images, targets, step_size)
    if not wanted:
        return theta, moments
    theta, *vectors = _Unroll.apply(theta, images, targets, step_size, swept, moments.count, *moments.vectors)
    return theta, Moments(tuple(vectors), moments.count + len(swept.steps))


def _direct(
    theta: Tensor, moments: Moments, images: Tensor, targets: Tensor, step_size: Tensor, steps: Sequence[InnerStep],
    loss: BatchLoss, inner: Inner, micro_batch: int | None,
) -> tuple[Tensor, Moments]:  # fmt: skip
    """The definition, with the graph of all N steps: the oracle of tests and the reference of benchmarks."""
    theta = theta if theta.requires_grad else theta.detach().requires_grad_()
    for step in steps:
        gradients: list[Tensor] = []
        for rows, drawing in micro_batches(step, micro_batch):
            value = loss(theta, augment.apply(images[rows], drawing), targets[rows])
            gradients.extend(torch.autograd.grad(value, theta, create_graph=True))
        theta, moments = inner.step(theta, _sum(gradients), len(step.rows), moments, step_size)
    return theta, moments


def micro_batches(step: InnerStep, size: int | None) -> Iterator[tuple[Tensor, Drawing]]:
    """Rows and augmentation of each part of a step's batch that is differentiated at once."""
    size = size or len(step.rows)
    for first in range(0, len(step.rows), size):
        part = slice(first, first + size)
        yield step.rows[part], step.drawing[part]


@dataclass
class _Taken:
    """A step that was taken, and what its adjoint needs."""

    theta: Tensor  # (P,) before the step
    gradient: Tensor | None  # of the batch's summed loss (P,), where the optimiser's adjoint needs it
    moments: Moments  # after the step
    residuals: list[Residuals]  # of each micro-batch, () where there was no room


@dataclass(frozen=True)
class _Sweep:
    """The steps of an unroll, forwards and backwards, as plain functions of tensors."""

    steps: Sequence[InnerStep]
    derivatives: Derivatives
    micro_batch: int | None
    inner: Inner
    frozen: bool
    room: int  # bytes of residuals that may be kept for the reverse sweep

    def forward(
        self, theta: Tensor, moments: Moments, images: Tensor, targets: Tensor, step_size: Tensor
    ) -> Iterator[tuple[_Taken, Tensor]]:  # fmt: skip
        """Each step as it is taken, and θ (P,) after it; what is kept is up to the caller."""
        room = self.room
        for step in self.steps:
            gradients, residuals = [], []
            for rows, drawing in micro_batches(step, self.micro_batch):
                x = augment.apply(images[rows], drawing)
                gradient, found = self.derivatives.gradient(theta, x, targets[rows])
                size = bytes_of(found)
                residuals.append(found if size <= room else ())
                room -= size if size <= room else 0
                gradients.append(gradient)
            gradient = _sum(gradients)
            after, moments = self.inner.step(theta, gradient, len(step.rows), moments, step_size)
            yield _Taken(theta, gradient if self.inner.keeps_gradient else None, moments, residuals), after
            theta = after

    @torch.no_grad()
    def end(
        self, theta: Tensor, moments: Moments, images: Tensor, targets: Tensor, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """θ and moments after all steps, none of which is kept."""
        for taken, after in self.forward(theta, moments, images, targets, step_size):
            theta, moments = after, taken.moments
        return theta, moments

    def backward(
        self, taken: Sequence[_Taken], images: Tensor, targets: Tensor, step_size: Tensor, adjoint: Tensor,
        moments: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Gradients in theta, images, targets, step size and moments.

        From ``adjoint`` = λ_N = ∂L/∂θ_N (P,), and ∂L/∂ each vector of the last moments.
        """
        d_images, d_targets, d_step_size = (torch.zeros_like(tensor) for tensor in (images, targets, step_size))
        for step, here in zip(reversed(self.steps), reversed(taken), strict=True):
            size = len(step.rows)
            through = self.inner.adjoint(adjoint, moments, here.gradient, size, here.moments, step_size)
            moments, d_theta = through.moments, []
            residuals, here.residuals = here.residuals, [()] * len(here.residuals)  # let go, whoever holds the graph
            for (rows, drawing), found in zip(micro_batches(step, self.micro_batch), residuals, strict=True):
                with torch.enable_grad():
                    raw = images[rows].detach().requires_grad_()
                    x = augment.apply(raw, drawing)
                s, s_theta, s_x, s_z = self.derivatives.directional(
                    here.theta, x, targets[rows], through.direction, found
                )
                (s_raw,) = torch.autograd.grad(x, raw, s_x) if x is not raw else (s_x,)
                if through.step_size is None:
                    d_step_size -= s / size
                d_images.index_add_(0, rows, s_raw * through.weight)
                d_targets.index_add_(0, rows, s_z * through.weight)
                d_theta.append(s_theta)
            if through.step_size is not None:
                d_step_size += through.step_size
            if not self.frozen:  # TESLA is this sweep with its last assignment left out
                adjoint = torch.addcmul(adjoint, _sum(d_theta), through.weight)
        return adjoint, d_images, d_targets, d_step_size, moments


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Their sum; a single one as it is, for to copy weights takes a noticeable part of a small step."""
    return functools.reduce(torch.add, parts)


class _Unroll(torch.autograd.Function):
    """Hangs a sweep into autograd: the steps forward, their adjoints backward."""

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor, sweep: _Sweep, count: int,
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        theta, moments = theta.clone(), Moments(vectors, count)  # the caller may write to theta before the backward
        ctx.taken, ctx.sweep = [], sweep
        for taken, after in sweep.forward(theta, moments, images, targets, step_size):
            ctx.taken.append(taken)
            theta, moments = after, taken.moments
        ctx.save_for_backward(images, targets, step_size)
        return theta, *(vector.clone() for vector in moments.vectors)  # copies, for an output must not hold itself

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor, *moments: Tensor) -> tuple[Tensor | None, ...]:
        images, targets, step_size = ctx.saved_tensors
        *found, vectors = ctx.sweep.backward(ctx.taken, images, targets, step_size, adjoint, moments)
        return (*found, None, None, *vectors)
