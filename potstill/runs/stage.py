"""Distilling, stage after stage: begin, measure what is open, iterate, choose the best set, leave checkpoints.

Of several processes the first begins and measures, and writes; what it has decided the others take from its files.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from potstill import files, ranks
from potstill.data.distilled import FILE, Distilled, load
from potstill.errors import Diverged, PotstillError
from potstill.evaluation import tuning
from potstill.evaluation.evaluator import Evaluator, Event, training_set_of, validation_accuracy
from potstill.evaluation.protocol import EvaluationConfig, Protocol, selecting
from potstill.machine import peak_memory
from potstill.methods.method import Begun, Context, Method, Start, Trial
from potstill.runs import loop, record, snapshots, state
from potstill.runs.run import Run
from potstill.runs.settings import Settings, as_dict, check_pictures, settled
from potstill.runs.state import Log, State

CHECKPOINT = "checkpoint.safetensors"
logger = logging.getLogger(__name__)


@dataclass
class Session:
    """One session of distilling: what changes while it goes on."""

    run: Run
    evaluator: Evaluator
    log: Log
    state: State | None = None  # none before the first stage has begun
    saved: float = field(default_factory=time.monotonic)  # when the last checkpoint was written

    @property
    def settings(self) -> Settings:
        """Those of the run, with what its stages have measured so far."""
        return settled(self.run.settings, self.log.measured)

    def checkpoint(self) -> None:
        """Write a checkpoint; of several processes the first does."""
        if self.state is None or not ranks.first():
            return
        peak = max(self.log.peak_memory_bytes, peak_memory(self.run.problem.device))
        self.log = replace(self.log, peak_memory_bytes=peak)
        self.state.save(self.run.folder / CHECKPOINT, {"log": dataclasses.asdict(self.log)})
        self.saved = time.monotonic()

    def due(self, times: int) -> bool:
        """Whether the state is one of so many that are evenly spaced over all iterations."""
        assert self.state is not None
        total, done = self.run.settings.iterations, self.state.total
        return times > 0 and (done == total or done % math.ceil(total / times) == 0)

    def evaluation_due(self) -> bool:
        """Whether the state is one of those that are evaluated, or the start, and was not yet."""
        assert self.state is not None
        done, times = self.state.total, self.run.settings.evaluations
        if not times or any(entry["iteration"] == done for entry in self.log.evaluated):
            return False
        return done == 0 or self.due(times)


def check_start(run: Run) -> None:
    """Refuse to go on towards a first stage that could not begin; to be called before hours of training experts.

    Raises:
        PotstillError: the set on disk that it would begin with is not there, or does not fit what is asked for.
    """
    path, begun = run.settings.start, (run.folder / CHECKPOINT).exists()
    if path is not None and not begun and ranks.first():
        _from_disk(run, path)


def distil(run: Run) -> Generator[Event, None, Distilled]:
    """Distil from the last checkpoint, or from the start; a checkpoint is left however this ends.

    The set is evaluated ``evaluations`` times, evenly spaced and at the start, on validation images (on test images
    under the protocol ``paper``); the best one is the result.  Without any evaluation the last one is.

    Raises:
        Diverged: a method made no progress.
        PotstillError: the checkpoint comes from other experts.
    """
    session = _resume(run)
    try:
        for number in range(session.state.stage if session.state else 0, len(run.settings.stages)):
            yield from _distil_stage(session, number)
    finally:
        session.checkpoint()
        _keep_unseen(session)
    return (yield from _with_step_size(session))


def selected(run: Run) -> Distilled:
    """The set of a selection as it is, without evaluating it."""
    session = _resume(run)
    _begin(session, run.settings.methods[0], run.context(0), 0)
    return as_distilled(session)


def _resume(run: Run) -> Session:
    """The session from the last checkpoint on, or from the start.

    Raises:
        PotstillError: the checkpoint comes from other experts (the differing fields are named).
    """
    checkpoint, evaluation, experts = run.folder / CHECKPOINT, run.settings.evaluation, None
    if run.experts is not None:
        experts = files.plain({**run.experts.identity, "count": run.settings.expert.count})
    reached, log = None, Log(experts, dataclasses.asdict(selecting(evaluation)), evaluation.step_size)
    if checkpoint.exists():
        reached, header = state.load_state(checkpoint, run.problem.device)
        log = Log(**{**header["log"], "evaluated": tuple(header["log"]["evaluated"])})
        if lines := files.differences(log.experts or {}, experts or {}):
            raise PotstillError(
                f"{run.folder}: was begun with other experts: {'; '.join(lines)}. Give the same --experts, or another "
                "--out."
            )
        if not (run.folder / FILE).exists() and log.evaluated:
            logger.warning(
                "%s: is gone; the last state is evaluated and written again, whatever came before it", run.folder / FILE
            )
            log = replace(log, evaluated=())
    if ranks.first():
        record.truncate_metrics(run.folder / record.METRICS, reached.total if reached else 0)
    ranks.wait()  # until all have read, what will be written over
    return Session(run, run.evaluator(Protocol(**log.protocol)), log, reached)


def _distil_stage(session: Session, number: int) -> Generator[Event, None, None]:
    """One stage, from its begin or from where the session's state is."""
    run, method = session.run, session.run.settings.methods[number]
    ctx = run.context(number)
    if session.state is None or session.state.stage < number:
        if ranks.first():
            _begin(session, method, ctx, number)
        _take_state_of_first(session)
    assert session.state is not None
    asked = run.settings.stages[number]
    yield from _evaluate_if_due(session)  # the start, or what an interruption cut short
    if session.state.iteration == 0 and method.open_fields(asked):
        yield from _measure(session, method, ctx, asked)
        yield from _evaluate_if_due(session)
    for reached, metrics in loop.iterate(method, ctx, session.settings.stages[number], session.state):
        if ranks.first():
            files.append_json(run.folder / record.METRICS, {"stage": method.name, **metrics})
        session.state = reached
        if session.due(run.settings.snapshots):
            _snapshot(session)
        yield from _evaluate_if_due(session)
        if time.monotonic() - session.saved > run.settings.checkpoint_seconds:
            session.checkpoint()
        seen = {"validation": session.log.evaluated[-1]} if session.log.evaluated else {}
        yield {**_progress(session), **metrics, **seen}
    in_vain = session.state.refused + session.state.undone
    if 0 < session.state.iteration == in_vain:
        logger.warning(
            "%s: none of its %d iterations was stepped on, their losses were above the threshold or not finite: the "
            "set is still its start. Give more iterations, or other settings.", method.name, in_vain,
        )  # fmt: skip


