"""Backpropagation through training: networks trained on the synthetic set should explain real images.

RaT-BPTT: Feng et al., "Embarrassingly Simple Dataset Distillation", ICLR 2024: the loss of real images is
differentiated through a few steps of a student of random age.  Here students go on from iteration to iteration, one of
a few in turn, instead of training from scratch each time: their steps are then nearly all differentiated ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill import functional, seeds
from potstill.config import Config
from potstill.derivatives import Derivatives
from potstill.functional import FlatNetwork
from potstill.methods.trajectory import draw_steps
from potstill.problem import Problem
from potstill.training import one_hot
from potstill.unroll import unroll

REAL_BATCH = 500  # real images a loss
PART = 100  # of them whose graph is held at once
STUDENTS = 8


@dataclass(frozen=True)
class Students:
    """Networks that train on the synthetic set, one in turn at each iteration."""

    thetas: Tensor  # (S, P)
    ages: Tensor  # (S,) int64, on the CPU: steps taken; where not positive, a fresh network shall begin with -age steps

    def after(self, number: int, theta: Tensor, age: int) -> "Students":
        """The same, but for one of them."""
        thetas, ages = self.thetas.clone(), self.ages.clone()
        thetas[number], ages[number] = theta, age
        return Students(thetas, ages)


def enrol(config: Config, problem: Problem) -> Students:
    """Students yet to begin, whose first ages are spread over the horizon."""
    ages = torch.arange(STUDENTS) * max(config.distil.horizon - config.distil.inner_steps, 0) // STUDENTS
    return Students(torch.zeros(STUDENTS, sum(problem.network.sizes), device=problem.device), -ages)


def real_loss(
    config: Config, problem: Problem, derivatives: Derivatives, images: Tensor, logits: Tensor, step_size: Tensor,
    iteration: int, students: Students,
) -> tuple[Tensor, dict[str, Any], Students]:  # fmt: skip
    """Cross-entropy of a batch of real images under θ_N, as a part of log K, which guessing gives.

    θ_N is the student whose turn it is, ``inner_steps`` differentiated steps later.  One that would grow older than
    ``horizon`` by the next, or that diverged, makes room for a fresh network; this one first takes some steps, fewer
    than ``inner_steps``, at random.  All draws come from (seed, iteration) alone.

    Returns:
        The loss, the age of the student, and the students of the next iteration.
    """
    draws = seeds.generator(config.seed, "student", iteration)
    number, window = iteration % STUDENTS, config.distil.inner_steps

    def walk(theta: Tensor, steps: int) -> Tensor:
        return unroll(
            theta, images, logits, step_size, draw_steps(config, problem, len(images), draws, steps),
            functional.label_loss(problem.network), derivatives=derivatives, micro_batch=config.distil.micro_batch,
        )  # fmt: skip

    theta, age = students.thetas[number], int(students.ages[number])
    if age <= 0:
        seed = seeds.derive(config.seed, "student network", iteration)
        theta = functional.initial(problem.network_config, problem.dataset.shape, len(problem.dataset.classes), seed)
        theta = theta.to(students.thetas)
        age = -age + int(torch.randint(window, (), generator=draws))
        with torch.no_grad():
            for first in range(0, age, window):  # in pieces, each of which holds its weights
                theta = walk(theta, min(window, age - first))
    theta, age = walk(theta, window), age + window
    truth = problem.train.labels
    rows = torch.randint(len(truth), (min(REAL_BATCH, len(truth)),), generator=draws).to(problem.device)
    targets = one_hot(truth[rows], len(problem.dataset.classes))
    loss = mean_loss(problem.network, theta, problem.train.images[rows], targets)
    goes_on = age + window <= config.distil.horizon and bool(theta.isfinite().all())
    guessing = torch.tensor(targets.shape[1]).log().to(loss)
    return loss / guessing, {"age": age}, students.after(number, theta.detach(), age if goes_on else 0)


def mean_loss(network: FlatNetwork, theta: Tensor, images: Tensor, targets: Tensor, part: int = PART) -> Tensor:
    """Mean cross-entropy, once differentiable in ``theta``, of images whose graphs are held part by part only.

    With batch norm the parts are one, for it couples the images of a batch.
    """
    here = theta.detach().requires_grad_()
    value, slope = torch.zeros_like(here[0]), torch.zeros_like(here)
    size = len(images) if network.batch_coupled else part
    for x, t in zip(images.split(size), targets.split(size), strict=True):
        with torch.enable_grad():
            loss = functional.soft_cross_entropy(network(here, x), t) / len(images)
        slope += torch.autograd.grad(loss, here)[0]
        value += loss.detach()
    return value + slope @ (theta - theta.detach())
