"""What a run would cost, from a few timed steps of each stage on this machine."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import machine
from potstill.adjoint import engine
from potstill.data.labels import one_hot
from potstill.evaluation import tuning
from potstill.evaluation.protocol import Protocol, protocol_of, selecting
from potstill.machine import timed
from potstill.methods import initial
from potstill.methods.method import Begun, Context, Experts, Method, Probe, Start
from potstill.runs import loop, state
from potstill.runs.run import Run, check_snapshots, expert_needs, expert_recipe, inner_engine
from potstill.runs.settings import Settings
from potstill.training import curriculum
from potstill.training.problem import Problem
from potstill.training.sgd import Recipe, run_to_end, sgd
from potstill.training.trajectories import Trajectories

EXPERTS_TIMED = 2  # untrained ones that a timed iteration follows


def forecast(settings: Settings) -> dict[str, Any]:
    """Seconds, bytes on disk and peak bytes of memory of each stage of a run.

    Each stage is run for a few steps, after a first one that does not count, and its time is multiplied out.  What is
    already kept from earlier runs (controls, experts) is not subtracted.
    """
    run = Run(settings, Path("."), Path("."))
    needed = expert_needs(settings)
    if needed is not None:
        check_snapshots(needed, None, settings.expert.epochs, "expert")
    stages = [distilling(run, number) for number in range(len(settings.stages))]
    expert_seconds, expert_bytes = _experts(run, needed) if needed is not None else (0.0, 0)
    values = settings.ipc * len(run.problem.dataset.classes) * (run.problem.train.images[0].numel() + 1)
    transform = sum(tensor.numel() for tensor in run.problem.transform.tensors().values())
    return {
        "seconds": {
            "experts": expert_seconds,
            "distilling": sum(stage.seconds for stage in stages) + _choosing(run),
            "evaluation": _evaluating(run),
        },
        "disk_bytes": {
            "experts": expert_bytes,  # and below: state, moments, previous state; the set
            "distilling": 4 * (4 * values + transform) + max((stage.memory_bytes for stage in stages), default=0),
        },
        "memory_bytes": machine.peak_memory(run.problem.device) + max(stage.held_bytes for stage in stages),
        "device": str(run.problem.device),
        "engine": stages[0].engine,
    }


@dataclass(frozen=True)
class Cost:
    """Of one stage of distilling."""

    each: float  # seconds of an iteration
    trial: float  # seconds of evaluating a set while measuring
    seconds: float  # of all
    held_bytes: int  # in working memory, beyond what the timed iteration held
    memory_bytes: int  # of the method's memory in a checkpoint
    engine: str
    compiled: bool = False  # as a job of so many iterations is

    def measuring(self, probe: Probe) -> float:
        """Seconds beside the iterations, of finding what the settings leave open."""
        return self.each * probe.measuring + self.trial * probe.trials


def distilling(run: Run, number: int) -> Cost:
    """A cheaper iteration of the method, timed and multiplied out."""
    settings, method = run.settings, run.settings.methods[number]
    stage = settings.stages[number]
    derivatives, micro_batch = inner_engine(settings, run.problem, number)
    precision = str(run.problem.network.precision).removeprefix("torch.")
    how = f"inner steps {'compiled' if derivatives.compiled else 'plain'}, in {precision}"
    if method.loss is None or method.probe is None:
        return Cost(0.0, 0.0, 0.0, 0, 0, "nothing is learned" if method.loss is None else how)
    probe = method.probe(stage)
    ctx = Context(
        run.problem, settings.ipc, settings.seed, settings.augment, derivatives, micro_batch,
        _Untrained(Path("."), {}, (), (), 0.0, run.problem), EXPERTS_TIMED,
    )  # fmt: skip
    begun = _any_set(ctx, method, probe.settings)
    start = state.begin(method, probe.settings, begun)
    each = timed(lambda: _iterate(method, ctx, probe, start), run.problem.device) / len(probe.timed)
    weights = 4 * sum(run.problem.network.sizes)
    memory = sum(tensor.numel() * tensor.element_size() for tensor in begun.memory.values())
    protocol = selecting(settings.evaluation)
    trial = protocol.seeds * _training_on_set(run, protocol) if probe.trials else 0.0
    cost = Cost(each * probe.times, trial, 0.0, probe.vectors * weights, memory, how, derivatives.compiled)
    return replace(cost, seconds=cost.each * method.iterations(stage) + cost.measuring(probe))


def _iterate(method: Method, ctx: Context, probe: Probe, start: state.State) -> None:
    """The iterations that are timed, of a set that stays as it is: each remembers what the one before left."""
    memory = start.memory
    for iteration in probe.timed:
        outcome, _ = loop.differentiate(method, ctx, probe.settings, replace(start, memory=memory, iteration=iteration))
        memory = outcome.memory


def _any_set(ctx: Context, method: Method, settings: Any) -> Begun:
    """Some set of the method's form, where only its size matters."""
    labels = initial.labels_in_order(ctx)
    rows = torch.arange(len(labels), device=labels.device) % len(ctx.problem.train.labels)
    images, pictures = ctx.problem.train.images[rows], method.pictures(settings)
    return method.begin(ctx, settings, Start(images, None, "hard", labels, 0.01, pictures))


