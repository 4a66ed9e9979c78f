"""★ The inner loop and its adjoints: the one hot spot of the package.

A student starts at θ₀ and takes N steps on batches of the synthetic set,

    gᵢ = ∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ),    θᵢ₊₁ = θᵢ − α gᵢ.

Its gradient needs no unrolled graph.  With λ_N = ∂L/∂θ_N and, from i = N−1 down to 0,

    sᵢ = ⟨∇θ ℓ(θᵢ; aug(xᵢ; ωᵢ), zᵢ), λᵢ₊₁⟩
    ∂L/∂α −= sᵢ     ∂L/∂xᵢ −= α ∂sᵢ/∂xᵢ     ∂L/∂zᵢ −= α ∂sᵢ/∂zᵢ     λᵢ = λᵢ₊₁ − α ∂sᵢ/∂θᵢ

so what is kept is N + 1 weight vectors and the graph of one micro-batch of one step.
"""

import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from potstill import augment
from potstill.augment import Drawing
from potstill.errors import PotstillError
from potstill.functional import BatchLoss, Parameters

log = logging.getLogger(__name__)

SHAPES = 64  # that a derivative may be compiled for; the compiler's own limit, 8, is soon met by sets of many sizes

OPTIONS: dict[str, Any] = {
    "realize_reads_threshold": 2,  # keep figures of a channel; the compiler would find them again at every pixel
    "cpp.enable_floating_point_contract_flag": "fast",  # multiply and add at once
}

Adjoint = Literal["exact", "direct", "frozen", "truncated"]


@dataclass(frozen=True)
class InnerStep:
    """What one inner step was drawn to use, apart from its use: rows of the synthetic set and their augmentation."""

    rows: Tensor  # (b,) distinct
    drawing: Drawing  # of b rows


@dataclass(frozen=True)
class Derivatives:
    """The two derivatives of a batch loss ℓ that an unroll needs, in whatever way is fastest.

    ``gradient(theta, x, z)`` is ∇θ ℓ (P,).  ``directional(theta, x, z, direction)`` is s = ⟨∇θ ℓ, direction⟩ and its
    gradient in theta, x and z.  Both take an augmented micro-batch, and neither keeps a graph.
    """

    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    directional: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    compiled: bool = False