def _begin(session: Session, method: Method, ctx: Context, number: int) -> None:
    """Begin a stage: the first one with the method's own set, the others with that of the stage before."""
    run, stages, before = session.run, session.settings.stages, session.state
    start = None
    if before is not None:
        start = state.as_start(before, run.settings.methods[number - 1], stages[number - 1])
    elif run.settings.start is not None:
        start = _from_disk(run, run.settings.start)
    session.state = state.begin(method, stages[number], method.begin(ctx, stages[number], start), before)
    if before is None:
        images = {"images": session.state.variables["images"]}
        files.write_tensors(run.folder / "start.safetensors", "start", images, {})
        if run.settings.snapshots:
            _snapshot(session)


def _take_state_of_first(session: Session) -> None:
    """Where there are several processes, all go on from a checkpoint of the first: computed twice, on two devices, a
    state may differ in its last bits.
    """
    if ranks.world() == 1:
        return
    session.checkpoint()
    ranks.wait()
    if not ranks.first():
        session.state, _ = state.load_state(session.run.folder / CHECKPOINT, session.run.problem.device)


def _from_disk(run: Run, path: str) -> Start:
    """A distilled set as the first stage begins with it.

    Raises:
        PotstillError: it is not there, or of other data, another transform, another size or other pictures a slot.
    """
    found, device = load(path, run.problem.dataset), run.problem.device
    mine = {
        "dataset": run.problem.dataset.fingerprint, "transform": run.problem.transform.kind,
        "images per class": run.settings.ipc,
    }  # fmt: skip
    theirs = {
        "dataset": found.provenance["dataset"]["fingerprint"], "transform": found.transform.kind,
        "images per class": len(found) // len(found.classes),
    }  # fmt: skip
    if lines := files.differences(theirs, mine):
        raise PotstillError(
            f"{path}: does not fit what is asked for in {'; '.join(lines)}. Give the data, --transform and --ipc that "
            "it was made with."
        )
    targets = None if found.targets is None else found.targets.to(device)
    wanted = run.settings.methods[0].pictures(run.settings.stages[0])
    check_pictures(run.settings.methods[0].name, found.pictures, wanted, path)
    return Start(found.images.to(device), targets, found.kind, found.labels.to(device), found.step_size, found.pictures)


