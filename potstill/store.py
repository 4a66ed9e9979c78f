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
from potstill.errors import InUse, PotstillError

logger = logging.getLogger(__name__)
Made = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and a header."""
T = TypeVar("T")
ENDINGS = (".safetensors", ".json")
KINDS = {
    "images": "decoded images", "zca": "whitening", "networks": "accuracies of networks trained for figures",
    "lines": "how far experts were along", "scores": "how hard training images are",
    "distances": "how near training images lie to each other", "references": "images that tables point at",
}  # fmt: skip
_unwritable: set[Path] = set()  # folders of which it was said that nothing can be kept there: once, not each time


def cache_folder() -> Path:
    """Where decoded arrays, whitening and control results are kept: $POTSTILL_CACHE, or ~/.cache/potstill."""
    return Path(os.environ.get("POTSTILL_CACHE", "~/.cache/potstill")).expanduser()


def kept() -> dict[str, tuple[int, int]]:
    """Entries and bytes by kind, the largest first."""
    found = {}
    for kind in KINDS:
        sizes = [path.stat().st_size for path in (cache_folder() / kind).glob("*") if path.suffix in ENDINGS]
        if sizes:
            found[kind] = (len(sizes), sum(sizes))
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def clear() -> None:
    """Delete what is kept; what another process makes at this moment stays."""
    for kind in KINDS:
        for path in (cache_folder() / kind).glob("*"):
            if path.suffix in ENDINGS:
                path.unlink(missing_ok=True)


def once(kind: str, identity: Any, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, or what it gave before for the same identity (JSON-like).

    One process at a time makes it, and others that ask meanwhile wait for it.  What is damaged is made anew, with a
    warning; where nothing can be written there is one warning, and nothing is kept.
    """
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]

    def write(path: Path, made: Made) -> None:
        files.write_tensors(path, kind, *made)

    return _once(cache_folder() / kind / f"{key}.safetensors", lambda path: files.read_tensors(path, kind), make, write)


def once_json(
    kind: str, identity: Any, make: Callable[[], dict[str, Any]], folder: Path | None = None, wait: bool = True
) -> dict[str, Any]:  # fmt: skip
    """The same for a mapping of plain values, in the cache or in a folder of one's own.

    Its identity and a checksum lie beside the values in the file, folder/KIND/FINGERPRINT.json.

    Raises:
        InUse: another process makes it now, and the caller does not want to ``wait`` for it.
    """
    path = json_path(cache_folder() if folder is None else folder, kind, files.fingerprint(identity))

    def read(path: Path) -> dict[str, Any]:
        found = _read_json(path)
        if found.pop("identity", None) != files.plain(identity):
            raise PotstillError(f"{path}: damaged: it is not what its name says")
        return found

    def write(path: Path, made: dict[str, Any]) -> None:
        files.write_json(path, {**made, "identity": identity, "checksum": files.fingerprint(made)})

    def make_plain() -> dict[str, Any]:
        return files.plain(make())

    return _once(path, read, make_plain, write, wait)


def known_json(kind: str, key: str, folder: Path) -> dict[str, Any] | None:
    """What :func:`once_json` has left in a folder by a fingerprint; None where there is nothing, or it is damaged."""
    with contextlib.suppress(PotstillError, OSError):
        found = _read_json(json_path(folder, kind, key))
        return found if files.fingerprint(found.pop("identity", None)) == key else None
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """The values and the identity of an entry."""
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise PotstillError(f"{path}: damaged: it holds no values by their names")
    values = {name: value for name, value in found.items() if name not in ("identity", "checksum")}
    if found.pop("checksum", files.fingerprint(values)) != files.fingerprint(values):  # entries of 0.1.0 have none
        raise PotstillError(f"{path}: damaged: its values do not match their checksum")
    return found


def json_path(folder: Path, kind: str, key: str) -> Path:
    """Where the entry of a kind and a fingerprint lies."""
    return folder / kind / f"{key}.json"


def _once(
    path: Path, read: Callable[[Path], T], make: Callable[[], T], write: Callable[[Path, T], None], wait: bool = True
) -> T:  # fmt: skip
    """The entry at a path, made by one process at a time: the others wait for it, then read."""
    with contextlib.suppress(PotstillError, OSError):
        return read(path)
    with _alone(path, wait):
        try:
            if path.exists():  # another process has made it meanwhile, or it is damaged
                return read(path)
        except (PotstillError, OSError) as error:
            logger.warning("%s; it is made anew", str(error).rstrip("."))
        made = make()
        try:
            write(path, made)
        except (PotstillError, OSError) as error:
            _cannot_keep(path.parent, error)
        return made


@contextlib.contextmanager
def _alone(path: Path, wait: bool) -> Iterator[None]:
    """Where the folder can be written to, nobody else makes the same entry meanwhile."""
    beside, lock = path.with_suffix(".lock"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = files.take(beside)
        if lock is None and not wait:
            raise InUse(f"{path}: another process makes it; wait for it to end.")
        if lock is None:
            logger.info("waiting for another process that makes %s", path)
            lock = files.take(beside, wait=-1)  # the system frees it if that process is killed
    except OSError:
        pass  # then each makes its own
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                beside.unlink()  # while it is held: who waits for this file finds it gone, and takes a new one
            lock.release()


def _cannot_keep(folder: Path, error: Exception) -> None:
    if folder not in _unwritable:
        _unwritable.add(folder)
        logger.warning(
            "%s: what is made is not kept for the next time (%s); set POTSTILL_CACHE to a folder that can be written "
            "to.",
            folder, error,
        )  # fmt: skip
