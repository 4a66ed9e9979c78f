"""The state of the process that called: gradients off, another default type, autocast.  None of it reaches a result."""

import contextlib
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Iterator

import torch

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
logger = logging.getLogger(__name__)
_lock = threading.Lock()
_inside = 0  # calls that now need float32 as default type
_outside = torch.float32  # the default type of those who called


@contextlib.contextmanager
def own_state() -> Iterator[None]:
    """Work as in a fresh process, whatever the caller has set; theirs is back afterwards.  Also a decorator.

    Gradients are on (the caller may be inside ``no_grad`` or ``inference_mode``), floats are float32, nothing is cast
    by ``autocast``, and tensors are made on the CPU unless told otherwise.  The default type is one for all threads: it
    is given back when the last call has ended, in whatever order they do.
    """
    find_compiler_cache()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_float32())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    global _inside, _outside
    with _lock:
        if _inside == 0:
            _outside = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_default_dtype(_outside)


@functools.cache
def find_compiler_cache() -> None:
    """Give PyTorch's compiler a temporary cache where its own cannot be written: it would not even be imported."""
    folder = os.environ.get(COMPILER_CACHE)
    if folder is None:
        return  # its default lies among temporary files
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        kept = tempfile.TemporaryDirectory(prefix="potstill-compiled-")  # until the process ends
        os.environ[COMPILER_CACHE] = kept.name
        _temporary.append(kept)
        logger.warning(
            "%s: what is compiled is not kept for the next time (%s); set %s to a folder that can be written to.",
            folder, error.strerror, COMPILER_CACHE,
        )  # fmt: skip


_temporary: list[tempfile.TemporaryDirectory[str]] = []