def plain(loss: BatchLoss) -> Derivatives:
    """Reverse over reverse, by autograd as it is: the fastest without a compiler (half the calls of ``torch.func``)."""

    def gradient(theta: Tensor, x: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            return torch.autograd.grad(loss(theta, x, z), theta)[0]

    def directional(
        theta: Tensor, x: Tensor, z: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (theta, x, z)]
            (gradient,) = torch.autograd.grad(loss(*inputs), inputs[0], create_graph=True)
            s = gradient @ direction
            d_theta, d_x, d_z = torch.autograd.grad(s, inputs)
            return s.detach(), d_theta, d_x, d_z

    return Derivatives(gradient, directional)


def compiled(loss: BatchLoss) -> Derivatives:
    """Reverse over forward, fused by the compiler: s is the tangent of ℓ, so no second graph of ∇θ ℓ is built.

    The stem's tangent and adjoint are written out, for forward mode would carry a tangent of the images too, all
    zero, through three convolutions.  Parameters go in and come out by name: to gather them in one vector is work the
    compiler does badly.  The first call of each batch size compiles for about half a minute; the result is cached
    between runs.
    """
    network = loss.network

    def tangent(parameters: Parameters, features: Tensor, moving: Tensor, z: Tensor, direction: Parameters) -> Tensor:
        def rest(parameters: Parameters, features: Tensor) -> Tensor:
            # the clones are fused away; without them, views of the snapshots refuse a tangent of other offset
            own = {name: parameter.clone() for name, parameter in parameters.items()}
            return loss.after_stem(own, features, z)

        return torch.func.jvp(rest, (parameters, features), (direction, moving))[1]

    def both(parameters: Parameters, x: Tensor, z: Tensor, direction: Parameters) -> tuple[Any, Tensor]:
        features, moving = network.stem(parameters, x), network.stem(direction, x)
        at_rest = torch.func.grad_and_value(tangent, argnums=(0, 1, 2, 3))
        (d_parameters, d_features, d_moving, d_z), s = at_rest(parameters, features, moving, z, direction)
        (d_stem,) = torch.func.vjp(lambda p: network.stem(p, x), parameters)[1](d_features)
        d_parameters = {name: d_parameters[name] + d_stem[name] for name in d_parameters}
        d_x = network.stem_adjoint(parameters, d_features, x) + network.stem_adjoint(direction, d_moving, x)
        return (d_parameters, d_x, d_z), s

    def slope(parameters: Parameters, x: Tensor, z: Tensor) -> Parameters:
        return torch.func.grad(lambda p: loss.after_stem(p, network.stem(p, x), z))(parameters)

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    # fullgraph: what cannot be traced whole is an error, which is told, and never a silent fall back to plain speed
    fast_slope = torch.compile(slope, dynamic=False, fullgraph=True, options=OPTIONS)
    fast_both = torch.compile(both, dynamic=False, fullgraph=True, options=OPTIONS)

    def gradient(theta: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return network.flatten(fast_slope(network.unflatten(theta), x, z))

    def directional(
        theta: Tensor, x: Tensor, z: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        (d_theta, d_x, d_z), s = fast_both(network.unflatten(theta), x, z, network.unflatten(direction))
        return s, network.flatten(d_theta), d_x, d_z

    obvious = plain(loss)
    return Derivatives(_or(gradient, obvious.gradient), _or(directional, obvious.directional), compiled=True)


def _or(fast: Callable[..., Any], obvious: Callable[..., Any]) -> Callable[..., Any]:
    """``fast`` on detached arguments, or ``obvious`` for good once compiling has failed, with a warning."""
    broken, told = False, set[torch.Size]()

    def call(*tensors: Tensor) -> Any:
        nonlocal broken
        if not broken:
            if tensors[1].shape not in told:
                told.add(tensors[1].shape)
                log.info("compiling for %d images: about half a minute, a few seconds from then on", len(tensors[1]))
            try:
                return fast(*(tensor.detach() for tensor in tensors))
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                broken = True
                reason = " ".join(str(error).split()[:40])
                warnings.warn(f"compiling failed ({reason}); running plainly, which is slower", stacklevel=2)
        return obvious(*tensors)

    return call


def unroll(
    theta: Tensor, images: Tensor, logits: Tensor, step_size: Tensor, steps: Sequence[InnerStep], loss: BatchLoss, *,
    adjoint: Adjoint = "exact", derivatives: Derivatives | None = None, micro_batch: int | None = None,
    last: int | None = None,
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
    sweep = _Sweep(steps, derivatives or plain(loss), micro_batch, start, frozen=adjoint == "frozen")
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

    def forward(self, theta: Tensor, images: Tensor, logits: Tensor, step_size: Tensor) -> Tensor:
        """All snapshots θ₀ … θ_N (N + 1, P)."""
        snapshots = theta.new_empty(len(self.steps) + 1, len(theta))
        snapshots[0] = theta
        for i, step in enumerate(self.steps):
            gradient = _sum(
                self.derivatives.gradient(snapshots[i], augment.apply(images[rows], drawing), logits[rows])
                for rows, drawing in _micro_batches(step, self.micro_batch)
            )
            torch.addcmul(snapshots[i], gradient, step_size / len(step.rows), value=-1, out=snapshots[i + 1])
        return snapshots

    def backward(
        self, snapshots: Tensor, images: Tensor, logits: Tensor, step_size: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients in theta, images, logits and step size, from ``adjoint`` = λ_N = ∂L/∂θ_N (P,)."""
        d_images, d_logits, d_step_size = (torch.zeros_like(tensor) for tensor in (images, logits, step_size))
        for i in reversed(range(self.start, len(self.steps))):
            step = self.steps[i]
            weight = step_size / len(step.rows)
            d_theta = []
            for rows, drawing in _micro_batches(step, self.micro_batch):
                with torch.enable_grad():
                    raw = images[rows].detach().requires_grad_()
                    x = augment.apply(raw, drawing)
                s, s_theta, s_x, s_z = self.derivatives.directional(snapshots[i], x, logits[rows], adjoint)
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
        snapshots = sweep.forward(theta, images, logits, step_size)
        ctx.save_for_backward(images, logits, step_size)
        ctx.snapshots, ctx.sweep = snapshots, sweep
        return snapshots[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        images, logits, step_size = ctx.saved_tensors
        return (*ctx.sweep.backward(ctx.snapshots, images, logits, step_size, adjoint), None)
