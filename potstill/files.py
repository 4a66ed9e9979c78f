"""Files that are either whole or absent: safetensors with a JSON header, written beside and renamed.

The header says what a file is, which version wrote it, and what its tensors and its own text hash to: a flipped bit is
an error, never another result.  Files of 0.1.0 carry no checksums (format 1), and are read without.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from potstill.errors import InUse, PotstillError
from potstill.version import VERSION

FORMAT = 2  # of the files written here; raised whenever an older version could not read them
_HEADER = "potstill"
_SEAL = re.compile(r', "header_checksum": "([0-9a-f]{16})"}$')  # the last field: the checksum of the text without it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK, _HOLDER = ".lock", ".lock.json"

Upgrade = Callable[[dict[str, Any], int], dict[str, Any]]
"""(header, format) → the header as of today."""
Check = Callable[[dict[str, Tensor], dict[str, Any]], None]
"""(tensors, header) → raises PotstillError where they contradict each other."""


# --- whole or absent -----------------------------------------------------------------------------------------------


def host() -> str:
    """This machine's name, as it stands in file names."""
    return re.sub(r"[^\w-]", "-", platform.node()) or "localhost"


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a file atomically: beside, fsync, rename.  A crash or a full disk leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{host()}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _no_room(path, len(payload), error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def append_json(path: Path, value: Any) -> None:
    """Add a line of JSON to the end of a file.

    Raises:
        PotstillError: there is no room for it.
    """
    text = as_json(value) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _no_room(path, len(text), error) from error


def _no_room(path: Path, count: int, error: OSError) -> PotstillError:
    amount = f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
    return PotstillError(
        f"{path}: no room for {amount} ({error.strerror}); nothing was half-written. Free some space or choose another "
        "--out, then give the same command again to continue."
    )


def clear_leftovers(folder: Path) -> None:
    """Remove half-written files that killed processes of this machine left in a folder and those below it."""
    with contextlib.suppress(FileNotFoundError):  # another process may clear the same folder
        for path in list(folder.rglob(".*.tmp")):
            parts = path.name.split(".")
            if len(parts) >= 4 and parts[-3] == host() and parts[-2].isdecimal() and not _alive(int(parts[-2])):
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere asking would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # none, or a number that no process has
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_bytes(path, (as_json(value, indent=2) + "\n").encode())


def as_json(value: Any, **how: Any) -> str:
    """JSON that every reader takes: numbers that are not finite, which it has no word for, are null.

    Names of files that are not UTF-8 are escaped.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **how)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **how)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    """A plain value with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        PotstillError: it is damaged, or was written by a newer potstill (see :func:`stamped`).
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PotstillError(f"{path}: not valid JSON ({error}); restore it from a copy.") from error
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise _too_new(path, found.get("version"), number)
    return found


def stamped(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping to be written as JSON, with the version that writes it and the format that a reader must know."""
    return {"version": VERSION, "format": FORMAT, **value}


def _too_new(path: Path, version: Any, number: int) -> PotstillError:
    return PotstillError(
        f"{path}: was written by potstill {version} in format {number}, which this one ({VERSION}, format {FORMAT}) "
        "cannot read; install a newer potstill."
    )


# --- one at a time -------------------------------------------------------------------------------------------------


@dataclass
class _Hold:
    """A folder that this process holds: by which lock, in which process and thread, and how many times."""

    lock: Any
    owner: tuple[int, int]
    count: int = 0


_holds: dict[Path, _Hold] = {}


@contextlib.contextmanager
def locked(folder: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Keep every other process and thread from writing in a folder; the same thread may lock it again.

    It is released when the last of its holders ends, in whatever order they do, and by the system when the process is
    killed.

    Args:
        folder: made if it is missing.
        what: told to others that ask meanwhile, e.g. "distilling".
        wait: seconds to wait for another to end.

    Raises:
        InUse: another one holds it: which, where, since when, and what it does.
        PotstillError: a file is in the way.
    """
    path, owner = folder.resolve(), (os.getpid(), threading.get_ident())
    hold = _holds.get(path)
    if hold is None or hold.owner != owner:
        hold = _Hold(_acquire(folder, wait), owner)
        _holds[path] = hold
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError, PotstillError):  # only a courtesy to others
            write_json(path / _HOLDER, {"pid": os.getpid(), "host": host(), "since": since, "what": what})
    hold.count += 1
    try:
        yield
    finally:
        hold.count -= 1
        if not hold.count:
            del _holds[path]
            with contextlib.suppress(FileNotFoundError):
                (path / _HOLDER).unlink()
            hold.lock.release()


def _acquire(folder: Path, wait: float) -> Any:
    """The lock of a folder, to be released."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(folder.resolve() / _LOCK, wait)
    except (FileExistsError, NotADirectoryError) as error:
        raise PotstillError(f"{folder}: a file is in the way of this folder; choose another path.") from error
    except PermissionError as error:
        raise PotstillError(f"{folder}: cannot be written to ({error.strerror}); choose another path.") from error
    if lock is None:
        raise InUse(f"{folder}: {_holder(folder)}; wait for it to end, or give another --out.")
    return lock


def take(path: Path, wait: float = 0.0) -> Any | None:
    """The lock of a lock file, to be released; None where others have it longer than ``wait`` seconds.

    The system releases it when the process ends, however it ends.  A negative ``wait`` is endless.
    """
    import filelock

    for kind in (filelock.FileLock, filelock.SoftFileLock):  # the second is for file systems that know no locks
        lock = kind(str(path), timeout=wait, thread_local=False)
        try:
            lock.acquire(poll_interval=0.1)
            return lock
        except filelock.Timeout:
            return None
        except NotImplementedError:
            continue
    return None


def _holder(folder: Path) -> str:
    try:
        found = read_json(folder / _HOLDER)
        return f"in use by process {found['pid']} on {found['host']} since {found['since']} ({found['what']})"
    except (OSError, PotstillError, KeyError, TypeError):
        return "in use by another process"


# --- tensors with a header -----------------------------------------------------------------------------------------


def write_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any], by_row: Sequence[str] = ()
) -> None:  # fmt: skip
    """Write tensors with a JSON header that says what they are (``kind``) and which version wrote them.

    ``by_row`` names tensors of which single rows are read: each row has a checksum of its own.
    """
    own: dict[str, Any] = {"kind": kind, "version": VERSION, "format": FORMAT}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    own["checksums"] = {
        name: [_digest(row) for row in t] if name in by_row else _digest(t) for name, t in whole.items()
    }  # fmt: skip
    given = {name: value for name, value in header.items() if name != "header_checksum"}  # as of another file
    text = as_json({**own, **given, **own})
    sealed = f'{text[:-1]}, "header_checksum": "{_hash(text)}"}}'
    write_bytes(path, serialise(whole, metadata={_HEADER: sealed}))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _digest(tensor: Tensor) -> str:
    """What a tensor's type, shape and bytes hash to."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    if tensor.numel():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _copy(tensor: Tensor) -> Tensor:
    """A copy of a tensor, byte for byte: ``clone`` would make a damaged ``True`` of 3 a sound one of 1."""
    return tensor.reshape(-1).view(torch.uint8).clone().view(tensor.dtype).reshape(tensor.shape)


@dataclass(frozen=True)
class Reader:
    """An open artefact: its tensors are read when asked for, and held to their checksums.

    They are copies: the library's own are views of the file, which change with it when someone copies over it.
    """

    path: Path
    header: dict[str, Any]
    _file: Any

    def names(self) -> list[str]:
        """Names of its tensors."""
        return list(self._file.keys())

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        found = _copy(self._file.get_tensor(name))
        expected = self._sums().get(name)
        rows = isinstance(expected, list)
        if expected is not None and expected != ([_digest(row) for row in found] if rows else _digest(found)):
            self._damaged(name)
        return found

    def row(self, name: str, number: int) -> Tensor:
        """One row, counted from 0, of a tensor that was written ``by_row``; nothing else of it is read."""
        rows, expected = self._file.get_slice(name), self._sums().get(name)
        count = rows.get_shape()[0]
        if not 0 <= number < count:
            raise PotstillError(
                f"{self.path}: {name!r} has {count} rows, but row {number} is needed; copy the file again, or delete "
                "it and make it anew."
            )
        found = _copy(rows[number])
        if isinstance(expected, list) and (len(expected) != count or expected[number] != _digest(found)):
            self._damaged(name)
        return found

    def _sums(self) -> dict[str, Any]:
        return self.header.get("checksums", {})

    def _damaged(self, name: str) -> NoReturn:
        raise PotstillError(
            f"{self.path}: damaged: {name!r} does not match its checksum; copy the file again, or delete it and make "
            "it anew."
        )


@contextlib.contextmanager
def opened(path: Path, kind: str, upgrade: Upgrade | None = None) -> Iterator[Reader]:
    """Open an artefact.

    Raises:
        PotstillError: the file is missing, truncated, damaged, not safetensors, not a potstill artefact of this kind,
            or written by a newer potstill.
    """
    if not path.is_file():
        raise PotstillError(f"{path}: there is no such file; expected a potstill {kind}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield Reader(path, _header(path, kind, file, upgrade), file)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise PotstillError(
            f"{path}: not a readable safetensors file, truncated or of another format ({error}); "
            f"expected a potstill {kind}. Copy it again or make it anew."
        ) from error


def _header(path: Path, kind: str, file: Any, upgrade: Upgrade | None) -> dict[str, Any]:
    """The header of an open file, held to its checksum and brought up to date."""
    text = (file.metadata() or {}).get(_HEADER)
    if text is None:
        raise PotstillError(f"{path}: a safetensors file, but not one of potstill's (no header); expected a {kind}.")
    seal = _SEAL.search(text)
    if seal and seal[1] != _hash(text[: seal.start()] + "}"):
        raise PotstillError(f"{path}: damaged: its header does not match its checksum; copy the file again.")
    try:
        header = json.loads(text)
        number, of_kind = int(header.get("format", 1)), header["kind"]
    except (json.JSONDecodeError, RecursionError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise PotstillError(f"{path}: damaged: its header is not readable ({error}); copy the file again.") from error
    if of_kind != kind:
        raise PotstillError(f"{path}: holds a potstill {of_kind}; expected a {kind}.")
    if number > FORMAT:
        raise _too_new(path, header.get("version"), number)
    if number > 1 and (seal is None or set(header["checksums"]) != set(file.keys())):
        raise PotstillError(f"{path}: damaged: its tensors are not those of its header; copy the file again.")
    return upgrade(header, number) if upgrade else header


def read_tensors(
    path: Path, kind: str, *, upgrade: Upgrade | None = None, check: Check | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """All tensors of an artefact, and its header, brought up to date and checked.  Errors as in :func:`opened`."""
    with opened(path, kind, upgrade) as reader:
        tensors = {name: reader.tensor(name) for name in reader.names()}
        if check is not None:
            try:
                check(tensors, reader.header)
            except PotstillError as error:
                raise PotstillError(f"{path}: {error}") from error
        return tensors, reader.header


# --- comparing -----------------------------------------------------------------------------------------------------


def fingerprint(*values: Any) -> str:
    """Sixteen hex digits that change with any of the values (JSON-like, or tensors)."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            digest.update(str((tuple(value.shape), value.dtype)).encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two nested configurations differ, as ``name: found, not wanted``."""
    lines: list[str] = []
    for name in dict.fromkeys([*found, *wanted]):
        here, there = found.get(name), wanted.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            lines += differences(here, there, f"{prefix}{name}.")
        elif here != there:
            lines.append(f"{prefix}{name}: {here!r}, not {there!r}")
    return lines


def plain(value: Any) -> Any:
    """A configuration as JSON gives it back (tuples become lists), for comparing with a stored one."""
    return json.loads(json.dumps(value))
