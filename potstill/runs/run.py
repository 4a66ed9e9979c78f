"""A run on disk, resumable at every stage: experts → distilling → evaluation, each a generator of events.

runs/NAME/
  config.json              what was asked for
  experts/                 trajectories (or another folder, shared between runs), where a method needs them
  start.safetensors        the images before the first iteration
  measured-METHOD.json     what a method measured and settled on (measured-METHOD/ holds the states of its trials)
  metrics.jsonl            a line an iteration
  snapshots/               some of the images now and then, to see how they change
  checkpoint.safetensors   the state of distilling
  distilled.safetensors    the best set so far
  results.json             figures, times, environment
  report.html              all of it to look at
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill import files, seeds
from potstill.adjoint import engine
from potstill.adjoint.derivatives import Derivatives, plain
from potstill.data.distilled import FILE
from potstill.errors import PotstillError
from potstill.evaluation import evaluator
from potstill.evaluation.evaluator import Evaluator, Event
from potstill.evaluation.protocol import PROTOCOLS, Protocol, protocol_of
from potstill.methods.method import Context, Experts
from potstill.networks.losses import loss_for
from potstill.runs import settings as run_settings
from potstill.runs.settings import Settings, as_dict, check, fixed_fields
from potstill.training import experts, trajectories
from potstill.training.experts import ExpertConfig
from potstill.training.problem import Problem, prepare
from potstill.training.trajectories import Trajectories

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Settings in a folder; the stages work on it."""

    settings: Settings
    folder: Path
    experts_folder: Path

    @cached_property
    def problem(self) -> Problem:
        """Data, transform and network; read at first use."""
        return prepare_problem(self.settings)

    def stage_settings(self, number: int) -> Any:
        """The settings of a stage, with what it has measured."""
        asked, found = self.settings.stages[number], measured(self.folder, self.settings.method[number])
        return run_settings.changed(asked, found["settings"]) if found else asked

    @property
    def settled(self) -> Settings:
        """The settings, with what the stages have measured."""
        stages = tuple(self.stage_settings(number) for number in range(len(self.settings.stages)))
        return replace(self.settings, stages=stages)

    @cached_property
    def experts(self) -> Trajectories | None:
        """The experts, held to this run's dataset, transform and network; None where no method needs any.

        Raises:
            PotstillError: there are too few, or their snapshots are not those that are needed.
        """
        needed = expert_needs(self.settings)
        if needed is None:
            return None
        store = trajectories.open_store(self.experts_folder, experts.subject(self.problem))
        check_snapshots(needed, store.epochs, store.identity["expert"]["epochs"], str(self.experts_folder))
        if len(store) < self.settings.expert.count:
            raise PotstillError(
                f"{self.experts_folder}: holds {len(store)} finished experts, but {self.settings.expert.count} are "
                "asked for; train the rest with `potstill experts`, or lower --expert.count."
            )
        return store

    def context(self, number: int) -> Context:
        """What the method of a stage may read."""
        settings = self.settings
        derivatives, micro_batch = inner_engine(settings, self.problem, number)
        return Context(
            self.problem, settings.ipc, seeds.derive(settings.seed, "stage", number) if number else settings.seed,
            settings.augment, derivatives, micro_batch, self.experts, settings.expert.count,
        )  # fmt: skip

    def evaluator(self, protocol: Protocol) -> Evaluator:
        """Trains networks like the students by a protocol."""
        settings = self.settings
        return evaluator.evaluator_for(
            self.problem, self.problem.network_config, protocol, settings.augment, settings.compile
        )  # fmt: skip


def prepare_problem(settings: Settings) -> Problem:
    """Data, transform and network of some settings."""
    return prepare(
        settings.dataset, settings.network, ipc=settings.ipc, transform=settings.transform, device=settings.device,
        precision=settings.precision, validation=settings.validation, resize=settings.resize,
        label_column=settings.label_column,
    )  # fmt: skip


def open_run(settings: Settings, folder: Path, experts_folder: Path | None = None) -> Run:
    """Begin a run in a folder, or continue the one that is there.

    Raises:
        PotstillError: the folder holds a run of other settings (the differing fields are named), one of an older
        version
            that is unfinished, or the settings contradict themselves.
    """
    check(settings)
    path, wanted = folder / "config.json", as_dict(settings)
    files.clear_leftovers(folder)
    if path.exists() and any((folder / name).exists() for name in ("checkpoint.safetensors", FILE)):
        found = files.read_json(path)["config"]
        if "stages" not in found and not (folder / "results.json").exists():
            raise PotstillError(
                f"{folder}: holds an unfinished run of an older potstill, whose checkpoint this one cannot continue; "
                f"give another --out, and take its experts along by --experts {experts_folder or folder / 'experts'}."
            )
        before = run_settings.from_dict(found)
        if lines := files.differences(files.plain(fixed_fields(before)), files.plain(fixed_fields(settings))):
            raise PotstillError(
                f"{folder}: holds a run that differs in {'; '.join(lines)}. Give the same settings to continue it, or "
                "another --out."
            )
    files.write_json(path, {"version": files.VERSION, "config": wanted})
    return Run(settings, folder, experts_folder or folder / "experts")


