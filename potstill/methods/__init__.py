"""The methods, each a pair of functions in one literal dict: how the set begins, and what one iteration's loss is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from potstill.config import Config
from potstill.methods import trajectory
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories

Start = Callable[[Config, Problem, Trajectories], tuple[Tensor, Tensor, Tensor]]
"""→ images (n, C, H, W) whitened, logits (n, K), labels (n,)"""
Loss = Callable[..., tuple[Tensor, dict[str, Any]]]
"""(config, problem, trajectories, derivatives, images, logits, step_size, iteration) → differentiable loss, metrics"""


@dataclass(frozen=True)
class Method:
    """What distinguishes one method from another; everything else is the outer loop's."""

    start: Start
    loss: Loss


METHODS: dict[str, Method] = {"datm": Method(trajectory.start, trajectory.matching_loss)}
