"""Judging a set: a protocol × networks × fresh seeds → accuracies with intervals, beside three controls.

The controls run under the same recipe: as many random real images with hard labels, the same with soft labels, and
the full training set.  Every trained network's figure is kept by the fingerprint of all that it depends on, so
nothing is trained twice and an interrupted evaluation goes on where it stopped.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill import files, seeds
from potstill.adjoint import engine
from potstill.adjoint.engine import Compile, choose_precision
from potstill.config import EvaluationConfig, NetworkConfig, Operation
from potstill.data.distilled import Distilled
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.architectures import depth_for
from potstill.networks.flat import FlatNetwork
from potstill.store import cache_folder
from potstill.training.problem import Problem, Whitened, choose_device
from potstill.training.sgd import Recipe, one_hot, run_to_end, sgd

Event = dict[str, Any]
NUMERICS = 4  # raised by hand whenever a change of the code changes what a training gives; part of every cached figure
CONTROL_STEP_SIZE = 0.01  # the published step size for real images, and for networks a set was not made with
TRIED_PARTS = (1.0, 0.5, 0.25, 0.125)  # of the learned step size, that are tried where it shall be chosen
SoftLabels = Callable[[Tensor], Tensor]
"""Rows of the training set (n,) → soft labels (n, K) from the experts."""

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; beyond the table the last is a safe bound.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """How networks are trained and judged; stored with every number it gives."""

    name: str
    epochs: int  # on a synthetic set or on random images
    full_epochs: int  # on the full training set
    seeds: int  # fresh networks a figure
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    selection: str = "validation"  # the split on which the checkpoint was chosen; "test" is the paper's way

    def recipe(self, epochs: int, step_size: float, augment: Sequence[Operation]) -> Recipe:
        """SGD of this protocol: the step size falls tenfold past half of the epochs, and the momentum restarts."""
        return Recipe(
            epochs, self.batch_size, step_size, self.momentum, self.weight_decay, epochs // 2 + 1,
            augment=tuple(augment),
        )  # fmt: skip


PROTOCOLS = {
    "quick": Protocol("quick", epochs=300, full_epochs=10, seeds=2),
    "standard": Protocol("standard", epochs=1001, full_epochs=50, seeds=5),
    "paper": Protocol("paper", epochs=1001, full_epochs=50, seeds=1, selection="test"),
}


def protocol_of(config: EvaluationConfig) -> Protocol:
    """The named protocol with what the configuration changes.

    Raises:
        PotstillError: fewer than one seed or epoch.
    """
    changes = {name: getattr(config, name) for name in ("seeds", "epochs", "full_epochs")}
    for name, value in changes.items():
        if value is not None and value < 1:
            raise PotstillError(f"evaluation.{name} {value}: at least 1 is needed.")
    if config.full_seeds is not None and config.full_seeds < 0:
        raise PotstillError(f"evaluation.full_seeds {config.full_seeds}: 0 leaves the control out; fewer cannot be.")
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(PROTOCOLS[config.protocol], **given)


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n − 1), 95 % t-interval of the mean, and the values; fractions of 1.

    A single value has no deviation and no interval: both are None.
    """
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return {"mean": mean, "std": None, "ci95": None, "per_seed": list(values)}
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = T_QUANTILES[min(n - 2, len(T_QUANTILES) - 1)] * std / math.sqrt(n)
    return {"mean": mean, "std": std, "ci95": [mean - half, mean + half], "per_seed": list(values)}


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Mean of ``a`` less that of ``b`` (figures of :func:`interval`), with Welch's 95 % interval.

    The degrees of freedom are rounded down, which makes the interval wider.  None where either is of one network.
    """
    mean = a["mean"] - b["mean"]
    if a["std"] is None or b["std"] is None:
        return {"mean": mean, "ci95": None}
    parts = [(figure["std"] ** 2 / len(figure["per_seed"]), len(figure["per_seed"])) for figure in (a, b)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return {"mean": mean, "ci95": [mean, mean]}
    freedom = variance**2 / sum(part**2 / (n - 1) for part, n in parts)
    half = T_QUANTILES[min(max(int(freedom), 1), len(T_QUANTILES)) - 1] * math.sqrt(variance)
    return {"mean": mean, "ci95": [mean - half, mean + half]}


@dataclass(frozen=True)
class Judge:
    """A problem, the network that is trained (perhaps another than the student's), and the protocol."""

    problem: Problem
    config: NetworkConfig
    network: FlatNetwork
    protocol: Protocol
    augment: tuple[Operation, ...]
    compile: Compile = "auto"

    def train(
        self, images: Tensor, targets: Tensor, epochs: int, step_size: float, seed: int
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Parameters (P,) and buffers (B,) of a fresh network trained on images with target probabilities."""
        buffers = self.network.initial_buffers()
        shape, classes = self.problem.dataset.shape, len(self.problem.dataset.classes)
        theta = flat.initial(self.config, shape, classes, seed).to(self.problem.device)
        recipe = self.protocol.recipe(epochs, step_size, self.augment)
        seen = epochs * len(images) * self.protocol.seeds
        batch = min(self.protocol.batch_size, len(images))
        gradient = partial(engine.training_gradient(self.network, shape, batch, seen, self.compile), buffers=buffers)
        return run_to_end(sgd(gradient, theta, images, targets, recipe, seed), theta), buffers

    def accuracy(
        self, images: Tensor, targets: Tensor, epochs: int, step_size: float, seed: int, on: Whitened
    ) -> float:  # fmt: skip
        """Accuracy on ``on`` of one network; 0 where its training diverged."""
        theta, buffers = self.train(images, targets, epochs, step_size, seed)
        if not bool(theta.isfinite().all()):
            return 0.0
        return flat.accuracy(self.network, theta, on.images, on.labels, buffers)


def judge(
    problem: Problem, config: NetworkConfig, protocol: Protocol, augment: Sequence[Operation], compile: Compile = "auto"
) -> Judge:
    """A judge with a network of ``config``, in the precision that suits it."""
    network = problem.network
    if config != problem.network_config:
        shape, classes = problem.dataset.shape, len(problem.dataset.classes)
        network = flat.flat_network(config, shape, classes, problem.device)
        wanted = "float32" if network.batch_coupled else problem.wanted_precision
        network = replace(network, precision=choose_precision(wanted, problem.device, network, shape))
    return Judge(problem, config, network, protocol, tuple(augment), compile)


def judge_state(judge: Judge, images: Tensor, logits: Tensor, step_size: float, split: str = "validation") -> float:
    """Mean accuracy of the protocol's networks on the validation part (or on the test part, the paper's way)."""
    on = judge.problem.test if split == "test" else judge.problem.val
    targets = logits.softmax(1)
    drawn = [seeds.derive(0, "validation network", number) for number in range(judge.protocol.seeds)]
    found = [judge.accuracy(images, targets, judge.protocol.epochs, step_size, seed, on) for seed in drawn]
    return sum(found) / len(found)


def step_sizes(
    judge: Judge, images: Tensor, logits: Tensor, learned: float, event: Event
) -> Generator[Event, None, list[dict[str, float]]]:  # fmt: skip
    """Accuracies on validation images by step size, the learned one first; ``event`` is told before each."""
    tried = []
    for step_size in (learned * part for part in TRIED_PARTS):
        yield {**event, "doing": f"training with step size {step_size:.3g}"}
        tried.append({"step_size": step_size, "accuracy": judge_state(judge, images, logits, step_size)})
    return tried


def evaluate(
    judge: Judge, distilled: Distilled, ipc: int, soft_labels: SoftLabels | None, full_seeds: int | None = None,
    experts: Any = None,
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Final figures of a set and its controls on the test part; yields an event a network, returns ``accuracy``.

    Args:
        judge: what is trained, and how.
        distilled: the set.
        ipc: images per class of the random controls.
        soft_labels: labels of the soft control; None leaves that control out.
        full_seeds: networks of the full-set control; None for as many as the others, 0 for none.
        experts: identity of the experts behind ``soft_labels``, for the fingerprint.

    Returns:
        {"distilled": {mean, std, ci95, per_seed}, "random": ..., "random_soft": ..., "full": ...}, fractions of 1;
        and under "seconds" what the training of all these networks took.
    """
    plans = list(_plans(judge, distilled, ipc, soft_labels, full_seeds, experts))
    total = sum(count for _, count, _, _ in plans)
    accuracy: dict[str, Any] = {}
    done, seconds = 0, 0.0
    for name, count, identity, accuracy_of in plans:
        values = []
        for number in range(count):
            yield {"stage": "evaluation", "done": done, "total": total, "set": name, "network": number}
            value, spent = _once([*identity, number], lambda: accuracy_of(number))  # noqa: B023
            values.append(value)
            seconds += spent
            done += 1
        accuracy[name] = interval(values)
    yield {"stage": "evaluation", "done": done, "total": total}
    return {"accuracy": accuracy, "seconds": seconds}


def _plans(
    judge: Judge, distilled: Distilled, ipc: int, soft_labels: SoftLabels | None, full_seeds: int | None, experts: Any
) -> Generator[tuple[str, int, list[Any], Callable[[int], float]], None, None]:
    """For each figure: its name, number of networks, identity, and the accuracy of network number i."""
    problem, protocol = judge.problem, judge.protocol
    device, test = problem.device, problem.test
    images, targets = (tensor.to(device) for tensor in distilled.tensors())
    own = distilled.step_size if vars(judge.config) == distilled.recipe["network"] else None
    step_size = own or CONTROL_STEP_SIZE  # a set may have learned none
    hard = one_hot(problem.train.labels, len(problem.dataset.classes))
    common = [
        NUMERICS, problem.dataset.fingerprint, problem.transform.kind, vars(judge.config), protocol.batch_size,
        protocol.momentum, protocol.weight_decay, list(judge.augment), str(judge.network.precision), device.type,
    ]  # fmt: skip

    def seed(number: int) -> int:
        return seeds.derive(0, "evaluation network", number)

    def of_distilled(number: int) -> float:
        return judge.accuracy(images, targets, protocol.epochs, step_size, seed(number), test)

    def of_random(number: int) -> float:
        rows = random_rows(problem, ipc, number)
        return judge.accuracy(
            problem.train.images[rows], hard[rows], protocol.epochs, CONTROL_STEP_SIZE, seed(number), test
        )

    def of_random_soft(number: int) -> float:
        rows = random_rows(problem, ipc, number)
        assert soft_labels is not None
        return judge.accuracy(
            problem.train.images[rows], soft_labels(rows), protocol.epochs, CONTROL_STEP_SIZE, seed(number), test
        )

    def of_full(number: int) -> float:
        return judge.accuracy(
            problem.train.images, hard, protocol.full_epochs, CONTROL_STEP_SIZE, seed(number), test
        )  # fmt: skip

    n, synthetic = protocol.seeds, [*common, protocol.epochs]
    yield "distilled", n, [*synthetic, "distilled", files.fingerprint(images, targets, step_size)], of_distilled
    yield "random", n, [*synthetic, "random", ipc], of_random
    if soft_labels is not None:
        yield "random_soft", n, [*synthetic, "random_soft", ipc, experts], of_random_soft
    if full_seeds != 0:
        yield "full", full_seeds or n, [*common, protocol.full_epochs, "full"], of_full


def random_rows(problem: Problem, ipc: int, number: int) -> Tensor:
    """Rows of the training set: IPC random images of each class, another draw for each control network."""
    labels = problem.dataset.train.labels
    order = torch.randperm(len(labels), generator=seeds.generator(0, "random control", number))
    rows = [order[labels[order] == label][:ipc] for label in range(len(problem.dataset.classes))]
    return torch.cat(rows).to(problem.device)


def _once(identity: list[Any], compute: Callable[[], float]) -> tuple[float, float]:
    """A network's accuracy and the seconds it took, computed once and kept by fingerprint."""
    path = cache_folder() / "networks" / f"{files.fingerprint(identity)}.json"
    if path.exists():
        kept = files.read_json(path)
        return kept["accuracy"], kept["seconds"]
    began = time.perf_counter()
    accuracy = compute()
    seconds = time.perf_counter() - began
    files.write_json(path, {"accuracy": accuracy, "seconds": seconds, "identity": identity})
    return accuracy, seconds


def train(
    distilled: Distilled, network: NetworkConfig | None = None, *, seed: int = 0, epochs: int | None = None,
    step_size: float | None = None, device: str | None = None,
) -> nn.Module:  # fmt: skip
    """Train a network on a distilled set by the standard protocol, and return it ready to predict.

    Args:
        distilled: the set.
        network: the network; by default the one the set was made with.
        seed: seed of its initialisation and of the draws in training.
        epochs: epochs over the set; by default the protocol's 1001.
        step_size: step size of SGD; by default the learned one for the network the set was made with, else 0.01.
        device: where to train and to leave the network; by default it is trained on the fastest one present, and
            brought back to the CPU.

    Example:
        >>> distilled = potstill.load("runs/digits-ipc1")
        >>> network = potstill.train(distilled)
        >>> predicted = network(distilled.transform(uint8_images)).argmax(1)
    """
    own = NetworkConfig(**distilled.recipe["network"])
    c, h, w = distilled.images.shape[1:]
    config = network or own
    config = replace(config, depth=config.depth or depth_for(h, w))
    protocol = PROTOCOLS["standard"]
    where = choose_device(device or "auto")
    flat_network = flat.flat_network(config, (c, h, w), len(distilled.classes), where)
    theta = flat.initial(config, (c, h, w), len(distilled.classes), seed).to(where)
    alpha = step_size or (distilled.step_size if config == own else None) or CONTROL_STEP_SIZE
    recipe = protocol.recipe(epochs or protocol.epochs, alpha, distilled.recipe["augment"])
    images, targets = (tensor.to(where) for tensor in distilled.tensors())
    batch = min(recipe.batch_size, len(images))
    gradient = engine.training_gradient(flat_network, (c, h, w), batch, recipe.epochs * len(images), "auto")
    buffers = flat_network.initial_buffers()
    theta = run_to_end(sgd(partial(gradient, buffers=buffers), theta, images, targets, recipe, seed), theta)
    return flat_network.as_module(theta, buffers).to(device or "cpu")
