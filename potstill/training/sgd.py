"""One training loop for real and synthetic images: experts, controls and evaluation all run it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill import seeds
from potstill.adjoint.engine import Gradient
from potstill.data import augment
from potstill.data.augment import Operation


@dataclass(frozen=True)
class Recipe:
    """SGD as a value: epochs, batches, step size and its decay."""

    epochs: int
    batch_size: int
    step_size: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_after: int | None = None  # the epoch after which the step size falls tenfold and the momentum restarts
    rho: float = 0.0  # radius of the flat recipe; 0 for plain SGD
    alpha: float = 0.3  # weight of GSAM's orthogonal part
    augment: tuple[Operation, ...] = ()


def sharpness_aware(gradient: Gradient, rho: float, alpha: float) -> Gradient:
    """FTD's flat gradient: adaptive sharpness-aware minimisation with GSAM's ascent in the orthogonal part.

    At p with gradient g, perturb by e = ρ p² g / ‖|p| g‖, take g' there, and subtract α times the part of g that is
    orthogonal to g' (Kwon et al., ICML 2021; Zhuang et al., ICLR 2022; used by Du et al., CVPR 2023).
    """

    def perturbed(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        here = gradient(theta, images, targets)
        away = theta + rho * theta**2 * here / ((theta.abs() * here).norm() + 1e-12)
        there = gradient(away, images, targets)
        along = (here @ there) / (there @ there).clamp_min(1e-24)
        return there - alpha * (here - along * there)

    return perturbed


def sgd(
    gradient: Gradient, theta: Tensor, images: Tensor, targets: Tensor, recipe: Recipe, seed: int, first_epoch: int = 0,
    rows: Callable[[int], Tensor] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Train from ``theta`` (P,) on images (N, C, H, W) with target probabilities (N, K); yield θ after each epoch.

    Every epoch draws its order and its augmentations from (seed, epoch) alone, so training without momentum can be
    taken up again after any epoch.  What is yielded is never written to again.  Where ``rows`` says so, an epoch
    trains on some of the images only: those in ``rows(epoch)`` (n,), on the CPU.
    """
    if recipe.rho > 0:
        gradient = sharpness_aware(gradient, recipe.rho, recipe.alpha)
    velocity = torch.zeros_like(theta)
    for epoch in range(first_epoch, recipe.epochs):
        decayed = recipe.decay_after is not None and epoch >= recipe.decay_after
        if epoch == recipe.decay_after:
            velocity = torch.zeros_like(theta)
        step_size = recipe.step_size * (0.1 if decayed else 1.0)
        draws = seeds.generator(seed, "epoch", epoch)
        own = None if rows is None else rows(epoch)
        order = torch.randperm(len(images) if own is None else len(own), generator=draws)
        for chosen in (order if own is None else own[order]).split(recipe.batch_size):
            drawing = augment.draw(recipe.augment, len(chosen), _size(images), draws)
            batch = augment.apply(images[chosen.to(images.device)], drawing)
            slope = gradient(theta, batch, targets[chosen.to(targets.device)])
            if recipe.weight_decay:
                slope = slope + recipe.weight_decay * theta
            velocity = recipe.momentum * velocity + slope if recipe.momentum else slope
            theta = theta - step_size * velocity
        yield theta


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def run_to_end(epochs: Iterator[Tensor], theta: Tensor) -> Tensor:
    """The last θ that training yields; the first where it trains for no epoch."""
    for theta in epochs:  # noqa: B007
        pass
    return theta
