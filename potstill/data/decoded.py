"""Decoded images, kept for the next time by what their files were."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from potstill.data.reading import Content
from potstill.data.split import Part, Split
from potstill.store import Made, once

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def stamps(files: Iterable[Path]) -> list[tuple[str, str, int, int]]:
    """What tells that files are still the same: names, what they link to, sizes and times.

    To be taken of all files that are opened, for what is not stamped may change unnoticed.
    """
    found = []
    for file in files:
        stat = file.stat()
        found.append((str(file.absolute()), str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return found


def cached(identity: Any, read: Callable[[], Content]) -> Content:
    """What ``read`` gives, or what it gave before for the same identity (JSON-like)."""

    def make() -> Made:
        made = read()
        tensors = {
            f"{part}.{name}": getattr(split, name)
            for part, split in made.parts.items()
            for name in ("images", "labels")
        }
        return tensors, {"classes": list(made.classes), "notes": list(made.notes)}

    tensors, header = once("images", identity, make)
    parts = {
        part: Split(tensors[f"{part}.images"], tensors[f"{part}.labels"])
        for part in PARTS
        if f"{part}.labels" in tensors
    }
    return Content(tuple(header["classes"]), parts, tuple(header["notes"]))