def measured(folder: Path, method: str) -> dict[str, Any] | None:
    """What a method measured, where it has settled on something; None before that."""
    path = folder / f"measured-{method}.json"
    record = files.read_json(path) if path.exists() else {}
    return record if "settings" in record else None


# --- experts -------------------------------------------------------------------------------------------------------


def expert_needs(settings: Settings) -> Experts | None:
    """What all stages need of the experts together; None where none needs any.

    Raises:
        PotstillError: two stages need experts of different recipes.
    """
    needed = [method.needs(stage) for method, stage in zip(settings.methods, settings.stages, strict=True)]
    found = [need for need in needed if need is not None]
    if not found:
        return None
    radii = {need.rho for need in found if need.rho is not None}
    if len(radii) > 1:
        raise PotstillError(
            f"method {' '.join(settings.method)!r}: its stages need experts of different --expert.rho "
            f"({', '.join(map(str, sorted(radii)))}); run them one by one."
        )
    ranges = [need.epochs for need in found]
    epochs = None
    if None not in ranges:
        used = [r for r in ranges if r]
        epochs = range(min(r.start for r in used), max(r.stop for r in used)) if used else range(0)
    return Experts(epochs, radii.pop() if radii else None)


def check_snapshots(needed: Experts, stored: Any, epochs: int, where: str) -> None:
    """Refuse experts that are too short, or do not keep the snapshots that are needed.

    Args:
        needed: what the methods need.
        stored: epochs whose snapshots are stored; None where training is still to come.
        epochs: epochs that the experts train.
        where: names the experts in messages.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    wanted = range(epochs + 1) if needed.epochs is None else needed.epochs
    if len(wanted) and wanted[-1] > epochs:
        raise PotstillError(
            f"{where}: trains {epochs} epochs, but snapshots of epochs {wanted[0]} to {wanted[-1]} are needed; raise "
            "--expert.epochs, or choose earlier start epochs."
        )
    if stored is not None and (missing := set(wanted) - set(stored)):
        raise PotstillError(
            f"{where}: does not keep the snapshot of epoch {min(missing)}, which is needed; train experts in another "
            "folder, or with --expert.keep-all."
        )


def train_experts(run: Run) -> Generator[Event, None, Trajectories | None]:
    """Train the experts that the run lacks; experts of another run that are enough are taken as they are."""
    settings, needed = run.settings, expert_needs(run.settings)
    if needed is None:
        return None
    own = run.experts_folder in (run.folder, run.folder / "experts")
    if own or not _enough(run):
        yield from train_all(settings, run.problem, run.experts_folder, needed)
    return run.experts


def train_all(
    settings: Settings, problem: Problem, folder: Path, needed: Experts
) -> Generator[Event, None, None]:  # fmt: skip
    """Train the experts of some settings into a folder, all that it lacks."""
    expert = _expert(settings, needed)
    check_snapshots(needed, None, expert.epochs, "expert")
    yield from experts.train(
        problem, folder, expert, seed=settings.seed, augment=settings.augment, compile=settings.compile,
        keep=needed.epochs,
    )  # fmt: skip


def asked_experts(run: Run) -> dict[str, Any]:
    """Identity of the experts that the run would train itself."""
    settings = run.settings
    expert = _expert(settings, expert_needs(settings) or Experts())
    return experts.identity(expert, run.problem, settings.seed, settings.augment)


def _expert(settings: Settings, needed: Experts) -> ExpertConfig:
    """The experts' recipe, with the radius that a method needs."""
    return settings.expert if needed.rho is None else replace(settings.expert, rho=needed.rho)


def _enough(run: Run) -> bool:
    if not (run.experts_folder / trajectories.MANIFEST).exists():
        return False
    return len(trajectories.open_store(run.experts_folder)) >= run.settings.expert.count


# --- how it is computed --------------------------------------------------------------------------------------------


def inner_engine(settings: Settings, problem: Problem, number: int) -> tuple[Derivatives, int | None]:
    """How the inner steps of a stage are differentiated, and how many images at once.

    Decided by the settings that were asked for, so that every session computes alike.
    """
    method, stage = settings.methods[number], settings.stages[number]
    inner = method.inner(stage)
    if inner is None:
        return plain(loss_for(problem.network, method.kind(stage))), settings.micro_batch
    batch = min(inner.batch, settings.ipc * len(problem.dataset.classes))
    images = batch * inner.steps * method.iterations(stage)
    return engine.inner_derivatives(
        problem.network, problem.dataset.shape, batch, images, settings.compile, settings.micro_batch,
        method.kind(stage),
    )  # fmt: skip


def selector(settings: Settings) -> Protocol:
    """How the states of one run are evaluated: by quick networks, or as the protocol says under "paper".

    They never train longer than the networks of the final figures, or large sets would take more time to evaluate than
    to distil.
    """
    protocol, quick = protocol_of(settings.evaluation), PROTOCOLS["quick"]
    return protocol if protocol.selection == "test" else replace(quick, epochs=min(quick.epochs, protocol.epochs))