def _snapshot(session: Session) -> None:
    assert session.state is not None
    if ranks.first():
        snapshots.keep(session.run.folder, as_distilled(session), session.state.total)


def _progress(session: Session) -> Event:
    assert session.state is not None
    return {"stage": "distilling", "done": session.state.total, "total": session.run.settings.iterations}


# --- measuring -----------------------------------------------------------------------------------------------------


def _measure(session: Session, method: Method, ctx: Context, asked: Any) -> Generator[Event, None, None]:
    """Let the method find what is open; its settings and the state of the best trial become the session's.

    Of several processes the first measures, and the others run its trials with it.
    """
    run, reached = session.run, session.state
    assert reached is not None
    if ranks.first():
        found = session.log.measured.setdefault(method.name, {"seconds": 0.0})
        begun = Begun(reached.variables, reached.labels, reached.memory, reached.rows)
        trial, alone = _trial(session, method, ctx), replace(ctx, rank=0, world=1)
        assert method.measure is not None
        settings, best = yield from method.measure(alone, asked, begun, trial, found, session.checkpoint)
        found["settings"] = dataclasses.asdict(settings)
        ranks.from_first((best, found))
    else:
        best, session.log.measured[method.name] = _run_trials(session, method, ctx)
    if best is not None:
        winner, _ = state.load_state(_trial_file(run, method, *best), run.problem.device)
        session.state = replace(winner, seconds=reached.seconds)  # the trials' time is counted with the measuring
    session.checkpoint()


def _trial(session: Session, method: Method, ctx: Context) -> Trial:
    """Some iterations from the stage's start, in a file of their own, evaluated on validation images."""
    run, start = session.run, session.state
    assert start is not None

    def trial(settings: Any, begun: Begun, arm: int, rung: int, iterations: int) -> tuple[list[float], float]:
        path = _trial_file(run, method, arm, rung)
        if rung:
            reached, _ = state.load_state(_trial_file(run, method, arm, rung - 1), run.problem.device)
        else:
            fresh = state.begin(method, settings, begun)
            counts = {name: getattr(start, name) for name in state.COUNTS}
            reached = replace(fresh, **{**counts, "seconds": 0.0})
        if ranks.world() > 1:
            reached.save(path, {})
            ranks.from_first((settings, path, iterations))
        return _run_trial(session, method, ctx, settings, reached, path, iterations)

    return trial


def _run_trial(
    session: Session, method: Method, ctx: Context, settings: Any, reached: State, path: Path, iterations: int
) -> tuple[list[float], float]:  # fmt: skip
    """Losses of some iterations, and the accuracy then; their state is written to ``path``."""
    losses: list[float] = []
    try:
        going = loop.iterate(method, ctx, settings, replace(reached, in_a_row=0))
        for next_state, metrics in islice(going, iterations):
            reached = next_state
            losses.append(metrics["loss"])
        distilled, evaluator = as_distilled(replace(session, state=reached)), session.evaluator
        training_set = training_set_of(distilled, evaluator.config, session.run.problem.device)
        accuracy = validation_accuracy(evaluator, training_set)
    except Diverged:  # again and again: these settings are not for this set
        accuracy = 0.0
    if ranks.first():
        reached.save(path, {})
    return losses, accuracy


