"""A pool of networks that train on the set while it is learned, as tensors of a method's memory.

One of them in turn takes further steps at each iteration, instead of a fresh network training from scratch each time
(FRePo; Zhou et al., NeurIPS 2022).  A network is reset where its training has become too long or has diverged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.methods.method import Memory

STEPS, WARM_UP = "steps_taken", "warm_up"


@dataclass(frozen=True)
class Student:
    """One network of the pool as an iteration finds it."""

    theta: Tensor | None  # (P,); None where a fresh network is due
    steps: int  # taken so far
    warm_up: int  # steps that a fresh network takes at least before it is differentiated


def init_pool(size: int, spread: int, device: torch.device) -> Memory:
    """A pool yet to begin, with warm-up steps that spread its first networks over ``spread`` steps."""
    nobody = {f"student.{number}": torch.empty(0, device=device) for number in range(size)}
    warm_up = torch.arange(size) * spread // size
    return {**nobody, STEPS: torch.zeros(size, dtype=torch.int64), WARM_UP: warm_up}


def student(memory: Memory, number: int) -> Student:
    """A network of the pool."""
    theta, steps = memory[f"student.{number}"], int(memory[STEPS][number])
    return Student(theta if steps else None, steps, int(memory[WARM_UP][number]))


def advance(memory: Memory, number: int, theta: Tensor, steps: int) -> Memory:
    """The pool after network ``number`` came to ``theta`` (P,) with so many steps taken in all."""
    taken, warm_up = memory[STEPS].clone(), memory[WARM_UP].clone()
    taken[number], warm_up[number] = steps, 0
    return {**memory, f"student.{number}": theta, STEPS: taken, WARM_UP: warm_up}


def reset(memory: Memory, number: int) -> Memory:
    """The pool where a fresh network is due in the place of ``number``."""
    return advance(memory, number, memory[f"student.{number}"].new_empty(0), 0)
