"""Trajectory matching: the student's path over the synthetic set should end where the expert's did.

DATM: Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024, on
MTT (Cazenavette et al., CVPR 2022).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import seeds
from potstill.adjoint.derivatives import Derivatives
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.config import Config
from potstill.data import augment
from potstill.methods import start_epochs
from potstill.networks import flat
from potstill.training.problem import Problem
from potstill.training.sgd import one_hot
from potstill.training.trajectories import Trajectories

CERTAIN = 20.0  # the logit of a hard label, whose softmax is 1 to eight digits


def matching_loss(
    config: Config, problem: Problem, experts: Trajectories, derivatives: Derivatives, images: Tensor, logits: Tensor,
    step_size: Tensor, iteration: int,
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """L = ‖θ_N − θ*ₜ₊ₘ‖² / ‖θ*ₜ − θ*ₜ₊ₘ‖² of one drawn segment, and what was drawn.

    Expert, start epoch, batches and augmentations come from (seed, iteration) alone, so any iteration can be replayed.
    With ``mirror`` the student sees the set mirrored in half of the iterations, which is the same as following the
    expert's mirror image: one that started from mirrored weights on mirrored data.
    """
    draws = seeds.generator(config.seed, "segment", iteration)
    expert = int(torch.randint(config.expert.count, (), generator=draws))
    start = start_epochs.draw_start(config.window, iteration, draws)
    begin, end = (
        snapshot.to(problem.device) for snapshot in experts.segment(expert, start, config.distil.expert_epochs)
    )
    steps = draw_steps(config, problem, len(images), draws)
    if config.distil.mirror and bool(torch.randint(2, (), generator=draws)):
        images = images.flip(3)
    theta = unroll(
        begin, images, logits, step_size, steps, flat.label_loss(problem.network),
        adjoint=config.distil.adjoint, derivatives=derivatives, micro_batch=config.distil.micro_batch,
    )  # fmt: skip
    loss = (theta - end).square().sum() / (begin - end).square().sum()
    return loss, {"expert": expert, "start_epoch": start}


def draw_steps(
    config: Config, problem: Problem, n: int, draws: torch.Generator, count: int | None = None
) -> list[InnerStep]:
    """The N batches of a student: the set in random order, again and again, in whole batches, each augmented.

    N is ``count``, or the configured inner steps.
    """
    count = count or config.distil.inner_steps
    batch = min(config.distil.batch_size, n)
    size = problem.dataset.shape[1:]
    steps: list[InnerStep] = []
    while len(steps) < count:
        order = torch.randperm(n, generator=draws)
        for rows in order.split(batch):
            drawing = augment.draw(config.augment, len(rows), size, draws)
            steps.append(InnerStep(rows.to(problem.device), drawing.to(problem.device)))
    return steps[:count]


@torch.no_grad()
def start(config: Config, problem: Problem, experts: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """The set DATM begins with: real images that an expert solves, labelled by the experts that solve them.

    Per class the first IPC of the shuffled training images that expert 0 classifies correctly at its last epoch; where
    a class has fewer, the images nearest to being solved (least loss) follow.  Logits: the mean over those of the
    experts that classify the image correctly, over all of them where none does.
    """
    labels = problem.train.labels
    classes = len(problem.dataset.classes)
    order = torch.randperm(len(labels), generator=seeds.generator(config.seed, "start")).to(problem.device)
    first = expert_logits(problem, experts, 0, problem.train.images[order])
    rank = F.cross_entropy(first, labels[order], reduction="none")
    rank[first.argmax(1) == labels[order]] = 0.0  # solved images are all alike, and stay in shuffled order
    if config.distil.start == "random":
        rank.zero_()
    order = order[rank.argsort(stable=True)]
    rows = torch.cat([order[labels[order] == label][: config.ipc] for label in range(classes)])
    images, truth = problem.train.images[rows], labels[rows]
    if config.distil.labels == "hard":
        return images.clone(), CERTAIN * one_hot(truth, classes), truth.clone()
    count = min(config.distil.label_experts or config.expert.count, config.expert.count)
    return images.clone(), mean_logits(problem, experts, count, images, truth), truth.clone()


@torch.no_grad()
def mean_logits(problem: Problem, experts: Trajectories, count: int, images: Tensor, truth: Tensor) -> Tensor:
    """Per image the mean logits (n, K) over those of the first ``count`` experts that classify it as ``truth`` says.

    Where none does, the mean over all of them, rather than 0/0.
    """
    votes = torch.stack([expert_logits(problem, experts, number, images) for number in range(count)])  # (E, n, K)
    right = (votes.argmax(2) == truth).unsqueeze(2).to(votes)
    right[:, right.sum(0).eq(0).squeeze(1)] = 1.0
    return (votes * right).sum(0) / right.sum(0)


def expert_logits(problem: Problem, experts: Trajectories, number: int, images: Tensor) -> Tensor:
    """Outputs (N, K) of an expert after its last epoch, its running statistics included."""
    theta, buffers = experts.last(number)
    return flat.predict(problem.network, theta.to(problem.device), images, buffers.to(problem.device))
