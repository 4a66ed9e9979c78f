"""A run on disk, resumable at every stage: experts → distilling → evaluation, each a generator of events.

runs/NAME/
  config.json              what was asked for
  experts/                 trajectories (or another folder, shared between runs), where a method needs them
  start.safetensors        the images before the first iteration
  measured-METHOD/         the states of the trials by which a method finds what its settings leave open
  metrics.jsonl            a line an iteration
  snapshots/               some of the images now and then, to see how they change
  checkpoint.safetensors   the state of distilling, and what was measured and evaluated on the way
  distilled.safetensors    the best set so far; without evaluations the last one
  nearest.safetensors      the training images that some of the set's images come nearest to
  results.json             figures, times, environment
  report.html              all of it to look at
"""

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill import files, ranks, seeds
from potstill.adjoint import engine
from potstill.adjoint.derivatives import Derivatives, eager
from potstill.data.dataset import OPTIONS, Dataset
from potstill.data.distilled import FILE
from potstill.errors import PotstillError
from potstill.evaluation import evaluator
from potstill.evaluation.evaluator import Evaluator, Event
from potstill.evaluation.protocol import Protocol
from potstill.methods.method import Context, Experts, Method
from potstill.networks.flat import FlatNetwork
from potstill.networks.losses import loss_for
from potstill.runs.settings import Settings, as_dict, check, conflicts, from_dict
from potstill.training import experts, trajectories
from potstill.training.experts import ExpertConfig
from potstill.training.problem import Problem, prepare
from potstill.training.trajectories import Trajectories

