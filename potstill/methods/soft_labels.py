"""Soft labels of real images from the experts that classify them correctly (DATM, section 4.1)."""

import torch
from torch import Tensor

from potstill.networks import flat
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories


@torch.no_grad()
def mean_logits(
    problem: Problem, experts: Trajectories, count: int, images: Tensor, truth: Tensor, epoch: int | None = None
) -> Tensor:  # fmt: skip
    """Per image the mean logits (n, K) over those of the first ``count`` experts that classify it as ``truth`` says.

    Where none does, the mean over all of them, rather than 0/0.  They speak as after ``epoch``; None: at their end.
    """
    votes = torch.stack([expert_logits(problem, experts, e, images, epoch) for e in range(count)])  # (E, n, K)
    right = (votes.argmax(2) == truth).unsqueeze(2).to(votes)
    right[:, right.sum(0).eq(0).squeeze(1)] = 1.0
    return (votes * right).sum(0) / right.sum(0)


def expert_logits(
    problem: Problem, experts: Trajectories, number: int, images: Tensor, epoch: int | None = None
) -> Tensor:  # fmt: skip
    """Outputs (N, K) of an expert, its running statistics included, after so many epochs; None: after its last one."""
    theta, buffers = experts.last(number) if epoch is None else experts.snapshot(number, epoch)
    return flat.predict(problem.network, theta.to(problem.device), images, buffers.to(problem.device))
