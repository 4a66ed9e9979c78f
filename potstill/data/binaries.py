"""Plain binary files of images: IDX (MNIST and its kin), and CIFAR's original binary version."""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potstill.data.pixels import claimed
from potstill.data.reading import Found, Raw, Reading
from potstill.data.split import Part, part_of
from potstill.errors import PotstillError

IDX = re.compile(r"idx[1-4][-_.]?ubyte", re.IGNORECASE)
IDX_UBYTE = b"\x00\x00\x08"
CIFAR_PIXELS = 3 * 32 * 32
CIFAR_BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")


def idx_files(files: Sequence[Path]) -> list[Path]:
    """Those that are IDX files by their names."""
    return [file for file in files if IDX.search(file.name)]


def cifar_files(files: Sequence[Path]) -> list[Path]:
    """Those that are batches of CIFAR's binary version by their names."""
    return [file for file in files if CIFAR_BATCH.fullmatch(file.name)]


# --- IDX -----------------------------------------------------------------------------------------------------------


def read_idx(files: Sequence[Path]) -> Found:
    """Pairs of image and label files: train-images-idx3-ubyte(.gz), train-labels-idx1-ubyte(.gz), t10k-….

    Raises:
        PotstillError: a pair is not whole, or two are for the same part.
    """
    found: dict[tuple[Part, bool], Path] = {}
    for file in sorted(files, key=lambda file: file.suffix == ".gz"):
        part = part_of(file.name) or "train"
        key = part, "label" in file.name.lower()
        if key in found and found[key].name.removesuffix(".gz") == file.name.removesuffix(".gz"):
            continue  # unpacked beside the packed one
        if key in found:
            raise PotstillError(
                f"{file.parent}: {found[key].name} and {file.name} are both for {part}; give a folder with one of them."
            )
        found[key] = file
    parts: dict[Part, Raw] = {}
    for part in sorted({part for part, _ in found}, reverse=True):  # training first
        pair = found.get((part, False)), found.get((part, True))
        if pair[0] is None or pair[1] is None:
            lacking = "images" if pair[0] is None else "labels"
            raise PotstillError(f"{files[0].parent}: the {part} part has no file of {lacking}; add it.")
        parts[part] = Raw(_idx(pair[0]), _idx(pair[1]).reshape(-1).tolist(), str(pair[0]))
    return Found(parts)


def _idx(file: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes."""
    content = _bytes(file)
    if len(content) < 4 or content[:3] != IDX_UBYTE or not 1 <= content[3] <= 4:
        raise PotstillError(f"{file}: no IDX file of unsigned bytes; get it again.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise PotstillError(f"{file}: cut short; get it again.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    claimed(shape, 1, len(content) - start, str(file))
    return np.frombuffer(content, np.uint8, math.prod(shape), start).reshape(shape)


def _bytes(file: Path) -> bytes:
    if file.suffix.lower() != ".gz":
        return file.read_bytes()
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise PotstillError(f"{file}: not a readable gzip file ({error}); get it again.") from error


# --- CIFAR ---------------------------------------------------------------------------------------------------------


def read_cifar(files: Sequence[Path], how: Reading) -> Found:
    """CIFAR's binary version: records of one label (CIFAR-10) or a coarse and a fine one (CIFAR-100), then the pixels.

    Raises:
        PotstillError: a batch is not whole, or a label column other than "fine" or "coarse" is asked for.
    """
    folder = files[0].parent
    labels = 2 if (folder / "fine_label_names.txt").exists() or all(f.stem in ("train", "test") for f in files) else 1
    column = how.label_column or "fine"
    if column not in ("fine", "coarse") or (labels == 1 and how.label_column):
        known = "it has fine and coarse ones" if labels == 2 else "it has one kind; leave --label-column out"
        raise PotstillError(f"{folder}: no labels {column!r}: {known}.")
    batches: dict[Part, list[np.ndarray]] = {}
    for file in sorted(files):
        content = np.fromfile(file, np.uint8)
        if len(content) == 0 or len(content) % (labels + CIFAR_PIXELS):
            raise PotstillError(f"{file}: {len(content)} bytes are no whole number of CIFAR's records; get it again.")
        batches.setdefault(part_of(file.name) or "train", []).append(content.reshape(-1, labels + CIFAR_PIXELS))
    parts: dict[Part, Raw] = {}
    for part, found in batches.items():
        rows = np.concatenate(found)
        which = 0 if labels == 1 or column == "coarse" else 1
        parts[part] = Raw(rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, which].tolist(), str(folder))
    names = folder / ("batches.meta.txt" if labels == 1 else f"{column}_label_names.txt")
    return Found(parts, names.read_text().split() if names.exists() else None)
