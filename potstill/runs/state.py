"""What a checkpoint holds: the state of distilling, everything the next iteration depends on, and a log beside it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files
from potstill.data.labels import Kind
from potstill.evaluation.tuning import Wanted
from potstill.methods import outer
from potstill.methods.method import Begun, Memory, Method, Start, Variables
from potstill.methods.outer import Moments, Rule

KIND = "checkpoint"


@dataclass(frozen=True)
class State:
    """A set on its way, in one stage."""

    variables: Variables
    labels: Tensor  # (n,) the class of each slot
    moments: dict[str, Moments]  # of each variable that is learned
    previous: Variables  # those before the last step, where an undone iteration returns to
    memory: Memory = field(default_factory=dict)
    rows: Tensor | None = None  # (n,) of the real training images, where they were selected
    stage: int = 0
    iteration: int = 0  # of this stage
    before: int = 0  # iterations of the stages before
    skipped: int = 0  # iterations that the method did not accept, over all stages
    refused: int = 0  # of those, in this stage
    rolled_back: int = 0  # iterations that diverged and were undone, over all stages
    undone: int = 0  # of those, in this stage
    in_a_row: int = 0  # of the last iterations, how many diverged
    seconds: float = 0.0  # spent on iterations so far, over all stages and sessions

    @property
    def total(self) -> int:
        """Iterations done over all stages."""
        return self.before + self.iteration

    def result(self, rules: dict[str, Rule]) -> Variables:
        """The variables as the method's result: moving averages where the rules keep any."""
        return {name: outer.result(rules[name], x, self.moments[name]) if name in rules else x
                for name, x in self.variables.items()}  # fmt: skip

    def save(self, path: Path, header: dict[str, Any]) -> None:
        """Write a checkpoint, with further fields for its header."""
        tensors = {"labels": self.labels} | ({} if self.rows is None else {"rows": self.rows})
        for group in GROUPS:
            tensors |= {f"{group}/{name}": tensor for name, tensor in getattr(self, group).items()}
        for name, moments in self.moments.items():
            tensors |= {f"moments/{name}/{moment}": tensor for moment, tensor in moments.items()}
        # at the start and after an undone step the state shares memory with the one before, which the format refuses
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        files.write_tensors(path, KIND, tensors, {**{name: getattr(self, name) for name in COUNTS}, **header})


@dataclass(frozen=True)
class Log:
    """What a checkpoint tells beside the state."""

    experts: dict[str, Any] | None  # identity of the store, and how many of its experts are used
    protocol: dict[str, Any]  # by which states are evaluated, the same in every session
    step_size: Wanted = "learned"  # with which networks train then
    evaluated: tuple[dict[str, Any], ...] = ()
    """{"iteration", "accuracy", "on", "seconds"} of each evaluation; seconds of distilling before it, searches for open
    settings included, experts and evaluations not."""
    evaluation_seconds: float = 0.0
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)  # by method: what it found; "settings" at its end
    peak_memory_bytes: int = 0  # over all sessions


GROUPS = ("variables", "previous", "memory")
COUNTS = (
    "stage", "iteration", "before", "skipped", "refused", "rolled_back", "undone", "in_a_row", "seconds",
)  # fmt: skip


def load_state(path: Path, device: torch.device) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint: the state, and the header with the fields that were added."""
    tensors, header = files.read_tensors(path, KIND)
    fields: dict[str, Any] = {group: {} for group in (*GROUPS, "moments")}
    for path_of, tensor in tensors.items():
        group, _, name = path_of.partition("/")
        here = tensor if group == "memory" and tensor.dtype == torch.int64 else tensor.to(device)  # counters stay
        if group == "moments":
            variable, _, moment = name.partition("/")
            fields["moments"].setdefault(variable, {})[moment] = here
        elif name:
            fields[group][name] = here
        else:
            fields[group] = here
    return State(**fields, **{name: header[name] for name in COUNTS}), header


def begin(method: Method, settings: Any, begun: Begun, after: State | None = None) -> State:
    """The state before the first iteration of a stage, which is the first one or follows ``after``."""
    rules = method.learns(settings)
    moments = {name: outer.initial(rule, begun.variables[name]) for name, rule in rules.items()}
    state = State(begun.variables, begun.labels, moments, begun.variables, begun.memory, begun.rows)
    if after is None:
        return state
    counts = {name: getattr(after, name) for name in ("skipped", "rolled_back", "seconds")}
    return replace(state, **counts, stage=after.stage + 1, before=after.total)


def as_start(state: State, method: Method, settings: Any) -> Start:
    """The set that the next stage begins with."""
    kind: Kind = method.kind(settings)
    variables = state.result(method.learns(settings))
    step_size = float(variables["step_size"]) if "step_size" in variables else None
    pictures = method.pictures(settings)
    return Start(variables["images"], variables.get(kind), kind, state.labels, step_size, pictures)
