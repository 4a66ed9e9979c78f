"""How derivatives are computed on this machine: in which precision, plainly or compiled, and how many images at once.

The only place that chooses between the plain computation and a fast one; both are in ``derivatives.py``.
"""

import contextlib
import ctypes
import functools
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from potstill.adjoint.derivatives import Derivatives, compiled, compiled_loss, eager, plain_loss
from potstill.errors import PotstillError
from potstill.networks.flat import FlatNetwork
from potstill.networks.losses import BatchLoss, LabelKind, loss_for

Compile = Literal["auto", "yes", "no"]
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta (P,), images (b, C, H, W), labels (b, K)) → gradient of the batch's mean loss (P,)."""


class TrainingGradient(Protocol):
    """A :data:`Gradient` that also moves running statistics (B,) in place, where it is given any.

    ``functools.partial(gradient, buffers=buffers)`` is the gradient of one network in training, for :func:`sgd
    <potstill.training.sgd.sgd>`.
    """

    def __call__(self, theta: Tensor, images: Tensor, labels: Tensor, buffers: Tensor | None = None) -> Tensor:
        """The gradient (P,)."""


LARGE = 2e7  # multiplications per image from which parts of a batch that stay in cache are faster than all of it
LOWERED = {"cpu": 1e6, "cuda": LARGE}  # from which a lower precision is, by 1.5 to 2 on a CPU; not measured on a GPU
CACHE_BATCH = {"cpu": 32, "cuda": 256}  # images whose activations stay in cache, or fill the device
SMALL_BATCH = 128  # the same for a small network, at 32×32 pixels
PLAIN_SPEED = {"cpu": 7e10, "cuda": 3e12}  # multiplications per second uncompiled; two cores measured, a GPU guessed
COMPILE_FROM = 120.0  # seconds of plain work that repay compiling
FORWARDS = {"gradient": 3, "inner step": 11}  # their multiplications in forward passes, uncompiled


