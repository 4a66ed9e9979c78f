"""The experts' curriculum (PAD): easy images first, then all, at last without the easiest.

Li et al., "Prioritize Alignment in Dataset Distillation", 2024.  The images of each class are ordered from easy to
hard.  An epoch of an expert, at e hundredths of its training (published: of a hundred epochs, counted from 0), sees

    e ≤ 20         of each class the easiest 0.75 + 0.25 e / 20
    20 < e < 40    all
    40 ≤ e ≤ 60    all but the easiest tenth
    e > 60         all but the easiest fifth

How hard an image is comes from a file of scores there, which is not published.  Here it is EL2N, the mean of
‖softmax f(x) − y‖ over a few networks early in their training (Paul et al., NeurIPS 2021), which are trained for it
before the experts, plainly, by the experts' batches and step size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from potstill.adjoint.engine import TrainingGradient
from potstill.data.labels import one_hot
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.training.problem import Problem
from potstill.training.sgd import Recipe, run_to_end, sgd

NETWORKS, EPOCHS = 3, 10  # that say how hard an image is, and the epochs they train before
FIRST, GROWN, FIRST_DROP, SECOND_DROP = 0.75, 20, 40, 60  # published; the last three in hundredths of the epochs
DROPPED = (0.1, 0.2)
VERSION = 1  # of the scores; raised whenever they change
SCORE = f"EL2N of {NETWORKS} networks after {EPOCHS} epochs"  # in the experts' identity


def kept(epoch: int, epochs: int) -> tuple[float, float]:
    """The part of each class, from easy to hard, that one epoch of an expert trains on: (from, to), fractions of 1.

    Args:
        epoch: counted from 0.
        epochs: of the whole training.

    Example:
        >>> [kept(epoch, 100) for epoch in (0, 10, 30, 50, 70)]
        [(0.0, 0.75), (0.0, 0.875), (0.0, 1.0), (0.1, 1.0), (0.2, 1.0)]
    """
    hundredth = 100 * epoch / epochs
    if hundredth <= GROWN:
        return 0.0, FIRST + (1 - FIRST) * hundredth / GROWN
    if hundredth < FIRST_DROP:
        return 0.0, 1.0
    return DROPPED[0] if hundredth <= SECOND_DROP else DROPPED[1], 1.0


def mean_part(epochs: int) -> float:
    """The part of the images that an epoch trains on, on average over the training."""
    return sum(end - begin for begin, end in (kept(epoch, epochs) for epoch in range(epochs))) / epochs


@dataclass(frozen=True)
class Curriculum:
    """Which images each epoch trains on."""

    classes: tuple[Tensor, ...]  # rows (n_k,) of each class on the CPU, the easiest first
    epochs: int  # of the whole training

    def rows(self, epoch: int) -> Tensor:
        """Rows of the training images of an epoch, class by class; at least one of each class."""
        return torch.cat(list(self._by_class(epoch)))

    def _by_class(self, epoch: int) -> Iterator[Tensor]:
        begin, end = kept(epoch, self.epochs)
        for own in self.classes:
            first = min(round(begin * len(own)), len(own) - 1)
            yield own[first : max(round(end * len(own)), first + 1)]


def easy_first(hardness: Tensor, labels: Tensor, epochs: int) -> Curriculum:
    """The curriculum over images of this hardness (N,) and these labels (N,); equally hard ones in their own order."""
    order = hardness.cpu().argsort(stable=True)
    own = labels.cpu()[order]
    return Curriculum(tuple(order[own == label] for label in own.unique()), epochs)


def errors(problem: Problem, gradient: TrainingGradient, recipe: Recipe, seed: int) -> Tensor:
    """‖softmax f(x) − y‖ (N,) of a fresh network's outputs for all training images after a training, on the CPU.

    Raises:
        PotstillError: the training diverges.
    """
    network, split = problem.network, problem.train
    theta, buffers = network.fresh(seed), network.initial_buffers()
    targets = one_hot(split.labels, len(problem.dataset.classes))
    training = sgd(partial(gradient, buffers=buffers), theta, split.images, targets, recipe, seed)
    found = error_norms(flat.predict(network, run_to_end(training, theta), split.images, buffers), targets)
    if not bool(found.isfinite().all()):
        raise PotstillError(
            "the curriculum: a network that tells easy images from hard ones diverged; lower --expert.step-size (now "
            f"{recipe.step_size:g})."
        )
    return found.cpu()


def error_norms(outputs: Tensor, targets: Tensor) -> Tensor:
    """‖softmax f(x) − y‖ (n,) of outputs (n, K) and labels as probabilities (n, K): EL2N of one network."""
    return (outputs.softmax(1) - targets).norm(dim=1)
