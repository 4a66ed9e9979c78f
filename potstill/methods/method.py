"""The interface: what a method declares, and what the outer loop hands it.

A method declares its settings, what it needs and what it learns, and gives a scalar that autograd can differentiate.
Stepping, undoing, checkpoints, choosing on validation images and several processes are the loop's, once for all.  A
selection has no loss: it begins with rows of the real images, and that is its result.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from potstill import ranks, seeds
from potstill.adjoint.derivatives import Derivatives
from potstill.data.augment import Operation
from potstill.data.distilled import decode
from potstill.data.labels import Kind, one_hot
from potstill.methods.outer import Rule
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories

Family = Literal["trajectory", "gradient", "distribution", "kernel", "backpropagation", "selection"]
Reads = Literal["outputs", "features", "activations"]
"""What a method reads of a network; features are the input of its last linear layer, activations what ReLUs give."""
Variables = dict[str, Tensor]
"""The set by name: "images" (n, C, H, W), its targets under their kind ("logits", "values" or "raw", (n, K)),
"step_size" (a scalar), and whatever else a method learns."""
Memory = dict[str, Tensor]
"""What a method remembers from one iteration to the next, saved with every checkpoint."""
Cell = tuple[str, int]
"""A dataset and images per class."""
Settings = Any
"""A method's own frozen dataclass."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Context:
    """What a method may read while it distills, and nothing that it may write.

    All draws are counter-based: the same purpose and place give the same draw in every session and process.  Several
    processes share an iteration by :meth:`mine`: what each of them gives as loss and gradient is summed.
    """

    problem: Problem
    ipc: int
    seed: int  # of this stage
    augment: tuple[Operation, ...]
    derivatives: Derivatives  # of the network's loss against labels of the method's kind
    micro_batch: int | None  # images that are differentiated at once
    experts: Trajectories | None = None  # where a method needs them
    expert_count: int = 0  # how many of them are used
    rank: int = 0  # of this process
    world: int = 1  # number of processes

    def draws(self, purpose: str, *at: int) -> torch.Generator:
        """A CPU generator for one purpose at one place, e.g. ``ctx.draws("real", iteration, label)``."""
        return seeds.generator(self.seed, purpose, *at)

    def fresh(self, purpose: str, *at: int) -> Tensor:
        """Parameters (P,) of a fresh network, on the device."""
        return self.problem.network.fresh(seeds.derive(self.seed, purpose, *at))

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's items: every ``world``-th."""
        return items[self.rank :: self.world]

    def total(self, value: float) -> float:
        """The sum of what all processes give, where one decides by more than its share; each must ask for it."""
        return ranks.total(value) if self.world > 1 else value

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.problem.dataset.classes)


@dataclass(frozen=True)
class Experts:
    """The experts that a method needs before its first iteration."""

    epochs: range | None = None  # whose snapshots are read; None where measuring will say, so that all are kept
    rho: float | None = None  # radius of the flat recipe (FTD); None leaves it to --expert.rho
    reach: int = 0  # the last epoch that is matched, where all snapshots are read
    curriculum: bool | None = None  # easy images first (PAD); None leaves it to --expert.curriculum


@dataclass(frozen=True)
class Inner:
    """The inner steps that an iteration differentiates, by which the engine decides whether compiling pays."""

    batch: int  # synthetic images a step
    steps: int  # a step of each iteration


@dataclass(frozen=True)
class Start:
    """A set as a stage finds it: the stage before's, a selection's, one from disk."""

    images: Tensor  # (n, C, H, W)
    targets: Tensor | None  # (n, K), none where the kind is "hard"
    kind: Kind
    labels: Tensor  # (n,) class of each slot
    step_size: float | None
    pictures: int = 1  # f: a slot holds f × f of them


@dataclass(frozen=True)
class Begun:
    """What a method begins with."""

    variables: Variables
    labels: Tensor  # (n,) class of each slot
    memory: Memory = field(default_factory=dict)
    rows: Tensor | None = None  # (n,) of the real training images, where the set is selected among them


@dataclass(frozen=True)
class Outcome:
    """What one iteration found."""

    loss: Tensor  # a scalar, differentiable in every variable that is learned
    memory: Memory = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    accept: bool = True  # False: the loop takes no step, and counts it; alike in all processes
    refused_memory: Memory | None = None  # where no step is taken, or it diverged; None: the memory before


@dataclass(frozen=True)
class Probe:
    """A cheaper job of the same kind, from which a forecast is multiplied out."""

    settings: Settings
    times: float  # what one real iteration costs in iterations of the cheaper one
    vectors: int  # weight vectors (P,) that a real iteration holds at once
    measuring: float = 0.0  # what measuring and beginning cost beyond the iterations, in real ones
    trials: int = 0  # sets that are evaluated for it
    timed: Sequence[int] = (0,)  # iterations, one after another, whose mean is what an iteration takes