def _run_trials(session: Session, method: Method, ctx: Context) -> tuple[tuple[int, int] | None, dict[str, Any]]:
    """Run the trials of the process that measures, to the end; the best one's arm and rung, and the record of all."""
    while len(asked := ranks.from_first()) == 3:
        settings, path, iterations = asked
        reached, _ = state.load_state(path, session.run.problem.device)
        _run_trial(session, method, ctx, settings, reached, path, iterations)
    return asked


def _trial_file(run: Run, method: Method, arm: int, rung: int) -> Path:
    return run.folder / f"measured-{method.name}" / f"arm{arm}-rung{rung}.safetensors"


# --- choosing ------------------------------------------------------------------------------------------------------


def _evaluate_if_due(session: Session) -> Generator[Event, None, None]:
    """Evaluate the state where it is due and was not yet; write it as the run's set if none before was better.

    Where networks shall train with a step size that is chosen, they do so here: with the learned one, a set that wants
    smaller steps would look worse than it is.
    """
    assert session.state is not None
    if not session.evaluation_due():
        return
    settings, done = session.run.settings, session.state.total
    began, distilled = time.monotonic(), as_distilled(session)
    tried = yield from tuning.try_step_sizes(session.evaluator, distilled, session.log.step_size, _progress(session))
    split = session.evaluator.protocol.selection
    found = tuning.with_best(distilled, tried, chosen_on=split)
    accuracy = found.provenance["chosen_with_accuracy"]
    best = all(accuracy >= earlier["accuracy"] for earlier in session.log.evaluated)
    if (settings.keep == "last" or best) and ranks.first():
        found.save(session.run.folder / FILE)
    searches = sum(measured["seconds"] for measured in session.log.measured.values())
    spent = session.state.seconds + searches
    entry = {"iteration": done, "accuracy": accuracy, "on": split, "seconds": spent}
    seconds = session.log.evaluation_seconds + time.monotonic() - began
    session.log = replace(session.log, evaluated=(*session.log.evaluated, entry), evaluation_seconds=seconds)


def _keep_unseen(session: Session) -> None:
    """Write the last state as the run's set where none is evaluated, unless it is there, with its step size perhaps."""
    path = session.run.folder / FILE
    if session.run.settings.evaluations or session.state is None or not ranks.first():
        return
    if not path.exists() or load(path).provenance["iteration"] != session.state.total:
        as_distilled(session).save(path)


def as_distilled(session: Session) -> Distilled:
    """The session's state as a set, with its provenance."""
    run, reached, settings = session.run, session.state, session.settings
    assert reached is not None
    start = state.as_start(reached, settings.methods[reached.stage], settings.stages[reached.stage])
    # which is no part of what the set is
    without_machine = replace(settings, device="auto", compile="auto", evaluation=EvaluationConfig())
    return Distilled(
        images=start.images,
        targets=start.targets,
        kind=start.kind,
        labels=reached.labels,
        step_size=start.step_size,
        rows=reached.rows,
        pictures=settings.methods[reached.stage].pictures(settings.stages[reached.stage]),
        transform=run.problem.transform,
        classes=run.problem.dataset.classes,
        recipe={"network": dataclasses.asdict(run.problem.network_config), "augment": list(settings.augment)},
        provenance={
            "config": as_dict(without_machine),
            "dataset": {"name": run.problem.dataset.name, "fingerprint": run.problem.dataset.fingerprint},
            "experts": session.log.experts,
            "iteration": reached.total,
        },
    )


def _with_step_size(session: Session) -> Generator[Event, None, Distilled]:
    """The run's set with the step size to train with: the learned one, or one chosen on validation images."""
    path, wanted = session.run.folder / FILE, session.run.settings.evaluation.step_size
    ranks.wait()  # until the first has written
    before = load(path)
    distilled = yield from tuning.choose_step_size(session.evaluator, before, wanted, _progress(session))
    if distilled is not before and ranks.first():
        distilled.save(path)
    return distilled
