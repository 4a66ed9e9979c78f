"""What a comparison consists of: experts → sets → figures, each a task with a content address and a record.

STORE/
  budgets/KEY.json                    iterations that fill so many minutes, where that is asked for
  experts/KEY/expert-NN.safetensors   an expert is finished when its file exists
  sets/KEY/                           a run, resumable; it is finished when set.json exists
  figures/KEY.json                    the accuracy of one network
  failures/KEY.json                   why a task ended otherwise; gone when it is tried again

A key is a fingerprint of all that the result depends on, resolved to numbers.  So whoever needs the same result finds
it by the same name, in another comparison or in another process, and nothing central is ever updated.
"""

import contextlib
import functools
import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from potstill import files, store
from potstill.adjoint import engine
from potstill.data.distilled import FILE, Distilled, load
from potstill.errors import Diverged, InUse, PotstillError
from potstill.evaluation import controls, tuning
from potstill.evaluation.controls import Series
from potstill.evaluation.evaluator import Evaluator, Event, TrainingSet, evaluator_for, training_set_of
from potstill.evaluation.protocol import EvaluationConfig, protocol_of, selecting
from potstill.machine import environment
from potstill.networks.architectures import NetworkConfig
from potstill.runs import record, stage
from potstill.runs import run as runs
from potstill.runs.settings import Settings, as_dict, fixed_fields, settled
from potstill.studies.remedies import in_comparison
from potstill.training import experts
from potstill.training.experts import ExpertConfig
from potstill.training.problem import Problem
from potstill.training.trajectories import expert_path

HELD = "in the hands of another process"  # how a task ended that may be tried again
FULL = "full"  # in place of a set's key: all training images
SET = "set.json"
logger = logging.getLogger(__name__)


class Task(Protocol):
    """A piece of work that any process can do, once what it needs is there."""

    @property
    def key(self) -> str:
        """What its result is called; unlike that of every other task."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the tasks that come before."""

    @property
    def label(self) -> str:
        """What people call it."""

    @property
    def kind(self) -> str:
        """What it has in common with tasks that take about as long."""

    def done(self, folder: Path) -> bool:
        """Whether its result is in the store."""

    def perform(self, folder: Path) -> Generator[Event, None, None]:
        """Do it, continuing what was begun, and leave the result in the store.

        Raises:
            InUse: another process does it now.
        """


# --- experts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertTask:
    """Training one expert, of which every snapshot is kept."""

    settings: Settings  # with the radius that the method needs; its seed is the experts'
    store_key: str  # of the folder that holds it and those like it
    number: int

    @property
    def key(self) -> str:
        """Folder and number."""
        return f"{self.store_key}-{self.number:02d}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def label(self) -> str:
        """Its number."""
        return f"expert {self.number}"

    @property
    def kind(self) -> str:
        """An expert."""
        return "expert"

    def done(self, folder: Path) -> bool:
        """Its file exists."""
        return expert_path(experts_folder(folder, self.store_key), self.number).exists()

    def perform(self, folder: Path) -> Generator[Event, None, None]:
        """Train it."""
        settings = self.settings
        yield from experts.train(
            problem_of(settings), experts_folder(folder, self.store_key), settings.expert, seed=settings.seed,
            augment=settings.augment, compile=settings.compile, only=self.number,
        )  # fmt: skip


def expert_tasks(settings: Settings, seed: int) -> list[ExpertTask]:
    """The experts that some settings need, all trained by one seed; none where no method needs any."""
    needed = runs.expert_needs(settings)
    if needed is None:
        return []
    expert = runs.expert_recipe(settings, needed)
    runs.check_snapshots(needed, None, expert.epochs, "expert")
    own = replace(settings, expert=replace(expert, keep_all=True), seed=seed)
    problem = problem_of(settings)
    key = _key("experts", problem, experts.identity(expert, problem, seed, settings.augment))
    return [ExpertTask(own, key, number) for number in range(expert.count)]


def experts_folder(folder: Path, key: str) -> Path:
    """Where the experts of a key lie."""
    return folder / "experts" / key


