"""Soft labels of real images from the experts that classify them correctly (DATM, section 4.1)."""

import torch
from torch import Tensor

from potstill.networks import flat
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories


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
