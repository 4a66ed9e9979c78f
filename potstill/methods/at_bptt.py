"""AT-BPTT: the place and the length of the differentiated window follow from how steep training is where.

"Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation", NeurIPS 2025, in the form of its successor
AT-BPTT++ without the low-rank Hessian step (``at_bptt_plus.py``), whose differentiated steps are not those of training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill.adjoint.inner import Inner, Moments
from potstill.adjoint.unroll import InnerStep, unroll, unroll_with_moments
from potstill.bounds import Count, Fraction, Positive, Whole
from potstill.data import augment
from potstill.data.augment import Operation
from potstill.errors import PotstillError
from potstill.methods import bptt
from potstill.methods.bptt import RatBptt
from potstill.methods.method import (
    Begun,
    Context,
    Memory,
    Method,
    Outcome,
    Probe,
    Start,
    Variables,
    below,
    nothing,
    shown,
)
from potstill.methods.outer import Rule
from potstill.methods.trajectory import draw_steps
from potstill.networks.losses import loss_for

KEPT = 8  # states of a student's whole training that are kept
POLICY, RANGE = "policy", "range"  # π_ref (T,); least and largest mean gradient norm so far


@dataclass(frozen=True)
class Window:
    """The steps of a student that will be differentiated, before they are taken."""

    theta: Tensor  # (P,) before the first of them
    images: Tensor  # (n, C, H, W) of the set, and below: constants here
    targets: Tensor  # (n, K)
    steps: list[InnerStep]
    norms: Tensor  # (T,) of the gradient at each step of the whole training
    end: int  # the last of them, counted from 0 in the whole training
    iteration: int  # the outer one


@dataclass(frozen=True)
class AtBptt(RatBptt):
    """Automatic truncated backpropagation through time."""

    unroll: Count = 32
    window: Count = 16
    radius: Whole = 8
    """The window's length varies by so many steps (R)."""
    temperature: Positive = 1.0
    """λ: how far the policy leaves what it was, where gradients speak for it."""
    memory_rate: Fraction = 0.05
    """ρ: how fast what the policy was follows what it is."""
    project: bool = True
    """Bring each slot back to its norm of 1 after every step, where the set began with noise."""