class Trial(Protocol):
    """Some iterations of a method, evaluated on validation images; handed to a method that measures.

    ``trial(settings, begun, arm, rung, iterations)`` continues what ``arm`` has reached at the rung before (``begun``
    at rung 0), keeps the state, and returns the losses and the accuracy, which is 0 where it diverged.
    """

    def __call__(
        self, settings: Settings, begun: Begun, arm: int, rung: int, iterations: int
    ) -> tuple[list[float], float]:  # fmt: skip
        """Losses, and the accuracy reached."""


Progress = dict[str, Any]
"""An event for whoever watches: "stage", "done", "total" and what is worth telling."""
Measuring = Generator[Progress, None, tuple[Settings, tuple[int, int] | None]]
"""Yields progress; returns settings with nothing left open, and the arm and rung whose state the run continues from."""


@dataclass(frozen=True)
class Method:
    """What distinguishes one method from another; a value in the literal dict ``METHODS``.

    Functions take ``(ctx, settings, ...)`` with ``settings`` of the method's own class.  A field of it that is None is
    found by ``measure``, or by a rule that its docstring tells.  Cells hold values by field; those of fields that the
    method lacks are of the run ("transform", "network", "expert").
    """

    name: str  # on the command line, where its flags are --NAME.FIELD
    title: str
    family: Family
    citation: str
    settings: type[Any]
    begin: Callable[[Context, Settings, Start | None], Begun]
    loss: Callable[[Context, Settings, Variables, Memory, Tensor, int], Outcome] | None = None  # none: a selection
    learns: Callable[[Settings], dict[str, Rule]] = lambda settings: {}
    needs: Callable[[Settings], Experts | None] = lambda settings: None
    inner: Callable[[Settings], Inner | None] = lambda settings: None
    kind: Callable[[Settings], Kind] = lambda settings: "hard"
    batch_norm: bool = True  # False: what it does with batches is not what batch norm needs
    reads: Reads = "outputs"  # of the network; a user's own may not give more
    loss_label: str = "loss"
    metrics: Mapping[str, str] = field(default_factory=dict)  # name → what the report writes at its axis
    check: Callable[[Settings, str, tuple[Operation, ...]], None] = lambda settings, name, augment: None
    """(settings, name, augment): raises PotstillError where they contradict; the name is that of the flags."""
    measured: tuple[str, ...] = ()  # fields that `measure` finds where they are None
    measure: Callable[..., Measuring] | None = None  # (ctx, settings, begun, trial, record, save)
    assume: Callable[[Settings, int], Settings] | None = None  # (settings, epochs of the experts): without measuring
    probe: Callable[[Settings], Probe] | None = None
    published: Mapping[Cell, Mapping[str, Any]] = field(default_factory=dict)  # as its authors ran it
    tuned: Mapping[Cell, Mapping[str, Any]] = field(default_factory=dict)  # found here, for data that come with us
    refining: Mapping[str, Any] = field(default_factory=dict)  # defaults of a stage that follows another

    def iterations(self, settings: Settings) -> int:
        """Outer iterations; a selection takes none."""
        return getattr(settings, "iterations", 0)

    def pictures(self, settings: Settings) -> int:
        """f: a slot holds f × f pictures; 1 where the method has no such setting."""
        return getattr(settings, "pictures", 1)

    def open_fields(self, settings: Settings) -> list[str]:
        """Fields that are still to be found by measuring."""
        return [name for name in self.measured if getattr(settings, name) is None]


def targets_of(variables: Variables, labels: Tensor, classes: int) -> Tensor:
    """The targets of the slots (n, K): the learned labels of whatever kind, or one-hot classes."""
    for kind in ("logits", "values", "raw"):
        if kind in variables:
            return variables[kind]
    return one_hot(labels, classes)


def shown(variables: Variables, labels: Tensor, classes: int, pictures: int) -> tuple[Tensor, Tensor]:
    """What students train on: the pictures of all slots, enlarged (n · f², C, H, W), and their slots' targets."""
    targets = targets_of(variables, labels, classes)
    return decode(variables["images"], pictures), targets.repeat_interleave(pictures**2, 0)


def below(loss: float, threshold: float | None) -> bool:
    """Whether a loss is stepped on: not above a threshold.  One that is not a number is the loop's to undo."""
    return threshold is None or not loss > threshold


def nothing(variables: Variables) -> Tensor:
    """The part of a process that has no work in an iteration: 0, with a gradient of 0 in every variable."""
    return sum((0.0 * x.sum() for x in variables.values()), torch.zeros((), device=variables["images"].device))
