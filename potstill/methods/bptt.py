"""Backpropagation through training: networks trained on the synthetic set should explain real images.

RaT-BPTT (Feng et al., "Embarrassingly Simple Dataset Distillation", ICLR 2024) differentiates the loss of real images
through a few steps of a student of random age.  Here, as in FRePo's pool (Zhou et al., NeurIPS 2022), students go on
from iteration to iteration, one of a few in turn, instead of training from scratch each time: nearly all of their
steps are then differentiated ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill import seeds
from potstill.adjoint.derivatives import Derivatives
from potstill.adjoint.unroll import Adjoint, unroll
from potstill.config import Config
from potstill.methods.trajectory import draw_steps
from potstill.networks import flat
from potstill.networks.flat import FlatNetwork
from potstill.training.problem import Problem
from potstill.training.sgd import one_hot

REAL_BATCH = 500  # real images a loss
PART = 100  # of them whose graph is held at once
STUDENTS = 8


@dataclass(frozen=True)
class Students:
    """Networks that train on the synthetic set, one in turn at each iteration."""

    thetas: tuple[Tensor, ...]  # S of (P,); empty where a fresh network is due
    ages: Tensor  # (S,) int64, on the CPU: steps taken; 0 where a fresh network is due
    leads: Tensor  # (S,) int64, on the CPU: steps that this fresh network takes at least before it is differentiated

    def after(self, iteration: int, theta: Tensor, age: int) -> "Students":
        """The same, but for the one whose turn it was at ``iteration``."""
        number = iteration % STUDENTS
        ages, leads = self.ages.clone(), self.leads.clone()
        ages[number], leads[number] = age, 0
        return Students((*self.thetas[:number], theta, *self.thetas[number + 1 :]), ages, leads)

    def dismiss(self, iteration: int) -> "Students":
        """The same, but that this one makes room for a fresh network."""
        return self.after(iteration, self.thetas[0].new_empty(0), 0)


def enrol(config: Config, problem: Problem) -> Students:
    """Students yet to begin, with leads that spread their first ages over the horizon."""
    leads = torch.arange(STUDENTS) * (_horizon(config) - config.distil.inner_steps) // STUDENTS
    nobody = tuple(torch.empty(0, device=problem.device) for _ in range(STUDENTS))
    return Students(nobody, torch.zeros_like(leads), leads)


def real_loss(
    config: Config, problem: Problem, derivatives: Derivatives, images: Tensor, logits: Tensor, step_size: Tensor,
    iteration: int, students: Students,
) -> tuple[Tensor, dict[str, Any], Students]:  # fmt: skip
    """Cross-entropy of a batch of real images under θ_N, as a part of log K, which guessing gives.

    θ_N is the student whose turn it is, after ``inner_steps`` more steps, which are differentiated.  A student whose
    next steps would end beyond ``horizon`` makes room for a fresh network, which first walks its lead and fewer than
    ``inner_steps`` steps more, at random.  All draws come from (seed, iteration) alone.

    Returns:
        The loss, the age of the student, and the students of the next iteration.
    """
    draws = seeds.generator(config.seed, "student", iteration)
    number, window, horizon = iteration % STUDENTS, config.distil.inner_steps, _horizon(config)

    def walk(theta: Tensor, steps: int, adjoint: Adjoint = "exact") -> Tensor:
        return unroll(
            theta, images, logits, step_size, draw_steps(config, problem, len(images), draws, steps),
            flat.label_loss(problem.network), adjoint=adjoint, derivatives=derivatives,
            micro_batch=config.distil.micro_batch,
        )  # fmt: skip

    theta, age = students.thetas[number], int(students.ages[number])
    if age == 0:
        seed = seeds.derive(config.seed, "student network", iteration)
        theta = flat.initial(problem.network_config, problem.dataset.shape, len(problem.dataset.classes), seed)
        theta = theta.to(images)
        lead = int(students.leads[number])
        age = lead + int(torch.randint(min(window, horizon - window - lead + 1), (), generator=draws))
        with torch.no_grad():
            for first in range(0, age, window):  # in pieces, each of which holds its weights
                theta = walk(theta, min(window, age - first))
    theta, age = walk(theta, window, config.distil.adjoint), age + window
    truth = problem.train.labels
    rows = torch.randint(len(truth), (min(REAL_BATCH, len(truth)),), generator=draws).to(problem.device)
    targets = one_hot(truth[rows], len(problem.dataset.classes))
    loss = mean_loss(problem.network, theta, problem.train.images[rows], targets)
    guessing = torch.tensor(targets.shape[1]).log().to(loss)
    going = students.after(iteration, theta.detach(), age) if age + window <= horizon else students.dismiss(iteration)
    return loss / guessing, {"age": age}, going


def _horizon(config: Config) -> int:
    """Steps that a student takes at most; room for one window, where its length was found by measuring."""
    return max(config.distil.horizon, config.distil.inner_steps)


def mean_loss(network: FlatNetwork, theta: Tensor, images: Tensor, targets: Tensor, part: int = PART) -> Tensor:
    """Mean cross-entropy, once differentiable in ``theta``, of images whose graphs are held part by part only.

    With batch norm the parts are one, for it couples the images of a batch.
    """
    here = theta.detach().requires_grad_()
    value, slope = torch.zeros_like(here[0]), torch.zeros_like(here)
    size = len(images) if network.batch_coupled else part
    for x, t in zip(images.split(size), targets.split(size), strict=True):
        with torch.enable_grad():
            loss = flat.soft_cross_entropy(network(here, x), t) / len(images)
        slope += torch.autograd.grad(loss, here)[0]
        value += loss.detach()
    return value + slope @ (theta - theta.detach())
