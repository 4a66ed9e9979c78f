"""Outer rates that suit any data: those at which a first step moves each variable by a set fraction of its size.

The size of a gradient depends on the data, the number of images and the part of training that is matched over orders of
magnitude; some iterations tell what it is here.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from potstill.methods.method import Begun, Context, Outcome, Settings, Variables

SAMPLES = 2  # iterations whose gradients set the rates
RELATIVE_STEP = {"images": 0.05, "logits": 0.005, "raw": 0.005, "step_size": 0.02}  # of the root mean square


def scale_free(
    ctx: Context, settings: Settings, begun: Begun, loss: Callable[..., Outcome], names: list[str]
) -> dict[str, float]:  # fmt: skip
    """A rate for each of the variables named, from the gradients of the first iterations; 0 where they are 0."""
    sizes = {name: _rms(begun.variables[name]) for name in names}
    found = [_gradients(ctx, settings, begun, loss, names, iteration) for iteration in range(SAMPLES)]
    means = {name: sum(_rms(gradients[name]) for gradients in found) / SAMPLES for name in names}
    usable = {name: mean > 0 and math.isfinite(mean) for name, mean in means.items()}
    return {name: RELATIVE_STEP[name] * sizes[name] / means[name] if usable[name] else 0.0 for name in names}


def _gradients(
    ctx: Context, settings: Settings, begun: Begun, loss: Callable[..., Outcome], names: list[str], iteration: int
) -> Variables:  # fmt: skip
    leaves = {name: x.detach().requires_grad_(name in names) for name, x in begun.variables.items()}
    outcome = loss(ctx, settings, leaves, begun.memory, begun.labels, iteration)
    gradients = torch.autograd.grad(outcome.loss, [leaves[name] for name in names])
    return dict(zip(names, gradients, strict=True))


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().mean().sqrt())
