"""The outer loop: sample, loss, step, yield metrics.  A state is a value; an iteration makes the next one."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files
from potstill.adjoint.derivatives import Derivatives
from potstill.config import Config
from potstill.errors import Diverged
from potstill.methods import METHODS, bptt
from potstill.methods.bptt import Students
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories

KIND = "checkpoint"
MOMENTUM_IMAGES, MOMENTUM_LOGITS, MOMENTUM_STEP_SIZE = 0.5, 0.9, 0.5  # published
PATIENCE = 20  # diverging iterations in a row after which something else is wrong


@dataclass(frozen=True)
class State:
    """Everything the next iteration depends on."""

    images: Tensor  # (n, C, H, W)
    logits: Tensor  # (n, K)
    step_size: Tensor  # ()
    momenta: tuple[Tensor, ...]  # of images, logits, step size
    previous: tuple[Tensor, ...]  # images, logits, step size before the last step, where a rollback returns to
    labels: Tensor  # (n,) the class of each slot
    students: Students | None = None  # networks that train on the set while it is polished
    iteration: int = 0
    skipped: int = 0  # losses above the threshold
    rolled_back: int = 0  # iterations that diverged and were undone
    in_a_row: int = 0  # of the last iterations, how many diverged
    seconds: float = 0.0  # spent on iterations so far, over all sittings

    def save(self, path: Path, header: dict[str, Any]) -> None:
        """Write a checkpoint, with further fields for its header."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for group in _GROUPS:
            tensors |= {f"{group}.{i}": tensor for i, tensor in enumerate(getattr(self, group))}
        if self.students is not None:
            tensors |= {f"students.{i}": theta for i, theta in enumerate(self.students.thetas)}
            tensors |= {"students.ages": self.students.ages, "students.leads": self.students.leads}
        # at the start and after a rollback the state shares its memory with the one before, which the format refuses
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        files.save(path, KIND, tensors, {**counts, **header})


_TENSORS = ("images", "logits", "step_size", "labels")
_GROUPS = ("momenta", "previous")
_COUNTS = ("iteration", "skipped", "rolled_back", "in_a_row", "seconds")