CONFIG = "config.json"
LITTLE = 0.1  # of the way from guessing to always right
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Settings in a folder; the stages work on it."""

    settings: Settings
    folder: Path
    experts_folder: Path
    data: Dataset | None = None  # where they are at hand already, as those given in Python

    @cached_property
    def problem(self) -> Problem:
        """Data, transform and network; read at first use."""
        return prepare_problem(self.settings, self.data)

    @cached_property
    def needs(self) -> Experts | None:
        """What all stages need of the experts together; None where none needs any."""
        return expert_needs(self.settings)

    @cached_property
    def experts(self) -> Trajectories | None:
        """The experts, held to this run's dataset, transform and network; None where no method needs any.

        Those of another run may be trained otherwise than this one would train its own: that is logged.

        Raises:
            PotstillError: there are too few, or their snapshots are not those that are needed.
        """
        if self.needs is None:
            return None
        store = trajectories.open_store(self.experts_folder, experts.subject(self.problem))
        check_snapshots(self.needs, store.epochs, store.identity["expert"]["epochs"], str(self.experts_folder))
        if len(store) < self.settings.expert.count:
            raise PotstillError(
                f"{self.experts_folder}: holds {len(store)} finished experts, but {self.settings.expert.count} are "
                "asked for; train the rest with `potstill experts`, or lower --expert.count."
            )
        here, asked = ({**one, "seed": None} for one in (store.identity, files.plain(asked_experts(self))))
        if unlike := files.differences(here, asked):  # of another seed they are as good
            logger.info("%s: these experts are taken as they are: %s", self.experts_folder, "; ".join(unlike))
        return store

    def context(self, number: int) -> Context:
        """What the method of a stage may read."""
        settings = self.settings
        derivatives, micro_batch = inner_engine(settings, self.problem, number)
        return Context(
            self.problem, settings.ipc, seeds.derive(settings.seed, "stage", number) if number else settings.seed,
            settings.augment, derivatives, micro_batch, self.experts, settings.expert.count, ranks.rank(),
            ranks.world(),
        )  # fmt: skip

    def evaluator(self, protocol: Protocol) -> Evaluator:
        """Trains networks like the students by a protocol."""
        settings = self.settings
        return evaluator.evaluator_for(
            self.problem, self.problem.network_config, protocol, settings.augment, settings.compile
        )  # fmt: skip


def prepare_problem(settings: Settings, data: Dataset | None = None) -> Problem:
    """Data, transform and network of some settings; ``data`` where they are at hand already.

    Raises:
        PotstillError: whatever is wrong with the data, the device or the sizes, or a method needs more of the network
            than it gives.
    """
    found = prepare(
        data or settings.dataset, settings.network, ipc=settings.ipc, transform=settings.transform,
        device=settings.device, precision=settings.precision, reading=reading_of(settings),
    )  # fmt: skip
    for method in settings.methods:
        check_network(method, found.network)
    check_enough(settings, found.smallest_class)
    return found


def reading_of(settings: Settings) -> dict[str, Any]:
    """How settings say that data are read: arguments of :func:`potstill.data.dataset.load`."""
    return {name: getattr(settings, name) for name in OPTIONS}


def check_enough(settings: Settings, smallest: int) -> None:
    """Refuse to begin with more real images of a class, several a slot, than the smallest has.

    Raises:
        PotstillError: with both numbers and the flags to change.
    """
    if not settings.methods or settings.start is not None:
        return
    method, stage = settings.methods[0], settings.stages[0]
    pictures = method.pictures(stage)
    wanted = settings.ipc * pictures**2
    if pictures > 1 and stage.initial != "noise" and wanted > smallest:
        raise PotstillError(
            f"{method.name}.pictures {pictures}: begins with {wanted} images of each class, {pictures**2} a slot, and "
            f"the smallest class has {smallest}; lower --{method.name}.pictures or --ipc."
        )


def check_network(method: Method, network: FlatNetwork) -> None:
    """Refuse a user's own network that does not give what a method reads of it.

    Raises:
        PotstillError: with the method, the reason and the remedy.
    """
    if network.own is None or method.reads == "outputs":
        return
    if method.reads == "activations":
        raise PotstillError(
            f"{method.name}: compares what each layer gives, which is not known of an own network; choose another "
            "method, or one of potstill's networks."
        )
    if network.own.head is None:
        raise PotstillError(
            f"{method.name}: compares features, the input of the last linear layer, and this network does not end in "
            "one; let it end in nn.Linear, or choose another method."
        )


@contextmanager
def opened(
    settings: Settings, folder: Path, experts_folder: Path | None = None, data: Dataset | None = None
) -> Iterator[Run]:  # fmt: skip
    """A run as :func:`open_run` opens it, in a folder that is this process's alone until the end.

    Of several processes at one run the first opens it, holds the folder and writes; the others work along.

    Raises:
        PotstillError: another process works in the folder (it is named), or the settings do not suit several.
    """
    store = experts_folder or folder / "experts"
    _check_ranks(settings, folder, store)
    if not ranks.first():
        ranks.wait()
        yield Run(settings, folder, store, data)
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with files.locked(folder, "a run"):
            run = open_run(settings, folder, experts_folder, data)
            ranks.wait()
            yield run
    except BaseException:
        _leave_as_found(folder, made)
        raise


def _check_ranks(settings: Settings, folder: Path, experts_folder: Path) -> None:
    """Refuse what several processes cannot do.

    Raises:
        PotstillError: they would all take one GPU, or train experts in a folder that one of them holds.
    """
    if ranks.world() == 1:
        return
    if ":" in settings.device:
        raise PotstillError(
            f"device {settings.device!r}: each of {ranks.world()} processes takes a device of its own; give --device "
            f"{settings.device.partition(':')[0]}."
        )
    if experts_folder.resolve() == folder.resolve():
        raise PotstillError(
            f"{folder}: several processes cannot train experts in the run's own folder; give another --experts."
        )


def _leave_as_found(folder: Path, made: Sequence[Path]) -> None:
    """Take away a folder that a run made and left with nothing but its settings, and the empty ones above it.

    Args:
        folder: the run's.
        made: those that were not there before, innermost first.
    """
    with contextlib.suppress(OSError):
        if made and {path.name for path in folder.iterdir()} <= {"config.json", ".lock"}:
            for path in folder.iterdir():
                path.unlink()
            for path in made:
                path.rmdir()


def open_run(
    settings: Settings, folder: Path, experts_folder: Path | None = None, data: Dataset | None = None
) -> Run:  # fmt: skip
    """Begin a run in a folder, or continue the one that is there; the caller holds the folder's lock.

    Raises:
        PotstillError: the folder holds a run of other settings (the differing fields are named), one of an older
            version that is unfinished, or the settings contradict themselves.
    """
    check(settings)
    files.clear_leftovers(folder)
    store = experts_folder or folder / "experts"
    if begun := [name for name in ("checkpoint.safetensors", FILE) if (folder / name).exists()]:
        _check_continues(folder, begun, settings, store)
    write_config(settings, folder)
    return Run(settings, folder, store, data)


def write_config(settings: Settings, folder: Path) -> None:
    """Say in a run's folder what was asked for: what a later session is held to."""
    files.write_json(folder / CONFIG, files.stamped({"config": as_dict(settings)}))


def _check_continues(folder: Path, begun: Sequence[str], settings: Settings, experts_folder: Path) -> None:
    """Refuse to continue a run of other settings, of settings that are not known, or of an older version."""
    path = folder / CONFIG
    if not path.exists():
        raise PotstillError(
            f"{folder}: holds {' and '.join(begun)} of a run whose settings are gone ({CONFIG}); restore it, "
            f"delete {'that' if len(begun) == 1 else 'those'} too, or give another --out."
        )
    told = files.read_json(path)
    found = told.get("config") if isinstance(told, dict) else None
    if not isinstance(found, dict):
        raise PotstillError(f"{path}: holds no settings; restore it from a copy, or give another --out.")
    if "stages" not in found and not (folder / "results.json").exists():
        raise PotstillError(
            f"{folder}: holds an unfinished run of an older potstill, whose checkpoint this one cannot continue; "
            f"give another --out, and take its experts along by --experts {experts_folder}."
        )
    if lines := conflicts(from_dict(found), settings):
        raise PotstillError(
            f"{folder}: holds a run that differs in {'; '.join(lines)}. Give the same settings to continue it, or "
            "another --out."
        )


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
    ranges = [need.epochs for need in found]
    epochs = None
    if None not in ranges:
        used = [r for r in ranges if r]
        epochs = range(min(r.start for r in used), max(r.stop for r in used)) if used else range(0)
    rho, curriculum = (_agreed(settings, found, name) for name in ("rho", "curriculum"))
    return Experts(epochs, rho, max(need.reach for need in found), curriculum)


