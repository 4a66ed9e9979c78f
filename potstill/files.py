"""Files that are either whole or absent: safetensors with a JSON header, written beside and renamed."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from potstill.errors import PotstillError

VERSION = "0.1.0"
_HEADER = "potstill"


def write_bytes(path: Path, payload: bytes) -> None:
    """Write a file atomically: beside, fsync, rename.  A crash or a full disk leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise PotstillError(
            f"{path}: no room for {len(payload) / 1e6:.1f} MB ({error.strerror}); nothing was half-written. "
            "Free some space or choose another --out, then give the same command again to continue."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is named."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise PotstillError(f"{path}: not valid JSON ({error}); delete it or restore it from a copy.") from error


def save(path: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors with a JSON header that says what they are (``kind``) and which version wrote them."""
    text = json.dumps({"kind": kind, "version": VERSION, **header}, ensure_ascii=False)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, serialise(whole, metadata={_HEADER: text}))


@contextlib.contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[Callable[[str], Any], dict[str, Any]]]:
    """Open an artefact: a function from tensor name to lazy slice, and the header.

    Raises:
        PotstillError: the file is missing, truncated, not safetensors, or not a potstill artefact of this kind.
    """
    if not path.is_file():
        raise PotstillError(f"{path}: there is no such file; expected a potstill {kind}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise PotstillError(
                    f"{path}: a safetensors file, but not one of potstill's (no header); expected a {kind}."
                )
            header = json.loads(text)
            if header["kind"] != kind:
                raise PotstillError(f"{path}: holds a potstill {header['kind']}; expected a {kind}.")
            yield file.get_slice, header
    except SafetensorError as error:
        raise PotstillError(
            f"{path}: not a readable safetensors file, truncated or of another format ({error}); "
            f"expected a potstill {kind}. Copy it again or make it anew."
        ) from error


def load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of an artefact, and its header.  Errors as in :func:`opened`."""
    with opened(path, kind) as (_, header):
        pass
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118  (not a mapping)


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


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    yield