def load_state(path: Path, device: torch.device) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint: the state, and the header with the fields that were added."""
    tensors, header = files.load(path, KIND)
    ages, leads = (tensors.pop(f"students.{name}", None) for name in ("ages", "leads"))
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    fields: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
    fields |= {group: tuple(tensors[f"{group}.{i}"] for i in range(3)) for group in _GROUPS}
    fields |= {name: header[name] for name in _COUNTS}
    if ages is not None and leads is not None:
        fields["students"] = Students(tuple(tensors[f"students.{i}"] for i in range(len(ages))), ages, leads)
    return State(**fields), header


def begin(config: Config, problem: Problem, experts: Trajectories) -> State:
    """The state before the first iteration."""
    images, logits, labels = METHODS[config.method].start(config, problem, experts)
    step_size = torch.tensor(config.distil.step_size, device=problem.device)
    learned = (images, logits, step_size)
    return State(*learned, momenta=_zeros(learned), previous=learned, labels=labels)


def iterate(
    config: Config, problem: Problem, experts: Trajectories, derivatives: Derivatives, state: State
) -> Iterator[tuple[State, dict[str, Any]]]:  # fmt: skip
    """Run iterations from ``state`` on, and yield each new state with its metrics.

    A loss above the threshold is not stepped on.  Where a loss or a gradient is not finite, the last step led astray:
    it is undone, its momentum forgotten, and the iteration counted in ``rolled_back``.  A student that takes part in
    either makes room for a fresh one.

    Raises:
        Diverged: twenty iterations in a row diverged.
    """
    while state.iteration < config.distil.iterations:
        began = time.perf_counter()
        if state.iteration == _matching(config):
            state = replace(state, momenta=_zeros(state.momenta))  # which are of another loss
        loss, gradients, drawn, students = differentiate(config, problem, experts, derivatives, state)
        metrics = {"iteration": state.iteration, "loss": loss, "step_size": float(state.step_size), **drawn}
        if not all(math.isfinite(value) for value in (loss, *(float(g.square().sum()) for g in gradients))):
            next_state = _roll_back(state)
            students = students and students.dismiss(state.iteration)
        elif loss > config.distil.threshold:
            next_state = replace(state, skipped=state.skipped + 1, in_a_row=0)
            students = students and students.dismiss(state.iteration)  # or it would come again
        else:
            next_state = _step(config, state, gradients)
        seconds = state.seconds + time.perf_counter() - began
        state = replace(next_state, students=students, iteration=state.iteration + 1, seconds=seconds)
        if state.in_a_row >= PATIENCE:
            raise Diverged(
                f"distilling diverged {PATIENCE} times in a row at iteration {state.iteration}, each time undone; "
                f"lower --distil.lr-images (now {config.distil.lr_images:g}), --distil.step-size (now "
                f"{config.distil.step_size:g}) or, polishing, --distil.polish-rates (now "
                f"{config.distil.polish_rates:g}) in another --out; --experts takes the experts along."
            )
        yield state, {**metrics, "skipped": state.skipped, "rolled_back": state.rolled_back}


def differentiate(
    config: Config, problem: Problem, experts: Trajectories, derivatives: Derivatives, state: State
) -> tuple[float, tuple[Tensor, ...], dict[str, Any], Students | None]:  # fmt: skip
    """The loss of one iteration, its gradients in images, logits and step size, what was drawn, and the students."""
    x, z, alpha = leaves = [t.detach().requires_grad_() for t in (state.images, state.logits, state.step_size)]
    students = None
    if state.iteration >= _matching(config):
        students = state.students or bptt.enrol(config, problem)
        loss, drawn, students = bptt.real_loss(config, problem, derivatives, x, z, alpha, state.iteration, students)
    else:
        loss, drawn = METHODS[config.method].loss(config, problem, experts, derivatives, x, z, alpha, state.iteration)
    return float(loss.detach()), torch.autograd.grad(loss, leaves), drawn, students


def _step(config: Config, state: State, gradients: tuple[Tensor, ...]) -> State:
    """SGD with momentum on images, logits and step size.

    The step size moves by α ← α · exp(−lr · v / α): to first order the published step α ← α − lr · v, and positive
    whatever the gradient.  One step at most halves or doubles it.
    """
    decay = (MOMENTUM_IMAGES, MOMENTUM_LOGITS, MOMENTUM_STEP_SIZE)
    momenta = tuple(d * v + g for d, v, g in zip(decay, state.momenta, gradients, strict=True))
    images, logits, step_size = momenta
    distil, warmth = config.distil, _warmth(config, state.iteration)
    lr_logits = distil.lr_logits if distil.labels == "learned" else 0.0
    factor = (-warmth * distil.lr_step_size * step_size / state.step_size).clamp(-math.log(2), math.log(2)).exp()
    return replace(
        state,
        images=state.images - warmth * distil.lr_images * images,
        logits=state.logits - warmth * lr_logits * logits,
        step_size=state.step_size * factor,
        momenta=momenta,
        previous=(state.images, state.logits, state.step_size),
        in_a_row=0,
    )


def _matching(config: Config) -> int:
    """Iterations before polishing."""
    return config.distil.iterations - config.distil.polish


def _warmth(config: Config, iteration: int) -> float:
    """What is left of the outer rates: 1, then falling linearly over the cooldown, never quite to 0.

    Polishing begins and cools anew, at its own part of the rates.
    """
    polishes = iteration >= _matching(config)
    length = config.distil.polish if polishes else _matching(config)
    left = (config.distil.iterations if polishes else length) - iteration
    last = config.distil.cooldown * length
    rates = config.distil.polish_rates if polishes else 1.0
    return rates * (min(1.0, left / last) if last > 0 else 1.0)


def _roll_back(state: State) -> State:
    """The state before the last step, without the momentum that led astray."""
    images, logits, step_size = state.previous
    return replace(
        state,
        images=images,
        logits=logits,
        step_size=step_size,
        momenta=_zeros(state.previous),
        rolled_back=state.rolled_back + 1,
        in_a_row=state.in_a_row + 1,
    )


def _zeros(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(tensor) for tensor in tensors)
