"""A set beside its controls on test images, all trained under one protocol.

    random        as many random real images of each class, hard labels
    random_soft   the same images, soft labels of the experts
    full          the full training set, hard labels

The controls are training sets like the one they are compared with: :func:`evaluate` is one loop over all of them.  The
accuracy of every network is kept by the fingerprint of all that it depends on, so nothing is trained twice, and an
interrupted evaluation continues where it stopped.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill import files, ranks, seeds, store
from potstill.data.labels import one_hot
from potstill.evaluation.evaluator import Counts, Evaluator, Event, TrainingSet
from potstill.evaluation.protocol import Protocol
from potstill.evaluation.statistics import interval
from potstill.networks import architectures
from potstill.training.problem import Problem

NUMERICS = 4  # raised by hand whenever a change of the code changes what a training gives; part of every cached figure
CONTROLS = ("random", "random_soft", "full")
SoftLabels = Callable[[Tensor], Tensor]
"""Rows of the training set (n,) → probabilities (n, K) from the experts."""


class Figure(NamedTuple):
    """What one network gave."""

    accuracy: float
    seconds: float  # of training and testing it
    kept: bool  # whether all this was kept from an earlier evaluation
    confusion: Counts | None  # none where it diverged, of very many classes, or kept from before they were counted


@dataclass(frozen=True)
class Series:
    """The networks behind one figure."""

    name: str
    count: int  # networks
    epochs: int  # each trains
    identity: list[Any]  # JSON-like; what sets apart what they train on from what other series do
    training_set: Callable[[int], TrainingSet]  # of network number i; called only where that one is trained


def controls(
    problem: Problem, ipc: int, soft_labels: SoftLabels | None, protocol: Protocol, full_seeds: int | None = None,
    experts: Any = None,
) -> list[Series]:  # fmt: skip
    """The controls of a set of ``ipc`` images per class; arguments as in :func:`evaluate`."""
    full = full_set(problem)
    hard = full.targets

    def with_labels(labels_of: SoftLabels) -> Callable[[int], TrainingSet]:
        def training_set(number: int) -> TrainingSet:
            rows = random_rows(problem, ipc, number)
            return TrainingSet(problem.train.images[rows], labels_of(rows))

        return training_set

    n, epochs = protocol.seeds, protocol.epochs
    found = [Series("random", n, epochs, ["random", ipc], with_labels(lambda rows: hard[rows]))]
    if soft_labels is not None:
        identity = ["random_soft", ipc, experts]
        found.append(Series("random_soft", n, epochs, identity, with_labels(soft_labels)))
    if full_seeds != 0:
        found.append(Series("full", full_seeds or n, protocol.full_epochs, ["full"], lambda number: full))
    return found


def full_set(problem: Problem) -> TrainingSet:
    """All training images with their own labels."""
    return TrainingSet(problem.train.images, one_hot(problem.train.labels, len(problem.dataset.classes)))


def random_rows(problem: Problem, ipc: int, number: int) -> Tensor:
    """Rows (n,) of the training set: IPC random images of each class, another draw for each control network."""
    labels = problem.dataset.train.labels
    order = torch.randperm(len(labels), generator=seeds.generator(0, "random control", number))
    rows = [order[labels[order] == label][:ipc] for label in range(len(problem.dataset.classes))]
    return torch.cat(rows).to(problem.device)


def evaluate(
    evaluator: Evaluator, training_set: TrainingSet, ipc: int, soft_labels: SoftLabels | None,
    full_seeds: int | None = None, experts: Any = None, alone: bool = False,
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Final figures of a set and its controls on the test images; yields an event before each network, and at the end.

    Args:
        evaluator: what is trained, and how.
        training_set: the set.
        ipc: images per class of the random controls.
        soft_labels: labels of the control "random_soft"; None leaves that control out.
        full_seeds: networks of the full-set control; None for as many as the others, 0 to leave it out.
        experts: identity of the experts behind ``soft_labels``, JSON-like, by which that control's figures are kept.
        alone: leave all controls out.

    Returns:
        {"accuracy": {"distilled": a figure of :func:`~potstill.evaluation.statistics.interval`, "random": ...,
        "random_soft": ..., "full": ...}, "kept": how many networks of each were kept from an earlier evaluation, where
        any were, "seconds": what the training of all these networks took, when they were trained, "confusion": of the
        networks trained on the set, by :func:`summed`}.  Controls that are left out are missing; every event names
        them under "left_out".
    """
    problem, protocol = evaluator.problem, evaluator.protocol
    identity = identity_of(training_set)
    given = Series("distilled", protocol.seeds, protocol.epochs, identity, lambda number: training_set)
    compared = [given, *([] if alone else controls(problem, ipc, soft_labels, protocol, full_seeds, experts))]
    names = {series.name for series in compared}
    event: Event = {"stage": "evaluation", "total": sum(series.count for series in compared)}
    event["left_out"] = [name for name in CONTROLS if name not in names]

    jobs = [(series, number) for series in compared for number in range(series.count)]
    found: dict[int, Figure] = {}
    for place in ranks.mine(range(len(jobs))):
        series, number = jobs[place]
        yield {**event, "done": place, "set": series.name, "network": number}
        found[place] = network_accuracy(evaluator, series, number)
    yield {**event, "done": len(jobs)}
    return _figures(jobs, ranks.gathered(found))