def check(settings: AtBptt, method: str, augmented: tuple[Operation, ...]) -> None:
    """Refuse settings that contradict each other.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    bptt.check(settings, method, augmented)
    if not settings.augment_window:
        raise PotstillError(f"augment_window False: is not of {method}; leave it out, or take rat-bptt.")
    if settings.pool or settings.place != "random":
        raise PotstillError(
            f"pool {settings.pool}, place {settings.place}: the policy places the window of a fresh student; leave "
            f"--{method}.pool and --{method}.place out."
        )
    if settings.radius >= settings.window:
        raise PotstillError(
            f"radius {settings.radius}: leaves no step of the window of {settings.window}; lower --{method}.radius."
        )


def learns(settings: AtBptt) -> dict[str, Rule]:
    """As RaT-BPTT, with images of a fixed norm."""
    rules = bptt.learns(settings)
    if settings.project and settings.initial == "noise":
        rules["images"] = replace(rules["images"], norm=1.0)
    return rules


def begin(ctx: Context, settings: AtBptt, start: Start | None) -> Begun:
    """As RaT-BPTT; the policy knows nothing yet."""
    begun = bptt.begin(ctx, settings, start)
    even = torch.full((settings.unroll,), 1 / settings.unroll)
    return replace(begun, memory={POLICY: even, RANGE: torch.tensor([math.inf, -math.inf])})


def plainly(ctx: Context, settings: AtBptt, memory: Memory, window: Window) -> tuple[Inner, Memory]:
    """The optimiser of the window's steps: the students' own, which remembers nothing."""
    return bptt.optimiser(settings), {}


def real_loss(
    ctx: Context, settings: AtBptt, variables: Variables, memory: Memory, labels: Tensor, iteration: int,
    optimiser: Callable[[Context, Any, Memory, Window], tuple[Inner, Memory]] = plainly,
) -> Outcome:  # fmt: skip
    """Cross-entropy of real images where the window ends, which the policy has drawn, as a fraction of log K.

    Several processes take the same steps and share the real images.

    Args:
        ctx: and the others up to ``iteration`` as of every method's loss.
        settings: of this method or of AT-BPTT++.
        variables: the set.
        memory: of the iterations before.
        labels: (n,).
        iteration: counted from 0.
        optimiser: that of the window's steps, and what is to be remembered of it.
    """
    draws = ctx.draws("student", iteration)
    theta, step_size = bptt.beginning(ctx, settings, iteration), bptt.step_size_of(ctx, settings, variables)
    images, targets = shown(variables, labels, ctx.classes, settings.pictures)
    steps = draw_steps(ctx, settings.batch_size, settings.unroll, len(images), draws)
    norms, kept = trained(ctx, settings, theta, images.detach(), targets.detach(), step_size.detach(), steps)
    if ctx.total(float(not norms.isfinite().all())):  # the last step led astray: the loop undoes it
        return Outcome(nothing(variables) + torch.nan, memory)
    policy, remembered = policy_of(settings, memory, norms)
    end = int(torch.multinomial(policy, 1, generator=draws))
    length = length_of(settings, norms, end)
    first = end + 1 - length
    nearest = max(number for number in kept if number <= first)  # the last state that is kept before the window
    before, differentiated = steps[nearest:first], steps[first : end + 1]
    batch_loss, how = loss_for(ctx.problem.network, bptt.kind(settings)), _how(ctx)
    with torch.no_grad():
        theta, moments = kept[nearest]
        theta, moments = unroll_with_moments(
            theta, images, targets, step_size, before, batch_loss, inner=bptt.optimiser(settings), moments=moments,
            **how,
        )  # fmt: skip
    window = Window(theta, images.detach(), targets.detach(), differentiated, norms, end, iteration)
    inner, further = optimiser(ctx, settings, memory, window)
    theta = unroll(
        theta, images, targets, step_size, differentiated, batch_loss, inner=inner, moments=moments, **how
    )  # fmt: skip
    real, truth = bptt.real_batch(ctx, settings, draws)
    loss = bptt.mean_loss(ctx, theta, real, truth) / math.log(ctx.classes)
    accept = below(ctx.total(float(loss.detach())), settings.threshold)
    return Outcome(loss, remembered | further, {"end": end + 1, "length": length}, accept)


def _how(ctx: Context) -> dict[str, Any]:
    """How the student's loss is differentiated."""
    return {"derivatives": ctx.derivatives, "micro_batch": ctx.micro_batch}