@functools.lru_cache(maxsize=64)
def multiplications(network: FlatNetwork, shape: tuple[int, int, int]) -> float:
    """Multiplications of convolutions and linear layers in one image's forward pass."""
    plain = replace(network, precision=torch.float32, device=torch.device("cpu"))
    theta, image = torch.zeros(sum(plain.sizes)), torch.zeros(1, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(theta, image, plain.initial_buffers(), training=False)
    return counter.get_total_flops() / 2  # it counts a multiplication and an addition as two


def choose_precision(
    wanted: str, device: torch.device, network: FlatNetwork, shape: tuple[int, int, int]
) -> torch.dtype:  # fmt: skip
    """The precision of convolutions and activations; "auto" lowers it where that is faster."""
    if wanted != "auto":
        if network.batch_coupled and wanted != "float32":
            raise PotstillError(
                f"precision {wanted}: batch norm keeps float32 statistics; use --precision float32 or --network.norm "
                "instance."
            )
        return getattr(torch, wanted)
    if network.batch_coupled or network.own is not None:  # whose layers may not have a lower one
        return torch.float32
    fast = has_bfloat16_units(device) and multiplications(network, shape) > LOWERED.get(device.type, LARGE)
    return torch.bfloat16 if fast else torch.float32


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32; every GPU is taken to."""
    if device.type != "cpu":
        return device.type == "cuda"
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that PyTorch's compiler needs on a CPU."""
    return shutil.which("g++") or shutil.which("clang++")


def inner_derivatives(
    network: FlatNetwork, shape: tuple[int, int, int], batch: int, images: float, wanted: Compile,
    micro_batch: int | None, kind: LabelKind = "logits",
) -> tuple[Derivatives, int | None]:  # fmt: skip
    """How the inner loop is differentiated, and how many images at once.

    Args:
        network: the student.
        shape: of an image (C, H, W).
        batch: images of an inner step.
        images: images of all inner steps of the job together, to decide whether compiling pays.
        wanted: whether to compile.
        micro_batch: images at once, where the user chose.
        kind: of the labels that are learned.

    Raises:
        PotstillError: compiling or micro-batches were asked for where they cannot be.
    """
    if network.batch_coupled and micro_batch is not None and micro_batch < batch:
        raise PotstillError(
            f"micro_batch {micro_batch}: batch norm couples the images of a batch, so that micro-batches would "
            "change the result; leave --micro-batch out or use --network.norm instance."
        )
    work = multiplications(network, shape)
    if micro_batch is None and work > LARGE and not network.batch_coupled:
        most = CACHE_BATCH.get(network.device.type, 256)
        micro_batch = even_part(batch, most)
    loss = loss_for(network, kind)
    multiplied = FORWARDS["inner step"] * work * images
    return (compiled(loss) if _compiles(network, wanted, multiplied) else eager(loss)), micro_batch


def training_gradient(
    network: FlatNetwork, shape: tuple[int, int, int], batch: int, images: float, wanted: Compile,
    kind: LabelKind = "probabilities",
) -> TrainingGradient:  # fmt: skip
    """The gradient of a training batch's mean loss; arguments as in :func:`inner_derivatives`."""
    loss = loss_for(network, kind)
    work = multiplications(network, shape)
    micro = min(CACHE_BATCH.get(network.device.type, 256), batch) if work > LARGE else batch
    if network.batch_coupled or not _compiles(network, wanted, FORWARDS["gradient"] * work * images):
        return mean_gradient(loss, at_once(network, shape))
    fast, obvious = _compiled_training(network, kind).gradient, eager(loss).gradient

    def gradient(theta: Tensor, images: Tensor, labels: Tensor, buffers: Tensor | None = None) -> Tensor:
        total = torch.zeros_like(theta)  # what is compiled has no batch norm, and so no running statistics
        for rows in _parts(len(images), micro):
            part = images[rows]
            total += (fast if len(part) == micro else obvious)(theta, part, labels[rows])[0]  # one shape compiled
        return total / len(images)

    return gradient


@functools.cache
def _compiled_training(network: FlatNetwork, kind: LabelKind) -> Derivatives:
    """Compiled once for each network and kind of labels, however many networks are trained."""
    return compiled(loss_for(network, kind))


def mean_loss(
    network: FlatNetwork, theta: Tensor, parts: Sequence[tuple[Tensor, Tensor]], count: int, compile: bool
) -> Tensor:  # fmt: skip
    """Σ ℓ / count of real images, once differentiable in ``theta`` (P,).

    The graph of one part is held at once.  Of those that are compiled one shape is, the first one's.

    Args:
        network: whose loss it is.
        theta: its parameters (P,).
        parts: images (b, C, H, W) and their probabilities (b, K); perhaps none.
        count: images by which the sum is divided.
        compile: whether to.
    """
    loss, here = loss_for(network, "probabilities"), theta.detach()
    value, gradient = torch.zeros_like(here[0]), torch.zeros_like(here)
    for images, labels in parts:
        fast = compile and len(images) == len(parts[0][0])
        one = _compiled_loss(network) if fast else functools.partial(plain_loss, loss)
        part_value, part_gradient = one(here, images, labels.to(here.dtype))
        value, gradient = value + part_value, gradient + part_gradient
    return (value + gradient @ (theta - here)) / count


@functools.cache
def _compiled_loss(network: FlatNetwork) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Compiled once for each network."""
    return compiled_loss(loss_for(network, "probabilities"))


def at_once(network: FlatNetwork, shape: tuple[int, int, int]) -> int:
    """Images to pass at once where what is sought is a sum over them; all of a batch that batch norm couples.

    A network is twice as fast on a CPU by parts whose activations stay in its cache.
    """
    if network.batch_coupled:
        return sys.maxsize
    most = CACHE_BATCH.get(network.device.type, 256)
    return most if multiplications(network, shape) > LARGE else max(most, SMALL_BATCH)


def even_part(count: int, most: int) -> int:
    """Images of a part, ``most`` or fewer, where ``count`` are taken in even parts, so that few shapes are compiled."""
    return math.ceil(count / math.ceil(count / most))


def mean_gradient(loss: BatchLoss, at_once: int = sys.maxsize) -> TrainingGradient:
    """The plain one: autograd over the whole batch, or over so many of its images at once."""

    def gradient(theta: Tensor, images: Tensor, labels: Tensor, buffers: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            parts = zip(images.split(at_once), labels.split(at_once), strict=True)
            sums = [torch.autograd.grad(loss(theta, *part, buffers), theta)[0] for part in parts]
            return sum(sums[1:], sums[0]) / len(images)

    return gradient


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, n, size))


def _compiles(network: FlatNetwork, wanted: Compile, multiplied: float) -> bool:
    """Whether to compile: possible for this network and machine, and asked for or worth it."""
    if wanted == "no":
        return False
    device = network.device.type
    obstacle = None
    if network.batch_coupled:
        obstacle = "batch norm's running statistics cannot be traced"
    elif network.own is not None:
        obstacle = "the layers of an own network are not known"
    elif device == "cpu" and cpp_compiler() is None:
        obstacle = "no C++ compiler (g++ or clang++) is installed"
    elif device not in ("cpu", "cuda"):
        obstacle = f"the device {device} is not supported"
    if obstacle is not None and wanted == "yes":
        raise PotstillError(f"compile yes: {obstacle}; leave --compile at auto to run plainly.")
    return obstacle is None and (wanted == "yes" or multiplied / PLAIN_SPEED[device] > COMPILE_FROM)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large freed blocks instead of handing them back to the system.

    Every activation of a few megabytes is otherwise mapped, faulted in page by page and unmapped again: a quarter of
    the time of a training step on a CPU.  Does nothing where the allocator is another.
    """
    mmap_threshold, trim_threshold = -3, -1
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def hand_back_freed_memory() -> None:
    """Give the system what was freed and kept for reuse: reading CIFAR leaves 1.4 GB that no training step asks for.

    Does nothing where the allocator is another than glibc's.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