# --- sets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetTask:
    """Distilling one set, or selecting it."""

    settings: Settings
    key: str
    experts: tuple[ExpertTask, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Its experts."""
        return tuple(task.key for task in self.experts)

    @property
    def label(self) -> str:
        """Methods, size and seed."""
        return f"{'+'.join(self.settings.method)}, {self.settings.ipc} per class, set {self.settings.seed}"

    @property
    def kind(self) -> str:
        """A set that is learned, or one that is selected."""
        return f"set, {'learned' if self.settings.iterations else 'selected'}"

    def done(self, folder: Path) -> bool:
        """Its record exists."""
        return (set_folder(folder, self.key) / SET).exists()

    def perform(self, folder: Path) -> Generator[Event, None, None]:
        """Distil it in a run's folder; what diverges leaves the last set that was kept before, and says so."""
        own = set_folder(folder, self.key)
        store_key = self.experts[0].store_key if self.experts else "none"
        with files.locked(own, "a set"):
            if self.done(folder):  # another process has made it meanwhile
                return
            if (own / runs.CONFIG).exists():  # as the key vouches: where the data lie may have changed since
                runs.write_config(self.settings, own)
            run = runs.open_run(self.settings, own, experts_folder(folder, store_key))
            diverged = None
            try:
                distilled = yield from stage.distil(run)
            except Diverged as error:
                diverged, distilled = in_comparison(error), load(own)
            files.write_json(own / SET, self._record(run, distilled, diverged))

    def _record(self, run: runs.Run, distilled: Distilled, diverged: str | None) -> dict[str, Any]:
        header, log = record.history(run.folder)
        spent, provenance = record.spent(header, log, distilled), distilled.provenance
        return files.stamped({
            "label": self.label, "diverged": diverged, "images": len(distilled),
            "bytes": sum(x.numel() * x.element_size() for x in (distilled.images, distilled.targets) if x is not None),
            "seconds": {
                "distilling": spent.distilling, "choosing": spent.choosing,
                "experts": None if run.experts is None else run.experts.seconds,
            },
            "iterations": spent.iterations, "chosen": provenance["iteration"],
            "validation": provenance.get("chosen_with_accuracy"), "step_size": distilled.step_size,
            "peak_memory_bytes": record.peak(log, run.problem.device),
            "config": as_dict(settled(run.settings, log["measured"])),
            "environment": environment(run.problem.device),
        })  # fmt: skip


def set_task(settings: Settings, before: list[ExpertTask]) -> SetTask:
    """The task of distilling by some settings, with experts that are trained before."""
    fixed = {name: value for name, value in fixed_fields(settings).items() if name not in ("dataset", "expert")}
    choosing: list[Any] = [vars(selecting(settings.evaluation)), settings.evaluation.step_size]
    choosing += [tuning.SMALLER_FRACTIONS] if settings.evaluation.step_size == "chosen" else []
    following = [before[0].store_key, len(before)] if before else None
    return SetTask(settings, _key("set", problem_of(settings), fixed, choosing, following), tuple(before))


def _key(kind: str, problem: Problem, *identity: Any) -> str:
    """A fingerprint of what a task depends on, of the data and of how they are computed with."""
    computed = [controls.NUMERICS, str(problem.network.precision), problem.device.type]
    return files.fingerprint(kind, problem.dataset.fingerprint, computed, files.plain(list(identity)))


def set_folder(folder: Path, key: str) -> Path:
    """Where a set lies, in the folder of its run."""
    return folder / "sets" / key


# --- figures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureTask:
    """Training one network on a set, or on all training images, and testing it."""

    settings: Settings  # those of the set, and how it is evaluated
    network: NetworkConfig
    made_from: SetTask | None  # None: all training images
    number: int  # of the network, counted over the sets of a row, so that no two share their draws

    @functools.cached_property
    def key(self) -> str:
        """Fingerprint of set, network, protocol and number."""
        return files.fingerprint(files.plain(self._identity))

    @functools.cached_property
    def _identity(self) -> list[Any]:
        who = evaluator_of(self.settings, self.network)
        key = FULL if self.made_from is None else self.made_from.key
        return ["figure", *controls.common_identity(who), self._epochs, key, self.number]

    @property
    def needs(self) -> tuple[str, ...]:
        """Its set."""
        return () if self.made_from is None else (self.made_from.key,)

    @property
    def label(self) -> str:
        """Set, network and number."""
        trained_on = "all images" if self.made_from is None else self.made_from.label
        return f"{trained_on}: {self.network.name} {self.number}"

    @property
    def kind(self) -> str:
        """A network on sets of one size, or on all images."""
        return f"{self.network.name} on {'all' if self.made_from is None else self.settings.ipc}"

    @property
    def _epochs(self) -> int:
        protocol = protocol_of(self.settings.evaluation)
        return protocol.full_epochs if self.made_from is None else protocol.epochs

    def done(self, folder: Path) -> bool:
        """Its record can be read."""
        return accuracy_of(folder, self.key) is not None

    def perform(self, folder: Path) -> Generator[Event, None, None]:
        """Train and test it; kept accuracies of the same network are taken."""
        yield {"stage": "evaluation", "done": 0, "total": 1, "set": self.label}
        store.once_json("figures", self._identity, lambda: self._found(folder), folder, wait=False)

    def _found(self, folder: Path) -> dict[str, Any]:
        who = evaluator_of(self.settings, self.network)
        series = Series(self.label, 1, self._epochs, *self._trained_on(folder, who))
        found = controls.network_accuracy(who, series, self.number)
        return {
            "accuracy": found.accuracy, "seconds": found.seconds, "confusion": found.confusion,
            "protocol": vars(who.protocol), "network": vars(who.config),
        }  # fmt: skip

    def _trained_on(self, folder: Path, who: Evaluator) -> tuple[list[Any], Any]:
        """What the network trains on: its identity, and a function that gives it."""
        if self.made_from is None:
            return [FULL], lambda number: controls.full_set(who.problem)
        distilled = load(set_folder(folder, self.made_from.key) / FILE)
        found: TrainingSet = training_set_of(distilled, who.config, who.problem.device)
        return controls.identity_of(found), lambda number: found


def figure_path(folder: Path, key: str) -> Path:
    """Where a figure's record lies."""
    return store.json_path(folder, "figures", key)


def accuracy_of(folder: Path, key: str) -> float | None:
    """The accuracy of a figure's network; None where it is not known yet, or its record is damaged."""
    found = store.known_json("figures", key, folder)
    return None if found is None else float(found["accuracy"])


# --- what they share -----------------------------------------------------------------------------------------------


def perform(task: Task, folder: Path) -> Generator[Event, None, str | None]:
    """Do a task unless it is done; what goes wrong is returned as a sentence, and stops nothing.

    What another process does now is left to it, and HELD returned: it is not waited for.
    """
    failed = failure_path(folder, task.key)
    failed.unlink(missing_ok=True)
    if task.done(folder):
        return None
    try:
        yield from task.perform(folder)
        if not task.done(folder):
            return f"{folder}: its result could not be written"
        failed.unlink(missing_ok=True)  # another process may have failed at it meanwhile
        return None
    except InUse:
        return HELD
    except Exception as error:  # of any kind: the other rows do not suffer by it
        told = in_comparison(error).splitlines()[0] if str(error) else type(error).__name__
        logger.info("%s: %s", task.label, told, exc_info=True)
        return told


def failure_path(folder: Path, key: str) -> Path:
    """Where it stands why a task failed."""
    return store.json_path(folder, "failures", key)


def note_failure(folder: Path, task: Task, why: str) -> None:
    """Leave in the store why a task failed, whether it did, its worker, or what it needs."""
    with contextlib.suppress(OSError, PotstillError):
        files.write_json(failure_path(folder, task.key), {"label": task.label, "error": why})


def why_failed(folder: Path, key: str) -> str | None:
    """Why a task failed when it was last tried; None where it did not."""
    path = failure_path(folder, key)
    return str(files.read_json(path).get("error")) if path.exists() else None


def problem_of(settings: Settings) -> Problem:
    """Data, transform and network; the one used last stays in memory."""
    return _prepared(_without_method(settings))


@functools.lru_cache(maxsize=1)
def _prepared(settings: Settings) -> Problem:
    return runs.prepare_problem(settings)


def evaluator_of(settings: Settings, network: NetworkConfig) -> Evaluator:
    """Trains networks of a kind by the protocol of some settings."""
    protocol = protocol_of(settings.evaluation)
    return evaluator_for(problem_of(settings), network, protocol, settings.augment, settings.compile)


def forget() -> None:
    """Free what the last tasks worked on: gigabytes of CIFAR, which a driver does not need while its workers work."""
    _prepared.cache_clear()
    engine.hand_back_freed_memory()


def _without_method(settings: Settings) -> Settings:
    """What data, transform and network depend on, and how networks are evaluated."""
    return replace(
        settings, ipc=1, method=(), stages=(), seed=0, start=None, expert=ExpertConfig(), evaluation=EvaluationConfig()
    )
