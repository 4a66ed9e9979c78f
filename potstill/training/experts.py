"""Training on the real data: each expert leaves the trajectory that a student shall follow.

An expert is finished when its file exists.  So any process may train any expert of a folder: each takes the next one
that is neither finished nor in training elsewhere, and in the end waits for those of the others.
"""

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from potstill import files
from potstill.adjoint import engine
from potstill.adjoint.engine import Compile
from potstill.bounds import Count, Positive, Rate
from potstill.data.augment import Operation
from potstill.data.labels import one_hot
from potstill.errors import InUse, PotstillError
from potstill.networks import architectures, flat
from potstill.seeds import derive
from potstill.store import once
from potstill.training import curriculum, trajectories
from potstill.training.curriculum import Curriculum
from potstill.training.problem import Problem
from potstill.training.sgd import Recipe, sgd
from potstill.training.trajectories import Snapshots, expert_path, partial_path, write_expert

logger = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 30.0
POLL_SECONDS = 0.5  # between looks at experts that other processes train
IN_TRAINING = "expert in training"


@dataclass(frozen=True)
class ExpertConfig:
    """Training on the real data, for the methods that need experts."""

    count: Count = 10
    """Number of experts."""
    epochs: Count = 30
    """Epochs each expert trains; the last one labels the images that start the synthetic set."""
    batch_size: Count = 256
    """Real images a step."""
    step_size: Positive = 0.01
    """Step size of the experts' SGD."""
    rho: Rate = 0.0
    """Radius of the flat recipe (FTD's adaptive GSAM; published: 0.01); 0 trains by plain SGD."""
    alpha: Rate = 0.3
    """Weight of GSAM's orthogonal part; unused when rho is 0."""
    curriculum: bool = False
    """Train on easy images first, and at last without the easiest (PAD)."""
    storage: Literal["float32", "float16"] = "float32"
    """Precision of the snapshots on disk."""
    keep_all: bool = False
    """Store every snapshot instead of only those that the methods read."""


def subject(problem: Problem) -> dict[str, Any]:
    """What experts must have in common with a student for their trajectory to mean anything to it."""
    return {
        "dataset": {"fingerprint": problem.dataset.fingerprint},
        "transform": problem.transform.kind,
        "network": architectures.identity(problem.network_config),
    }


def identity(expert: ExpertConfig, problem: Problem, seed: int, augment: tuple[Operation, ...]) -> dict[str, Any]:
    """What makes one store of experts differ from another: every setting that changes a weight."""
    own = {name: value for name, value in vars(expert).items() if name not in ("count", "keep_all", "curriculum")}
    if expert.curriculum:  # no word of it where there is none: stores from before there was any go on
        own["curriculum"] = curriculum.SCORE
    return {**subject(problem), "expert": own, "augment": list(augment), "seed": seed}


@dataclass(frozen=True)
class _Job:
    """What training one of the experts takes."""

    problem: Problem
    folder: Path
    expert: ExpertConfig
    seed: int
    augment: tuple[Operation, ...]
    compile: Compile
    epochs: tuple[int, ...]  # whose snapshots are kept
    wanted: range  # experts that are trained by this call
    order: Curriculum | None = None  # which images each epoch trains on; None: all of them, or not known yet

    @property
    def identity(self) -> dict[str, Any]:
        """That of the store."""
        return identity(self.expert, self.problem, self.seed, self.augment)