@torch.no_grad()
def trained(
    ctx: Context, settings: AtBptt, theta: Tensor, images: Tensor, targets: Tensor, step_size: Tensor,
    steps: list[InnerStep],
) -> tuple[Tensor, dict[int, tuple[Tensor, Moments]]]:  # fmt: skip
    """‖∇θ ℓ‖ (T,) of each step of a whole training without a graph, and its states before some of the steps.

    At most KEPT states, evenly: a window's start is then few steps away.
    """
    inner, every = bptt.optimiser(settings), -(-len(steps) // KEPT)
    moments, found, kept = inner.initial_moments(theta), [], {}
    for number, step in enumerate(steps):
        if number % every == 0:
            kept[number] = (theta, moments)
        batch = augment.apply(images[step.rows], step.drawing)
        gradient, _ = ctx.derivatives.gradient(theta, batch, targets[step.rows])
        found.append(float(gradient.norm()) / len(batch))
        theta, moments = inner.step(theta, gradient, len(batch), moments, step_size)
    return torch.tensor(found), kept


def policy_of(settings: AtBptt, memory: Memory, norms: Tensor) -> tuple[Tensor, Memory]:
    """π over the steps at which a window ends, and the memory after it.

    π = softmax(log π_ref + β G̃ / λ), G̃ the standardised norms; β falls from 1 to −1 as the mean norm falls through its
    range so far: at first steep steps are sought, later flat ones.  π_ref ← (1 − ρ) π_ref + ρ π.
    """
    mean, before, (least, most) = norms.mean(), memory[POLICY].cpu(), memory[RANGE].cpu()
    low, high = torch.minimum(least, mean), torch.maximum(most, mean)
    beta = 2 * (mean - low) / (high - low) - 1 if high > low else torch.tensor(1.0)
    policy = (before.log() + beta * standardised(norms) / settings.temperature).softmax(0)
    reference = (1 - settings.memory_rate) * before + settings.memory_rate * policy
    return policy, {POLICY: reference, RANGE: torch.stack([low, high])}


def length_of(settings: AtBptt, norms: Tensor, end: int) -> int:
    """W − R + 2 R σ(Ṽ), rounded, Ṽ the standardised change of the norm at the step; at most the steps there are."""
    at = float(standardised(changes(norms))[end].sigmoid())
    return max(1, min(round(settings.window - settings.radius + 2 * settings.radius * at), end + 1))


def changes(norms: Tensor) -> Tensor:
    """By how much each of the norms (T,) differs from that of the step before; 0 for the first."""
    return torch.cat([torch.zeros(1), (norms[1:] - norms[:-1]).abs()])


def standardised(values: Tensor) -> Tensor:
    """Values of mean 0 and deviation 1; zeros where all are alike."""
    return (values - values.mean()) / values.std().nan_to_num(0.0).clamp_min(1e-8)


def probe(settings: AtBptt) -> Probe:
    """A few iterations as they are, with rates that are none: their windows differ in place and length."""
    rates: dict[str, Any] = {name: getattr(settings, name) or 0.0 for name in bptt.MEASURED}
    kept = 3 * min(KEPT, settings.unroll)  # weights and two moments of each state
    held = settings.window + settings.radius + 2 + kept
    return Probe(replace(settings, **rates), 1.0, held, timed=range(5))


def cell(unroll: int, window: int, radius: int, lr: float, batch: int, **more: Any) -> dict[str, Any]:
    """A published cell, of this method or of AT-BPTT++."""
    return {
        "iterations": 100_000, "unroll": unroll, "window": window, "radius": radius, "lr_images": lr, "lr_labels": lr,
        "batch_size": batch, "transform": "zca-image", "network": {"depth": 3}, "augment": ("flip", "rotate"), **more,
    }  # fmt: skip


def for_digits(iterations: int) -> dict[tuple[str, int], dict[str, Any]]:
    """What suits the embedded digits, chosen on validation images.

    A policy that follows itself settles on the first step, which is a little steeper than the others there, and is
    never left: so it follows the gradients alone, and less sharply.
    """
    own = {**bptt.IN_MINUTES, "iterations": iterations, "temperature": 3.0, "memory_rate": 0.0}
    cells: dict[int, dict[str, Any]] = {
        1: {"inner_step_size": 1e-3},
        10: {"inner_step_size": 0.01, "initial": "random"},  # within these iterations noise does not get as far
    }
    return {("digits", ipc): {**own, **cell} for ipc, cell in cells.items()}


AT_BPTT = Method(
    name="at-bptt", title="Automatic truncated backpropagation through time", family="backpropagation",
    citation='"Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation", NeurIPS 2025',
    settings=AtBptt, begin=begin, loss=real_loss, learns=learns, needs=bptt.needs, inner=bptt.inner, kind=bptt.kind,
    check=check, loss_label="loss of real images (1: guessing)",
    metrics={"end": "last step of the window", "length": "its length"},
    measured=bptt.MEASURED, measure=bptt.measure_with(real_loss, learns), probe=probe,
    refining={"project": False}, tuned=for_digits(600),
    published={("cifar10", 10): cell(32, 16, 8, 1e-3, 100), ("cifar100", 10): cell(300, 100, 30, 1e-3, 100)},
)  # fmt: skip
