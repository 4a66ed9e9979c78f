"""WebDataset shards: tar files in which an image and its label share a name (0007.jpg, 0007.cls or 0007.json)."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.data import pixels
from potstill.data.reading import Found, Raw, Reading
from potstill.data.split import Part, part_of_path
from potstill.errors import PotstillError

ENDINGS = (".tar", ".tar.gz", ".tgz")
LABEL_ENDINGS = ("cls", "cls.txt", "label", "json")
LABELS = ("label", "cls", "class", "target")  # in a json
LARGEST = 256 * 2**20  # bytes of one member; more is no picture, and may be a trap


def shard_files(files: Sequence[Path]) -> list[Path]:
    """Those that are tar files by their names."""
    return [file for file in files if file.name.lower().endswith(ENDINGS)]


def read(root: Path, files: Sequence[Path], how: Reading) -> Found:
    """The images and labels of all shards; nothing is unpacked to disk.

    Raises:
        PotstillError: a shard cannot be read, or an image in it has no label.
    """
    parts: dict[Part, tuple[list[tuple[str, bytes]], list[Any]]] = {}
    for file in files:
        images, labels = parts.setdefault(part_of_path(file.relative_to(root)) or "train", ([], []))
        for key, sample in _samples(file).items():
            ending = next((ending for ending in sample if f".{ending.split('.')[-1]}" in pixels.endings()), None)
            if ending is not None:
                images.append((f"{file}, {key}.{ending}", sample[ending]))
                labels.append(_label(sample, f"{file}, {key}", how))
    if not any(images for images, _ in parts.values()):
        raise PotstillError(f"{root}: its tar files hold no images beside labels (.cls or .json); unpack them.")
    return Found({part: Raw(images, labels, str(root)) for part, (images, labels) in parts.items() if images})


def _samples(file: Path) -> dict[str, dict[str, bytes]]:
    """Contents by name and ending."""
    samples: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(file) as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                if not member.isreg() or name.startswith("."):
                    continue
                if member.issparse() or member.size > LARGEST:
                    raise PotstillError(f"{file}: {member.name} claims {member.size} bytes; remove it.")
                stem, _, ending = name.partition(".")
                content = shard.extractfile(member)
                assert content is not None
                samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[ending.lower()] = content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise PotstillError(f"{file}: not a readable tar file ({error}); get it again.") from error
    return samples


def _label(sample: dict[str, bytes], where: str, how: Reading) -> Any:
    """A sample's label; None where it has none."""
    ending = next((ending for ending in LABEL_ENDINGS if ending in sample), None)
    if ending is None:
        return None
    text = sample[ending].decode("utf-8", "backslashreplace").strip()
    if ending != "json":
        return int(text) if text.removeprefix("-").isdecimal() else text
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PotstillError(f"{where}.json: no JSON ({error}); mend or remove it.") from error
    if not isinstance(told, dict):
        return told
    names = (how.label_column,) if how.label_column else LABELS
    return next((told[name] for name in names if name in told), None)