def train(
    problem: Problem, folder: Path, expert: ExpertConfig, *, seed: int, augment: tuple[Operation, ...],
    compile: Compile = "auto", keep: Collection[int] | None = None, only: int | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train the experts that ``folder`` lacks, and yield a metric after every epoch.

    Training continues where it stopped: finished experts are kept, and one in training continues from its last
    checkpoint, bit for bit.  Read the result with :func:`trajectories.open_store`.

    Args:
        problem: data, transform and network.
        folder: of the experts; other processes may work in it.
        expert: the recipe, and how many.
        seed: of the run.
        augment: operations of DSA.
        compile: whether to compile the training step.
        keep: epochs whose snapshots are stored; None for all.
        only: the one expert that this call trains; None for all that are missing.

    Raises:
        InUse: another process trains the one expert that is asked for.
        PotstillError: the folder holds experts of another identity, or an expert diverges.
    """
    epochs = tuple(range(expert.epochs + 1)) if keep is None or expert.keep_all else tuple(sorted(keep))
    wanted = range(expert.count) if only is None else range(only, only + 1)
    job = _Job(problem, folder, expert, seed, augment, compile, epochs, wanted)
    files.clear_leftovers(folder)
    while (found := _claim(job)) is not None:
        job, number, lock = found
        if lock is None and only is not None:
            raise InUse(f"{folder}: another process trains expert {number}; wait for it to end.")
        if lock is None:
            yield {**_event(job, number, 0), "doing": "waiting for another process"}
            time.sleep(POLL_SECONDS)
            continue
        try:
            if expert.curriculum and job.order is None:
                yield {**_event(job, number, 0), "doing": "telling easy images from hard ones"}
                job = replace(job, order=_curriculum(job))
            for epoch in _train_one(job, number):
                yield {**_event(job, number, epoch), "epoch": epoch}
        finally:
            lock.release()
    yield {"stage": "experts", "done": len(wanted) * expert.epochs, "total": len(wanted) * expert.epochs}


def _claim(job: _Job) -> tuple[_Job, int, Any | None] | None:
    """The job with the epochs that its folder keeps, the next expert, and a lock on it.

    The lock is None where others train all that are left, the whole None where all are finished.  The folder's identity
    is compared each time: while this process waited, the others may have been killed before they left anything, and the
    folder been taken for other experts.
    """
    with files.locked(job.folder, "preparing experts", wait=60.0):
        job = replace(job, epochs=trajectories.create(job.folder, job.identity, job.epochs))
        missing = [n for n in trajectories.missing(job.folder, job.wanted.stop) if n in job.wanted]
        for number in missing:
            lock = trajectories.claim(job.folder, number)
            if lock is not None:
                return job, number, lock
        return (job, missing[0], None) if missing else None


def _event(job: _Job, number: int, epoch: int) -> dict[str, Any]:
    finished = sum(expert_path(job.folder, n).exists() for n in job.wanted)
    total, done = len(job.wanted) * job.expert.epochs, finished * job.expert.epochs + epoch
    return {"stage": "experts", "done": min(done, total), "total": total, "expert": number}


def _train_one(job: _Job, number: int) -> Iterator[int]:
    """Train one expert from its last checkpoint to its last epoch, and yield each epoch."""
    problem, network, unfinished = job.problem, job.problem.network, partial_path(job.folder, number)
    seed = derive(job.seed, "expert", number)
    first, buffers, snapshots, epoch, before = _resume(job, unfinished, seed)
    gradient = partial(_gradient(job), buffers=buffers)
    targets = one_hot(problem.train.labels, len(problem.dataset.classes))
    began = saved = time.monotonic()
    rows = None if job.order is None else job.order.rows
    for theta in sgd(gradient, first, problem.train.images, targets, _recipe(job), seed, epoch, rows):
        epoch += 1
        _check_finite(job, number, epoch, theta)
        if epoch in job.epochs:
            snapshots[epoch] = (theta.cpu().clone(), buffers.cpu().clone())  # cloned: a view would follow training
        seconds = before + time.monotonic() - began
        if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch < job.expert.epochs:
            header = {"epoch": epoch, "seconds": seconds, "identity": files.fingerprint(job.identity)}
            write_expert(unfinished, IN_TRAINING, snapshots, theta, buffers, header, "float32")
            saved = time.monotonic()
        yield epoch
    accuracy = flat.accuracy(network, theta, problem.val.images, problem.val.labels, buffers)
    kept = {e: snapshot for e, snapshot in snapshots.items() if e in job.epochs}
    header = {
        "epoch": epoch, "seconds": before + time.monotonic() - began, "accuracy": accuracy,
        "identity": files.fingerprint(job.identity),
    }  # fmt: skip
    write_expert(expert_path(job.folder, number), "expert", kept, theta, buffers, header, job.expert.storage)
    unfinished.unlink(missing_ok=True)


def _resume(job: _Job, unfinished: Path, seed: int) -> tuple[Tensor, Tensor, Snapshots, int, float]:
    """Parameters, running statistics, snapshots, epochs done and seconds spent, from the last checkpoint or afresh."""
    network, device = job.problem.network, job.problem.device
    if unfinished.exists():
        try:
            tensors, header = files.read_tensors(unfinished, IN_TRAINING)
            if header.get("identity", files.fingerprint(job.identity)) != files.fingerprint(job.identity):
                raise PotstillError("it comes from another folder")
            snapshots = {e: (tensors["theta"][i], tensors["buffers"][i]) for i, e in enumerate(header["epochs"])}
            theta, buffers = tensors["last"].to(device), tensors["last_buffers"].to(device)
            return theta, buffers, snapshots, header["epoch"], header["seconds"]
        except (PotstillError, KeyError, IndexError) as error:  # 0.1.0 wrote no checksums
            logger.warning("%s: this expert is trained from its first epoch again (%s)", unfinished, error)
    theta, buffers = network.fresh(seed), network.initial_buffers()
    return theta, buffers, {0: (theta.cpu().clone(), buffers.cpu().clone())}, 0, 0.0


def _recipe(job: _Job) -> Recipe:
    expert = job.expert
    return Recipe(
        expert.epochs, expert.batch_size, expert.step_size, rho=expert.rho, alpha=expert.alpha, augment=job.augment
    )  # fmt: skip


def _curriculum(job: _Job) -> Curriculum:
    """The order of the images; what each of the networks that tell it has found is kept."""
    recipe, gradient = replace(_recipe(job), epochs=curriculum.EPOCHS, rho=0.0), _gradient(job)

    def errors_of(number: int) -> Tensor:
        seed = derive(job.seed, "curriculum", number)
        asked = ["curriculum", curriculum.VERSION, subject(job.problem), vars(recipe), seed]
        made, _ = once("scores", asked, lambda: ({"score": curriculum.errors(job.problem, gradient, recipe, seed)}, {}))
        return made["score"]

    hardness = torch.stack([errors_of(number) for number in range(curriculum.NETWORKS)]).mean(0)
    return curriculum.easy_first(hardness, job.problem.train.labels, job.expert.epochs)


def _gradient(job: _Job) -> engine.TrainingGradient:
    expert, problem = job.expert, job.problem
    images = expert.count * expert.epochs * len(problem.train.labels)
    return engine.training_gradient(problem.network, problem.dataset.shape, expert.batch_size, images, job.compile)


def _check_finite(job: _Job, number: int, epoch: int, theta: Tensor) -> None:
    if not torch.isfinite(theta).all():
        raise PotstillError(
            f"expert {number} diverged in epoch {epoch}: its weights are not finite; lower --expert.step-size (now "
            f"{job.expert.step_size:g}) or --expert.rho (now {job.expert.rho:g})."
        )
