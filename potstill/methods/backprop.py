"""Backpropagation through training: a network trained on the synthetic set should explain real images.

RaT-BPTT: Feng et al., "Embarrassingly Simple Dataset Distillation", ICLR 2024: a student trains from scratch, and the
loss of real images is differentiated through a few of its steps, which end at a random age.
"""

from typing import Any

import torch
from torch import Tensor

from potstill import functional, seeds
from potstill.config import Config
from potstill.derivatives import Derivatives
from potstill.methods.trajectory import draw_steps
from potstill.problem import Problem
from potstill.training import one_hot
from potstill.trajectories import Trajectories
from potstill.unroll import unroll

REAL_BATCH = 500  # real images a loss


def real_loss(
    config: Config, problem: Problem, _: Trajectories, derivatives: Derivatives, images: Tensor, logits: Tensor,
    step_size: Tensor, iteration: int,
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """Cross-entropy of a batch of real images under θ_N, as a part of log K, which guessing gives; and the age N.

    The student is a fresh network; the last ``inner_steps`` of its N steps are differentiated, N uniform from that
    many to ``horizon``.  Network, age, batches and augmentations come from (seed, iteration) alone.
    """
    draws = seeds.generator(config.seed, "student", iteration)
    window = config.distil.inner_steps
    age = int(torch.randint(window, max(config.distil.horizon, window) + 1, (), generator=draws))
    shape, classes = problem.dataset.shape, len(problem.dataset.classes)
    fresh = functional.initial(
        problem.network_config, shape, classes, seeds.derive(config.seed, "student network", iteration)
    )
    theta = unroll(
        fresh.to(problem.device), images, logits, step_size, draw_steps(config, problem, len(images), draws, age),
        functional.label_loss(problem.network), adjoint="truncated", derivatives=derivatives,
        micro_batch=config.distil.micro_batch, last=window,
    )  # fmt: skip
    truth = problem.train.labels
    rows = torch.randint(len(truth), (min(REAL_BATCH, len(truth)),), generator=draws).to(problem.device)
    outputs = problem.network(theta, problem.train.images[rows])
    loss = functional.soft_cross_entropy(outputs, one_hot(truth[rows], classes)) / len(rows)
    return loss / torch.tensor(classes).log().to(loss), {"age": age}
