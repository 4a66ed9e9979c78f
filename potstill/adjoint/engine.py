"""How derivatives are computed on this machine: plainly or compiled, and how many images at once.

The one place that chooses between the obvious path and a fast one; the paths themselves lie in ``derivatives.py``.
"""

import ctypes
import functools
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from potstill.adjoint.derivatives import Derivatives, compiled, plain
from potstill.errors import PotstillError
from potstill.networks.flat import BatchLoss, FlatNetwork, label_loss, target_loss

Compile = Literal["auto", "yes", "no"]
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta (P,), images, target probabilities) → gradient of the batch's mean loss (P,)."""

LARGE = 2e7  # multiplications an image from which micro-batches, lower precision and compiling can pay
CACHE_BATCH = {"cpu": 32, "cuda": 256}  # images whose activations stay in cache, or fill the device
PLAIN_SPEED = {"cpu": 7e10, "cuda": 3e12}  # multiplications a second, plainly; two cores measured, a GPU guessed
COMPILE_FROM = 120.0  # seconds of plain work that repay compiling
FORWARDS = {"gradient": 3, "inner step": 11}  # forward passes' worth of multiplications, plainly


def multiplications(network: FlatNetwork, shape: tuple[int, int, int]) -> float:
    """Multiplications of one image's forward pass."""
    counted = [0.0]

    def count(layer: torch.nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight = getattr(layer, "weight", None)
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and weight is not None:
            positions = output.shape[2:].numel() if output.dim() == 4 else 1
            counted[0] += weight.numel() * positions

    hooks = [layer.register_forward_hook(count) for layer in network.module.modules()]
    with torch.no_grad():
        like = next(network.module.parameters())
        network.module.eval()(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    for hook in hooks:
        hook.remove()
    network.module.train()
    return counted[0]


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
    if network.batch_coupled:
        return torch.float32
    units = device.type == "cuda" or (
        device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )
    return torch.bfloat16 if units and multiplications(network, shape) > LARGE else torch.float32


def inner_derivatives(
    network: FlatNetwork, shape: tuple[int, int, int], batch: int, images: float, wanted: Compile,
    micro_batch: int | None,
) -> tuple[Derivatives, int | None]:  # fmt: skip
    """How the inner loop is differentiated, and how many images at once.

    Args:
        network: the student.
        shape: of an image (C, H, W).
        batch: images of an inner step.
        images: images of all inner steps of the job together, to weigh compiling.
        wanted: whether to compile.
        micro_batch: images at once, where the user chose.

    Raises:
        PotstillError: compiling or micro-batches were asked for where they cannot be.
    """
    if network.batch_coupled and micro_batch is not None and micro_batch < batch:
        raise PotstillError(
            f"distil.micro_batch {micro_batch}: batch norm couples the images of a batch, so that micro-batches would "
            "change the result; leave --distil.micro-batch out or use --network.norm instance."
        )
    work = multiplications(network, shape)
    if micro_batch is None and work > LARGE and not network.batch_coupled:
        most = CACHE_BATCH.get(_device(network).type, 256)
        micro_batch = math.ceil(batch / math.ceil(batch / most))  # even parts, so that few shapes are compiled
    loss = label_loss(network)
    multiplied = FORWARDS["inner step"] * work * images
    return (compiled(loss) if _compiles(network, wanted, multiplied) else plain(loss)), micro_batch


def training_gradient(
    network: FlatNetwork, shape: tuple[int, int, int], batch: int, images: float, wanted: Compile
) -> Gradient:  # fmt: skip
    """The gradient of a training batch's mean loss; arguments as in :func:`inner_derivatives`."""
    loss = target_loss(network)
    work = multiplications(network, shape)
    micro = min(CACHE_BATCH.get(_device(network).type, 256), batch) if work > LARGE else batch
    if network.batch_coupled or not _compiles(network, wanted, FORWARDS["gradient"] * work * images):
        return mean_gradient(loss)
    fast, obvious = _compiled_training(network).gradient, plain(loss).gradient

    def gradient(theta: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for rows in _parts(len(x), micro):
            part = x[rows]
            total += (fast if len(part) == micro else obvious)(theta, part, targets[rows])[0]  # one shape compiled
        return total / len(x)

    return gradient


@functools.cache
def _compiled_training(network: FlatNetwork) -> Derivatives:
    """Compiled once for each network, however many are trained."""
    return compiled(target_loss(network))


def mean_gradient(loss: BatchLoss) -> Gradient:
    """The obvious one: autograd over the whole batch."""
    gradient = plain(loss).gradient
    return lambda theta, images, targets: gradient(theta, images, targets)[0] / len(images)


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, n, size))


def _device(network: FlatNetwork) -> torch.device:
    return next(network.module.parameters()).device


def _compiles(network: FlatNetwork, wanted: Compile, multiplied: float) -> bool:
    """Whether to compile: possible for this network and machine, and asked for or worth it."""
    if wanted == "no":
        return False
    device = _device(network).type
    obstacle = None
    if network.batch_coupled:
        obstacle = "batch norm's running statistics cannot be traced"
    elif device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
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
    if sys.platform != "linux":
        return
    mmap_threshold, trim_threshold = -3, -1
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        return
