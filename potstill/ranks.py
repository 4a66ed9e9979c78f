"""Several processes at one job, as torchrun starts them: which one this is, and what they tell each other.

Each process is a *rank* of a *world*.  All take the same steps on the same state, share out the work, and meet in the
functions below, which every rank must call in the same order.  Rank 0 alone writes and prints.  A process that was
started by itself is rank 0 of 1: nothing here then costs or changes anything.

Tensors on a GPU travel by NCCL, everything else by gloo.  A rank that has ended takes the others with it: whatever they
wait for fails, and one of them says why.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.errors import PotstillError, ToldElsewhere

PATIENCE = timedelta(days=7)  # one may train long before it meets the others; one that has ended is noticed at once
STARTING = timedelta(minutes=10)  # within which all ranks of a job must have begun
LOST = "another process of this run has ended; what was done is kept. The same command continues where it stopped."
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class _Group:
    """The processes of this job."""

    rank: int
    world: int
    store: Any  # that of the launcher, by which they found each other


_group: _Group | None = None


def rank() -> int:
    """The number of this process, from 0."""
    return _group.rank if _group else 0


def world() -> int:
    """How many processes there are."""
    return _group.world if _group else 1


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """This process's items: every ``world``-th."""
    return items[rank() :: world()]


# --- beginning and end ---------------------------------------------------------------------------------------------


@contextmanager
def together() -> Iterator[None]:
    """Work as one of the processes that torchrun started, to the end of the block; alone without torchrun.

    Raises:
        PotstillError: the others do not begin, or one of them ends before this one.
        ToldElsewhere: the same, where the rank that ended has told the reason.
        SystemExit: interrupted like all the others, the first of which says so.
    """
    global _group
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield
        return
    _group = _meet()
    try:
        yield
        wait()
        dist.destroy_process_group()
    except BaseException as error:  # the connections close with the process: the others notice
        alone = _is_first_to_end()
        if not alone and isinstance(error, PotstillError):
            raise ToldElsewhere(str(error)) from error
        if not alone and isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None
        raise
    finally:
        _group = None


def _meet() -> _Group:
    """Find the other processes by what the launcher tells in the environment."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    backend, gpus = "gloo", torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and local < gpus:
        torch.cuda.set_device(local)  # what "cuda" means from here on
    if gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) and gpus and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"  # which refuses two processes on one GPU
    try:
        store, number, count = next(iter(dist.rendezvous("env://", timeout=STARTING)))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise PotstillError(
            f"the processes of this run did not find each other ({str(error).splitlines()[0]}); start them all by "
            "torchrun, e.g. torchrun --standalone --nproc-per-node 2 -m potstill run."
        ) from error
    return _Group(number, count, store)


def _is_first_to_end() -> bool:
    """Whether no other process has ended in distress so far, as far as the launcher's store can be asked."""
    try:
        assert _group is not None
        return _group.store.add("potstill/ended", 1) == 1
    except RuntimeError:
        return True


# --- what they tell each other -------------------------------------------------------------------------------------


def wait() -> None:
    """Go on when all have come here: what the first has written before can be read by all."""
    total(0.0)


def total(value: float) -> float:
    """The sum of what all ranks give."""
    if world() == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    _meeting(lambda: dist.all_reduce(found))
    return float(found)


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all ranks of floating-point tensors of the same shapes, in one message; all get the same bits."""
    if world() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _meeting(lambda: dist.all_reduce(flat))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def gathered(value: Made) -> list[Made]:
    """What every rank gives, in the order of ranks: plain values, no tensors."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    _meeting(lambda: dist.all_gather_object(found, value))
    return found


def from_first(value: Any = None) -> Any:
    """What the first rank gives, whatever the others do: plain values and our own frozen ones, no tensors."""
    return gathered(value if first() else None)[0]


def shared_out(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """What ``work`` gives for each item, plain values: each rank does its own, and all get all, in order."""
    found: list[Any] = [None] * len(items)
    for number, values in enumerate(gathered([work(item) for item in mine(items)])):
        found[number :: world()] = values
    return found


def _meeting(action: Callable[[], Any]) -> None:
    """Do what takes all ranks.

    Raises:
        PotstillError: one of them has ended.
    """
    try:
        action()
    except Exception as error:  # RuntimeError, or of any kind where half a message was read
        raise PotstillError(LOST) from error
