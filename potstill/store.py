"""What is slow to make is kept: decoded images by what their files were, whitening by what it was fitted on, accuracies
of networks by all that they depend on.

Nothing here is ever needed: what cannot be read is made again, and what cannot be written is not kept.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from potstill import files
from potstill.errors import PotstillError

logger = logging.getLogger(__name__)
Made = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and a header."""
T = TypeVar("T")
PATIENCE = 600.0  # seconds that are waited for another process which makes the same thing
_warned: set[Path] = set()  # folders of which it was said that nothing can be kept there: once, not for each thing


def cache_folder() -> Path:
    """Where decoded arrays, whitening and control results are kept: $POTSTILL_CACHE, or ~/.cache/potstill."""
    return Path(os.environ.get("POTSTILL_CACHE", "~/.cache/potstill")).expanduser()


def once(kind: str, identity: Any, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, or what it gave before for the same identity (JSON-like)."""
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]

    def write(path: Path, made: Made) -> None:
        files.save(path, kind, *made)

    return _once(cache_folder() / kind / f"{key}.safetensors", lambda path: files.load(path, kind), make, write)


def once_json(kind: str, identity: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same for a mapping of plain values, by :func:`potstill.files.fingerprint`; its identity is kept beside it."""

    def read(path: Path) -> dict[str, Any]:
        found = files.read_json(path)
        if not isinstance(found, dict) or "identity" not in found:
            raise PotstillError(f"{path}: not what is kept here.")
        return found

    def write(path: Path, made: dict[str, Any]) -> None:
        files.write_json(path, {**made, "identity": identity})

    return _once(cache_folder() / kind / f"{files.fingerprint(identity)}.json", read, make, write)


def _once(path: Path, read: Callable[[Path], T], make: Callable[[], T], write: Callable[[Path, T], None]) -> T:
    """Made by one process at a time: the others wait for it, then read."""
    with contextlib.suppress(PotstillError, OSError):
        return read(path)
    with _alone(path):
        with contextlib.suppress(PotstillError, OSError):
            return read(path)  # another process has made it meanwhile
        made = make()
        try:
            write(path, made)
        except (PotstillError, OSError) as error:
            _warn(path.parent, error)
        return made


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Where the folder can be written, nobody else makes the same thing meanwhile."""
    import filelock

    lock = filelock.FileLock(str(path.with_suffix(".lock")), timeout=PATIENCE, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError, filelock.Timeout):
        yield
        return
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            path.with_suffix(".lock").unlink()


def _warn(folder: Path, error: Exception) -> None:
    if folder not in _warned:
        _warned.add(folder)
        logger.warning(
            "%s: what was made is not kept for the next time (%s); set POTSTILL_CACHE to a folder that can be written "
            "to.",
            folder, error,
        )  # fmt: skip
