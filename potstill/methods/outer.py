"""Rules of the outer loop: how one named variable of a set moves along its gradient.

SGD with momentum, Adam, AdaBelief and LAMB, with what the methods of the literature add: a variable that stays
positive, one that is clamped from below, ascent, a norm clip against the gradient's own moving average, a moving
average of the variable.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Moments = dict[str, Tensor]
"""What a rule remembers of one variable between two iterations."""

NORM_DECAY = 0.9  # of the moving average that a clip is measured by (RaT-BPTT's)
EPSILON = 1e-8  # Adam's
BELIEF_EPSILON = 1e-16  # AdaBelief's, added to the second moment at each step
REACH = 0.4  # of the iterations: how far back FTD's published average reaches, 2000 of 5000


@dataclass(frozen=True)
class Rule:
    """How the outer loop moves one variable x along its gradient g.

    Example:
        >>> learns = {"images": Rule(lr=100.0, momentum=0.5), "step_size": Rule(lr=1e-5, momentum=0.5, positive=True)}
    """

    lr: float
    kind: Literal["sgd", "adam", "adabelief", "lamb"] = "sgd"
    momentum: float = 0.0  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam, AdaBelief and LAMB
    positive: bool = False  # a scalar moves by the factor exp(−lr · v / x): to first order the same step, and never ≤ 0
    minimum: float | None = None  # clamped from below after each step
    norm: float | None = None  # of each item (n, ...), to which it is brought back after each step
    ascend: bool = False  # climbs, where a method plays one variable against another
    cooldown: float = 0.0  # the last fraction of the iterations, over which the rate falls linearly, never quite to 0
    clip: float | None = None  # the gradient's norm is cut to this many times its moving average
    average: float | None = None  # decay of a moving average of x, which then is the result


def initial(rule: Rule, x: Tensor) -> Moments:
    """The moments of a variable before its first step."""
    if rule.kind != "sgd":
        moments = {"first": torch.zeros_like(x), "second": torch.zeros_like(x), "steps": torch.zeros(())}
    else:
        moments = {"velocity": torch.zeros_like(x)}
    if rule.clip is not None:
        moments["norm"] = torch.full((), -1.0)  # none seen yet
    if rule.average is not None:
        moments["average"] = x.clone()
    return moments


def lr_scale(rule: Rule, iteration: int, iterations: int) -> float:
    """What is left of the rate: 1, then falling linearly over the cooldown."""
    last = rule.cooldown * iterations
    return min(1.0, (iterations - iteration) / last) if last > 0 else 1.0


def decay(wanted: float, iterations: int) -> float:
    """The decay of a moving average in a run of so many iterations: one that reaches back over REACH of them at most.

    With the decay of a long run the average of a short one would be what it began with.

    Example:
        >>> decay(0.9995, 5000), decay(0.9995, 100)
        (0.9995, 0.975)
    """
    return min(wanted, max(0.0, 1 - 1 / (REACH * iterations)))


def step(rule: Rule, x: Tensor, moments: Moments, gradient: Tensor, scale: float = 1.0) -> tuple[Tensor, Moments]:
    """The variable and its moments after one step; ``scale`` multiplies the rate."""
    moments = dict(moments)
    if rule.clip is not None:
        gradient = _clipped(rule.clip, gradient, moments)
    if rule.ascend:
        gradient = -gradient
    if rule.kind != "sgd":
        direction = _adam(rule, gradient, moments)
        if rule.kind == "lamb":  # a step of the variable's own size (You et al., ICLR 2020)
            direction = direction * (x.norm() / direction.norm().clamp_min(EPSILON))
    else:
        direction = moments["velocity"] = rule.momentum * moments["velocity"] + gradient
    if rule.positive:
        moved = x * (-scale * rule.lr * direction / x).clamp(-math.log(2), math.log(2)).exp()
    else:
        moved = x - scale * rule.lr * direction
    if rule.minimum is not None:
        moved = moved.clamp_min(rule.minimum)
    moved = _of_norm(rule, moved)
    if rule.average is not None:
        moments["average"] = _of_norm(rule, rule.average * moments["average"] + (1 - rule.average) * moved)
    return moved, moments


def _of_norm(rule: Rule, x: Tensor) -> Tensor:
    """Each item (n, ...) brought back to the rule's norm, where it has one."""
    if rule.norm is None:
        return x
    sizes = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    return x * (rule.norm / sizes.clamp_min(EPSILON))


def _clipped(clip: float, gradient: Tensor, moments: Moments) -> Tensor:
    """The gradient, its norm at most ``clip`` times the moving average, which has taken this norm in already."""
    norm = gradient.norm().cpu()
    known = moments["norm"]
    moments["norm"] = norm if float(known) < 0 else NORM_DECAY * known + (1 - NORM_DECAY) * norm
    most = clip * float(moments["norm"])
    return gradient * (most / float(norm)) if float(norm) > most else gradient


def _adam(rule: Rule, gradient: Tensor, moments: Moments) -> Tensor:
    """m̂ / (√v̂ + ε), v of the gradient's squares; AdaBelief's are of its distance to m (Zhuang et al., NeurIPS 2020)."""
    first, second = rule.betas
    moments["steps"] = moments["steps"] + 1
    moments["first"] = first * moments["first"] + (1 - first) * gradient
    squares, epsilon = gradient.square(), EPSILON
    if rule.kind == "adabelief":
        squares, epsilon = (gradient - moments["first"]).square() + BELIEF_EPSILON / (1 - second), BELIEF_EPSILON
    moments["second"] = second * moments["second"] + (1 - second) * squares
    steps = float(moments["steps"])
    unbiased = moments["first"] / (1 - first**steps)
    return unbiased / ((moments["second"] / (1 - second**steps)).sqrt() + epsilon)


def result(rule: Rule, x: Tensor, moments: Moments) -> Tensor:
    """The variable as the method's result: its moving average where the rule keeps one."""
    return moments["average"] if rule.average is not None else x


def undo(rule: Rule, x: Tensor, moments: Moments) -> Moments:
    """The moments of a variable whose last step was undone: without the direction that led astray."""
    kept = {name: moment for name, moment in moments.items() if name in ("norm", "average")}
    return {**initial(rule, x), **kept}