def _agreed(settings: Settings, needed: Sequence[Experts], name: str) -> Any:
    """What all stages that need something of the experts' recipe need of it; None where none does."""
    wanted = {getattr(need, name) for need in needed} - {None}
    if len(wanted) > 1:
        raise PotstillError(
            f"method {' '.join(settings.method)!r}: its stages need experts of different --expert.{name} "
            f"({', '.join(map(str, sorted(wanted)))}); run them one by one."
        )
    return wanted.pop() if wanted else None


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
    wanted = range(max(epochs, needed.reach) + 1) if needed.epochs is None else needed.epochs
    if len(wanted) and wanted[-1] > epochs:
        raise PotstillError(
            f"{where}: trains {epochs} epochs, but snapshots of epochs {wanted[0]} to {wanted[-1]} are needed; raise "
            "--expert.epochs, or choose earlier ones."
        )
    if stored is not None and (missing := set(wanted) - set(stored)):
        raise PotstillError(
            f"{where}: does not keep the snapshot of epoch {min(missing)}, which is needed; train experts in another "
            "folder, or with --expert.keep-all."
        )


def train_experts(run: Run) -> Generator[Event, None, Trajectories | None]:
    """Train the experts that the run lacks; experts of another run that are enough are taken as they are."""
    settings = run.settings
    if run.needs is None:
        return None
    own = run.experts_folder in (run.folder, run.folder / "experts")
    there = None if own else trajectories.find(run.experts_folder)
    if there is None or len(there) < settings.expert.count:
        yield from train_all(settings, run.problem, run.experts_folder, run.needs)
    if run.experts is not None:
        _warn_of_guessing(run.experts, len(run.problem.dataset.classes), run.experts_folder)
    return run.experts


def _warn_of_guessing(experts: Trajectories, classes: int, folder: Path) -> None:
    """Say so where experts have learned next to nothing: a set that follows them cannot teach more."""
    chance = 1 / classes
    if experts.accuracy < chance + LITTLE * (1 - chance):
        logger.warning(
            "%s: the experts are right on %.1f %% of the validation images, where guessing gives %.1f; raise "
            "--expert.epochs or --expert.step-size, or look at the data.", folder, 100 * experts.accuracy, 100 * chance,
        )  # fmt: skip


def train_all(
    settings: Settings, problem: Problem, folder: Path, needed: Experts
) -> Generator[Event, None, None]:  # fmt: skip
    """Train the experts of some settings into a folder, all that it lacks."""
    expert = expert_recipe(settings, needed)
    check_snapshots(needed, None, expert.epochs, "expert")
    yield from experts.train(
        problem, folder, expert, seed=settings.seed, augment=settings.augment, compile=settings.compile,
        keep=needed.epochs,
    )  # fmt: skip


def asked_experts(run: Run) -> dict[str, Any]:
    """Identity of the experts that the run would train itself."""
    settings = run.settings
    expert = expert_recipe(settings, run.needs or Experts())
    return experts.identity(expert, run.problem, settings.seed, settings.augment)


def expert_recipe(settings: Settings, needed: Experts) -> ExpertConfig:
    """The experts' recipe, with the radius and the curriculum that a method needs."""
    wanted: dict[str, Any] = {"rho": needed.rho, "curriculum": needed.curriculum}
    return replace(settings.expert, **{name: value for name, value in wanted.items() if value is not None})


# --- how it is computed --------------------------------------------------------------------------------------------


def inner_engine(settings: Settings, problem: Problem, number: int) -> tuple[Derivatives, int | None]:
    """How the inner steps of a stage are differentiated, and how many images at once.

    Decided by the settings that were asked for, so that every session computes alike.
    """
    method, stage = settings.methods[number], settings.stages[number]
    inner = method.inner(stage)
    if inner is None:
        return eager(loss_for(problem.network, method.kind(stage))), settings.micro_batch
    batch = min(inner.batch, settings.ipc * len(problem.dataset.classes) * method.pictures(stage) ** 2)
    images = batch * inner.steps * method.iterations(stage)
    return engine.inner_derivatives(
        problem.network, problem.dataset.shape, batch, images, settings.compile, settings.micro_batch,
        method.kind(stage),
    )  # fmt: skip
