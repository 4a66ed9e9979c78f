"""Training on the real data: each expert leaves the trajectory that a student shall follow."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from potstill import files
from potstill.adjoint import engine
from potstill.adjoint.engine import Compile
from potstill.config import ExpertConfig, Operation
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.seeds import derive
from potstill.training import trajectories
from potstill.training.problem import Problem
from potstill.training.sgd import Recipe, one_hot, sgd
from potstill.training.trajectories import Trajectories, expert_path, partial_path

CHECKPOINT_SECONDS = 30.0


def subject(problem: Problem) -> dict[str, Any]:
    """What experts must have in common with a student for their trajectory to mean anything to it."""
    return {
        "dataset": {"fingerprint": problem.dataset.fingerprint},
        "transform": problem.transform.kind,
        "network": vars(problem.network_config),
    }


def identity(expert: ExpertConfig, problem: Problem, seed: int, augment: tuple[Operation, ...]) -> dict[str, Any]:
    """What makes one store of experts differ from another: every setting that changes a weight."""
    own = {name: value for name, value in vars(expert).items() if name not in ("count", "keep_all")}
    return {**subject(problem), "expert": own, "augment": list(augment), "seed": seed}


@dataclass(frozen=True)
class _Job:
    expert: ExpertConfig
    seed: int
    augment: tuple[Operation, ...]
    compile: Compile


def train(
    problem: Problem, folder: Path, expert: ExpertConfig, *, seed: int, augment: tuple[Operation, ...], compile: Compile,
    keep: Collection[int] | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train the experts that ``folder`` lacks, and yield a metric after every epoch.

    Training goes on where it stopped: finished experts are kept, and one in training continues from its last
    checkpoint, bit for bit.  Read the result with :func:`trajectories.open_store`.
    """
    epochs = list(range(expert.epochs + 1)) if keep is None or expert.keep_all else sorted(keep)
    trajectories.create(folder, identity(expert, problem, seed, augment), epochs)
    config = _Job(expert, seed, augment, compile)
    store = trajectories.open_store(folder)
    total = config.expert.count * config.expert.epochs
    for number in range(config.expert.count):
        if number < len(store) and expert_path(folder, number).exists():
            yield {"stage": "experts", "done": (number + 1) * config.expert.epochs, "total": total, "expert": number}
            continue
        for epoch in _train_one(config, problem, store, number):
            done = number * config.expert.epochs + epoch
            yield {"stage": "experts", "done": done, "total": total, "expert": number, "epoch": epoch}
        store = trajectories.open_store(folder)


def _train_one(config: _Job, problem: Problem, store: Trajectories, number: int) -> Iterator[int]:
    """Train one expert from its last checkpoint to its last epoch, yield each epoch, enter it in the manifest."""
    network, folder = problem.network, store.folder
    seed = derive(config.seed, "expert", number)
    unfinished = partial_path(folder, number)
    dtype = getattr(torch, config.expert.storage)
    buffers = network.initial_buffers()
    theta = flat.initial(problem.network_config, problem.dataset.shape, len(problem.dataset.classes), seed)
    snapshots = {0: (theta, buffers.cpu().clone())}
    epoch, before = 0, 0.0
    if unfinished.exists():
        tensors, header = files.load(unfinished, "expert in training")
        theta, epoch, before = tensors["last"], header["epoch"], header["seconds"]
        buffers = tensors["last_buffers"].to(problem.device)
        snapshots = {e: (tensors["theta"][i], tensors["buffers"][i]) for i, e in enumerate(header["epochs"])}
    recipe = Recipe(
        config.expert.epochs, config.expert.batch_size, config.expert.step_size, rho=config.expert.rho,
        alpha=config.expert.alpha, augment=config.augment,
    )  # fmt: skip
    targets = one_hot(problem.train.labels, len(problem.dataset.classes))
    images = config.expert.count * config.expert.epochs * len(targets)
    gradient = engine.training_gradient(
        network, problem.dataset.shape, config.expert.batch_size, images, config.compile
    )  # fmt: skip
    began = saved = time.monotonic()
    first = theta.to(problem.device)
    for theta in sgd(partial(gradient, buffers=buffers), first, problem.train.images, targets, recipe, seed, epoch):
        epoch += 1
        if not torch.isfinite(theta).all():
            raise PotstillError(
                f"expert {number} diverged in epoch {epoch}: its weights are not finite; lower --expert.step-size (now "
                f"{config.expert.step_size:g}) or --expert.rho (now {config.expert.rho:g})."
            )
        if epoch in store.epochs:
            snapshots[epoch] = (theta.cpu().clone(), buffers.cpu().clone())  # cloned: a view would follow training
        if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch < config.expert.epochs:
            header = {"epoch": epoch, "seconds": before + time.monotonic() - began}
            _save(unfinished, "expert in training", snapshots, theta, buffers, header, torch.float32)
            saved = time.monotonic()
        yield epoch
    accuracy = flat.accuracy(network, theta, problem.val.images, problem.val.labels, buffers)
    kept = {e: snapshot for e, snapshot in snapshots.items() if e in store.epochs}
    seconds = before + time.monotonic() - began
    _save(expert_path(folder, number), "expert", kept, theta, buffers, {"epoch": epoch}, dtype)
    accuracies = (*store.accuracies[:number], accuracy)
    trajectories.write(replace(store, accuracies=accuracies, seconds=store.seconds + seconds))
    unfinished.unlink(missing_ok=True)


def _save(
    path: Path, kind: str, snapshots: dict[int, tuple[torch.Tensor, torch.Tensor]], last: torch.Tensor,
    last_buffers: torch.Tensor, header: dict[str, Any], dtype: torch.dtype,
) -> None:  # fmt: skip
    tensors = {
        "theta": trajectories.stack([theta for theta, _ in snapshots.values()], dtype),
        "buffers": trajectories.stack([buffers for _, buffers in snapshots.values()], torch.float32),
        "last": last,
        "last_buffers": last_buffers,
    }
    files.save(path, kind, tensors, {**header, "epochs": list(snapshots)})
