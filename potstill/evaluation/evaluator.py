"""Networks trained on a set by a protocol, and their accuracy: a set × a network × a protocol × a seed → one number.

Whatever networks train on, distilled or real, is a :class:`TrainingSet`, and one function trains on all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill import bounds, ranks, seeds
from potstill.adjoint import engine
from potstill.adjoint.engine import Compile, choose_precision
from potstill.bounds import Count, Positive
from potstill.data import own_augment
from potstill.data.augment import Named, Operation
from potstill.data.distilled import Distilled
from potstill.data.own_augment import Augment
from potstill.errors import PotstillError
from potstill.evaluation.protocol import CONTROL_STEP_SIZE, PROTOCOLS, Protocol
from potstill.networks import flat
from potstill.networks.architectures import Architecture, NetworkConfig, depth_for, is_own, own_network
from potstill.networks.flat import FlatNetwork
from potstill.networks.losses import LabelKind
from potstill.networks.own import Factory
from potstill.process import own_state
from potstill.training.problem import Problem, Whitened, choose_device
from potstill.training.sgd import Recipe, run_to_end, sgd

Event = dict[str, Any]
Counts = list[list[int]]
"""A confusion matrix (K, K): row k counts what images of class k were taken for."""
Network = str | Mapping[str, Any] | NetworkConfig | Factory
"""A network as a call in Python names it: by its name, its settings, or the function that makes a user's own."""
COUNTED = 100  # classes up to which confusions are counted: a matrix of more takes too much room beside an accuracy


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a network trains on, on the device.

    Raises:
        PotstillError: there are no images, or not as many rows of targets.
    """

    images: Tensor  # (n, C, H, W) float32, whitened
    targets: Tensor  # (n, K) float32
    kind: LabelKind = "probabilities"  # what the targets are: "probabilities", "raw" weights or "values" to regress to
    step_size: float | None = None  # of SGD; None for that of the controls

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.targets):
            raise PotstillError(
                f"training set of {len(self.images)} images and {len(self.targets)} rows of targets: every image needs "
                "one row, and there must be at least one; give as many of each."
            )

    @property
    def alpha(self) -> float:
        """The step size that networks train with."""
        return CONTROL_STEP_SIZE if self.step_size is None else self.step_size


def training_set_of(distilled: Distilled, network: NetworkConfig, device: torch.device) -> TrainingSet:
    """A distilled set as a network trains on it: with the set's step size only if it was made with this network."""
    images, targets = (tensor.to(device) for tensor in distilled.tensors())
    own = network == NetworkConfig(**distilled.recipe["network"])
    return TrainingSet(images, targets, distilled.target_kind, distilled.step_size if own else None)


@dataclass(frozen=True)
class Evaluator:
    """A problem, the network that is trained (perhaps another than the student's), and the protocol."""

    problem: Problem
    config: NetworkConfig  # of ``network``
    network: FlatNetwork
    protocol: Protocol
    augment: tuple[Operation, ...]
    compile: Compile = "auto"

    def train(self, training_set: TrainingSet, epochs: int, seed: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) and running statistics (B,) of a fresh network after so many epochs over the set.

        The seed decides its initialisation, the order of the images and their augmentation.
        """
        recipe = self.protocol.recipe(epochs, training_set.alpha, self.augment)
        return _fit(self.network, training_set, recipe, seed, self.compile, self.protocol.seeds)

    def accuracy(self, training_set: TrainingSet, epochs: int, seed: int, on: Whitened) -> float:
        """Fraction of the images of ``on`` that one network classifies correctly; 0 where its training diverged."""
        return self.tested(training_set, epochs, seed, on)[0]

    def tested(self, training_set: TrainingSet, epochs: int, seed: int, on: Whitened) -> tuple[float, Counts | None]:
        """The same accuracy, and what the network took the images of each class for.

        There are no counts where training diverged, or of more than :data:`COUNTED` classes.
        """
        theta, buffers = self.train(training_set, epochs, seed)
        if not bool(theta.isfinite().all()):
            return 0.0, None
        predicted = flat.predict(self.network, theta, on.images, buffers).argmax(1)
        return float((predicted == on.labels).float().mean()), self._counts(on.labels, predicted)

    def _counts(self, labels: Tensor, predicted: Tensor) -> Counts | None:
        k = len(self.problem.dataset.classes)
        if k > COUNTED:
            return None
        counts: Counts = torch.bincount((labels * k + predicted).cpu(), minlength=k * k).view(k, k).tolist()
        return counts


def _fit(
    network: FlatNetwork, training_set: TrainingSet, recipe: Recipe, seed: int, compile: Compile, networks: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Train a fresh network; ``networks`` are trained alike in all, which decides whether compiling pays."""
    theta, images, targets = network.fresh(seed), training_set.images, training_set.targets
    n, c, h, w = images.shape
    batch, seen = min(recipe.batch_size, n), recipe.epochs * n * networks
    gradient = engine.training_gradient(network, (c, h, w), batch, seen, compile, training_set.kind)
    buffers = network.initial_buffers()
    epochs = sgd(partial(gradient, buffers=buffers), theta, images, targets, recipe, seed)
    return run_to_end(epochs, theta), buffers


