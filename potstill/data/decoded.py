"""Decoded images, kept for the next time by what their files were."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill.data.split import Content, Split
from potstill.store import Made, once


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells that files are still the same: paths, sizes and times."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def cached(identity: Any, resize: int | None, column: str | None, read: Callable[[], Content]) -> Content:
    """What ``read`` gives, or what it gave before for files of the same identity, size and column."""

    def make() -> Made:
        classes, parts = read()
        tensors = {
            f"{part}.{name}": getattr(split, name) for part, split in parts.items() for name in ("images", "labels")
        }
        return tensors, {"classes": list(classes)}

    tensors, header = once("data", [identity, resize, column], make)
    parts = {
        part: Split(tensors[f"{part}.images"], tensors[f"{part}.labels"])
        for part in ("train", "test")
        if f"{part}.labels" in tensors
    }
    return tuple(header["classes"]), parts