@dataclass(frozen=True)
class _Untrained(Trajectories):
    """Experts that were never trained: what it costs to follow them is the same."""

    problem: Problem | None = None

    def segment(self, expert: int, start: int, span: int) -> tuple[Tensor, Tensor]:
        """Two snapshots (P,) apart."""
        assert self.problem is not None
        return self.problem.network.fresh(2 * expert), self.problem.network.fresh(2 * expert + 1)

    def snapshot(self, expert: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) and running statistics (B,)."""
        assert self.problem is not None
        return self.problem.network.fresh(2 * expert), self.problem.network.initial_buffers()

    def last(self, expert: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) and running statistics (B,)."""
        return self.snapshot(expert, 0)


def _experts(run: Run, needed: Experts) -> tuple[float, int]:
    """Seconds and bytes of training all experts."""
    real, expert = len(run.problem.train.labels), expert_recipe(run.settings, needed)
    epochs: float = expert.count * expert.epochs
    if expert.curriculum:
        epochs = epochs * curriculum.mean_part(expert.epochs) + curriculum.NETWORKS * curriculum.EPOCHS
    step = _training_step(run, expert.batch_size, epochs * real, expert.rho)
    kept = expert.epochs + 1 if needed.epochs is None or expert.keep_all else len({*needed.epochs, expert.epochs})
    width = 2 if expert.storage == "float16" else 4
    bytes_ = expert.count * kept * sum(run.problem.network.sizes) * width
    return step * epochs * -(-real // expert.batch_size), bytes_


def sets_evaluated(settings: Settings) -> int:
    """Evaluations on validation images while distilling: of each set by every step size that may be tried."""
    chosen = settings.evaluation.step_size == "chosen"
    sets = settings.evaluations + 1 if settings.evaluations else int(chosen)
    return sets * (len(tuning.TRIED_FRACTIONS + tuning.SMALLER_FRACTIONS) if chosen else 1)


def _choosing(run: Run) -> float:
    """Seconds of evaluating sets on validation images while distilling."""
    protocol = selecting(run.settings.evaluation)
    return sets_evaluated(run.settings) * protocol.seeds * _training_on_set(run, protocol)


def _evaluating(run: Run) -> float:
    """Seconds of the final figures: the set, two controls of its size, and the full set."""
    settings, real = run.settings, len(run.problem.train.labels)
    protocol = protocol_of(settings.evaluation)
    networks = protocol.seeds if settings.evaluation.full_seeds is None else settings.evaluation.full_seeds
    step = _training_step(run, protocol.batch_size, protocol.full_epochs * real * networks) if networks else 0.0
    full = step * -(-real // protocol.batch_size) * protocol.full_epochs
    sets = _training_on_set(run, protocol) + 2 * _training(run, protocol, 1)
    return protocol.seeds * sets + networks * full


def _training_on_set(run: Run, protocol: Protocol) -> float:
    """Seconds of training one network on the distilled set."""
    return _training(run, protocol, run.settings.methods[-1].pictures(run.settings.stages[-1]) ** 2)


def _training(run: Run, protocol: Protocol, pictures: int) -> float:
    """Seconds of training one network on a set of so many pictures a slot."""
    n = run.settings.ipc * len(run.problem.dataset.classes) * pictures
    step = _training_step(run, min(n, protocol.batch_size), protocol.epochs * n * protocol.seeds)
    return step * protocol.epochs * -(-n // protocol.batch_size)


def _training_step(run: Run, batch: int, images_in_all: float, rho: float = 0.0) -> float:
    """Seconds of one SGD step on real images, in a job that sees so many of them."""
    problem, split = run.problem, run.problem.train
    images, labels = split.images[:batch], split.labels[:batch]
    theta = problem.network.fresh(0)
    recipe = Recipe(1, batch, 0.01, rho=rho, augment=run.settings.augment)
    targets = one_hot(labels, len(problem.dataset.classes))
    gradient = engine.training_gradient(
        problem.network, problem.dataset.shape, batch, images_in_all, run.settings.compile
    )  # fmt: skip
    return timed(lambda: run_to_end(sgd(gradient, theta, images, targets, recipe, 0), theta), problem.device)