def evaluator_for(
    problem: Problem, config: NetworkConfig, protocol: Protocol, augment: Sequence[Operation], compile: Compile = "auto"
) -> Evaluator:
    """An evaluator with a network of ``config``, in the precision that suits it.

    Raises:
        PotstillError: the network is too deep for the images, or the precision asked for does not suit it.
    """
    network = problem.network
    if config != problem.network_config:
        shape, classes = problem.dataset.shape, len(problem.dataset.classes)
        network = flat.flat_network(config, shape, classes, problem.device)
        wanted = "float32" if network.batch_coupled else problem.wanted_precision
        network = replace(network, precision=choose_precision(wanted, problem.device, network, shape))
    return Evaluator(problem, config, network, protocol, tuple(augment), compile)


def validation_accuracy(evaluator: Evaluator, training_set: TrainingSet) -> float:
    """Mean accuracy of the protocol's networks on the validation images, by which sets are chosen.

    Where the protocol chooses on test images, on those: the paper's way, whose figures come out too high.
    Several processes share the networks.
    """
    protocol = evaluator.protocol
    on = evaluator.problem.test if protocol.selection == "test" else evaluator.problem.val
    drawn = [seeds.derive(0, "validation network", number) for number in range(protocol.seeds)]
    found = ranks.shared_out(lambda seed: evaluator.accuracy(training_set, protocol.epochs, seed, on), drawn)
    return sum(found) / len(found)


@own_state()
def train(
    distilled: Distilled, network: Network | None = None, *, seed: int = 0, epochs: int | None = None,
    step_size: float | None = None, augment: Augment | None = None, device: str | torch.device | None = None,
) -> nn.Module:  # fmt: skip
    """Train a network on a distilled set by the standard protocol, and return it ready to predict.

    Args:
        distilled: the set.
        network: a network's name, its settings, or a function ``(channels, height, width, classes)`` that returns a
            new ``nn.Module``; by default the one the set was made with.
        seed: seed of its initialisation and of the draws in training.
        epochs: epochs over the set; by default the protocol's 1001.
        step_size: step size of SGD; by default the learned one for the network the set was made with, else 0.01.
        augment: operations by name, or a differentiable function ``(images (b, C, H, W), numbers (b, 8))`` that returns
            images, its numbers drawn from 0 to 1; by default those the set was made with.
        device: where to train and to leave the network; by default it is trained on the fastest one present, and
            brought back to the CPU.

    Raises:
        PotstillError: fewer than one epoch, a step size that is not positive, no such network or device, or a network
            too deep for the images.

    Example:
        >>> distilled = potstill.load("runs/digits-ipc1")
        >>> network = potstill.train(distilled, epochs=3)
        >>> predicted = network(distilled.transform(uint8_images)).argmax(1)
    """
    protocol = PROTOCOLS["standard"]
    epochs = bounds.fit(protocol.epochs if epochs is None else epochs, Count, "epochs")
    step_size, seed = bounds.fit(step_size, Positive | None, "step_size"), bounds.fit(seed, int, "seed")
    told: str | None = bounds.fit(device, str | None, "device")
    c, h, w = distilled.images.shape[1:]
    config = network_for(distilled, network)
    where, classes = choose_device(told or "auto"), len(distilled.classes)
    training_set = training_set_of(distilled, config, where)
    if step_size is not None:
        training_set = replace(training_set, step_size=step_size)
    flat_network = flat.flat_network(config, (c, h, w), classes, where)
    recipe = protocol.recipe(epochs, training_set.alpha, operations_for(distilled, augment))
    theta, buffers = _fit(flat_network, training_set, recipe, seed, "auto", networks=1)
    return flat_network.as_module(theta, buffers).to(told or "cpu")


def network_for(distilled: Distilled, network: Network | None = None) -> NetworkConfig:
    """The network asked for, or by default the set's own, with the depth that follows from the images.

    Raises:
        PotstillError: there is no such network, or a user's own cannot be computed.
    """
    (c, h, w), own = distilled.images.shape[1:], NetworkConfig(**distilled.recipe["network"])
    if network is None or network == own.name:
        found = own
    elif isinstance(network, NetworkConfig):
        bounds.check(network, "network.")
        found = network
    elif isinstance(network, Mapping):
        base = own if network.get("name", own.name) == own.name else NetworkConfig()
        if is_own(base):
            raise PotstillError(f"network {dict(network)}: has no effect on {own.name}; give its function, or a name.")
        found = bounds.changed(base, network, "network.")
    elif callable(network):
        found = own_network(network, (c, h, w), len(distilled.classes))
    else:
        found = NetworkConfig(name=bounds.fit(network, Architecture, "network"))
    return replace(found, depth=found.depth or depth_for(h, w))


def operations_for(distilled: Distilled, augment: Augment | None) -> tuple[Operation, ...]:
    """The operations asked for, a user's functions by their names; by default those the set was made with.

    Raises:
        PotstillError: there is no such operation, or a user's own cannot be computed.
    """
    c, h, w = distilled.images.shape[1:]
    asked = distilled.recipe["augment"] if augment is None else own_augment.names(augment, (c, h, w))
    return bounds.fit(asked, tuple[Named, ...], "augment")
