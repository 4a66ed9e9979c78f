"""Decoded images, kept by what their files were."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill import artefacts
from potstill.data.split import Content, Split
from potstill.errors import PotstillError


def cache_folder() -> Path:
    """Where decoded arrays and control results are kept: $POTSTILL_CACHE, or ~/.cache/potstill."""
    return Path(os.environ.get("POTSTILL_CACHE", "~/.cache/potstill")).expanduser()


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells that files are still the same: paths, sizes and times."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def cached(identity: Any, resize: int | None, column: str | None, read: Callable[[], Content]) -> Content:
    """What ``read`` gives, or what it gave before for files of the same identity, size and column."""
    key = hashlib.sha256(json.dumps([identity, resize, column]).encode()).hexdigest()[:24]
    path = cache_folder() / "data" / f"{key}.safetensors"
    try:
        tensors, header = artefacts.load(path, "data cache")
    except PotstillError:
        classes, parts = read()
        tensors = {
            f"{part}.{name}": getattr(split, name) for part, split in parts.items() for name in ("images", "labels")
        }
        try:
            artefacts.save(path, "data cache", tensors, {"classes": list(classes)})
        except (PotstillError, OSError) as error:  # a convenience only
            warnings.warn(f"the decoded images are not kept for the next time: {error}", stacklevel=2)
        return classes, parts
    parts = {
        part: Split(tensors[f"{part}.images"], tensors[f"{part}.labels"])
        for part in ("train", "test")
        if f"{part}.labels" in tensors
    }
    return tuple(header["classes"]), parts