def _figures(jobs: Sequence[tuple[Series, int]], found: Sequence[dict[int, Figure]]) -> dict[str, Any]:
    """The figures of all series from their networks: those that each process trained, by their place among the jobs."""
    by_place = {place: figure for some in found for place, figure in some.items()}
    values: dict[str, list[float]] = {}
    kept: dict[str, int] = {}
    seconds = 0.0
    for place, (series, _) in enumerate(jobs):
        figure = by_place[place]
        values.setdefault(series.name, []).append(figure.accuracy)
        seconds += figure.seconds
        if figure.kept:
            kept[series.name] = kept.get(series.name, 0) + 1
    accuracy = {name: interval(those) for name, those in values.items()}
    of_set = [by_place[place].confusion for place, (series, _) in enumerate(jobs) if series.name == "distilled"]
    return {"accuracy": accuracy, "kept": kept, "seconds": seconds, "confusion": summed(of_set)}


def summed(counts: Sequence[Counts | None]) -> dict[str, Any] | None:
    """Confusion matrices of several networks as one: {"counts": their sum, "networks": how many have one}, or None."""
    known = [one for one in counts if one is not None]
    return {"counts": torch.tensor(known).sum(0).tolist(), "networks": len(known)} if known else None


def network_accuracy(evaluator: Evaluator, series: Series, number: int) -> Figure:
    """What one network of a series gives on the test images."""
    identity = [*common_identity(evaluator), series.epochs, *series.identity, number]

    def compute() -> tuple[float, Counts | None]:
        seed = seeds.derive(0, "evaluation network", number)
        return evaluator.tested(series.training_set(number), series.epochs, seed, evaluator.problem.test)

    return _once(identity, compute)


def common_identity(evaluator: Evaluator) -> list[Any]:
    """What the accuracy of every network of an evaluation depends on, whatever it trains on."""
    problem, protocol = evaluator.problem, evaluator.protocol
    return [
        NUMERICS, problem.dataset.fingerprint, problem.transform.kind, architectures.identity(evaluator.config),
        protocol.batch_size, protocol.momentum, protocol.weight_decay, list(evaluator.augment),
        str(evaluator.network.precision), problem.device.type,
    ]  # fmt: skip


def identity_of(training_set: TrainingSet) -> list[Any]:
    """That of a set under evaluation.  Probabilities go unnamed, as in figures kept before there were other kinds."""
    kind = [] if training_set.kind == "probabilities" else [training_set.kind]
    contents = files.fingerprint(training_set.images, training_set.targets, training_set.alpha)
    return ["distilled", contents, *kind]


def _once(identity: list[Any], compute: Callable[[], tuple[float, Counts | None]]) -> Figure:
    """A network's accuracy and confusion matrix, computed once and kept by fingerprint."""
    kept_before = True

    def make() -> dict[str, Any]:
        nonlocal kept_before
        kept_before = False
        began = time.perf_counter()
        accuracy, confusion = compute()
        return {"accuracy": accuracy, "seconds": time.perf_counter() - began, "confusion": confusion}

    kept = store.once_json("networks", identity, make)
    return Figure(kept["accuracy"], kept["seconds"], kept_before, kept.get("confusion"))
