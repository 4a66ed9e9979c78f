"""Any labelled images → uint8 arrays with a training, a validation and a test part.

``load`` takes "digits" (embedded), a folder of class folders, a folder of Parquet or ``.npz`` files, one ``.npz``
file, or the name of a Hugging Face dataset.  Files are decoded once; the arrays are cached by what the files were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from potstill import files, seeds
from potstill.data import arrays, folders, tables
from potstill.data.decoded import cached, stamps
from potstill.data.split import Content, Split
from potstill.errors import PotstillError
from potstill.store import cache_folder

__all__ = ["Dataset", "Split", "cache_folder", "load"]

TEST_PART = 0.2  # taken from the training images where a dataset brings no test images


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits; ``fingerprint`` changes with any pixel, label or class name."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w


def load(
    source: str, *, validation: float = 0.1, resize: int | None = None, label_column: str | None = None
) -> Dataset:
    """Read a dataset and carve its validation part out of the training part, class by class.

    Args:
        source: see the module's text.
        validation: fraction of the training images kept aside, at least one and never all of a class.  Which ones
            does not depend on a run's seed, so that experts, controls and runs of other seeds fit together.
        resize: resize the shorter side to this many pixels and crop the centre.
        label_column: label column of tables with several.

    Raises:
        PotstillError: the source cannot be read or does not hold images of one shape with labels in range.
    """
    if resize is not None and resize < 1:
        raise PotstillError(f"resize {resize}: at least 1 pixel is needed, or leave it out.")
    if not 0 < validation < 1:
        raise PotstillError(f"validation is a fraction between 0 and 1 of the training images; got {validation}.")
    name, (classes, parts) = _read(source, resize, label_column)
    train, test = parts["train"], parts.get("test")
    _check(name, classes, train, "training")
    if test is None:
        test, train = _divide(train, TEST_PART, len(classes), seeds.generator(0, "test split"))
    else:
        _check(name, classes, test, "test")
        if test.images.shape[1:] != train.images.shape[1:]:
            raise PotstillError(
                f"{name}: training images are {_shape(train)}, test images {_shape(test)}; "
                "make them alike, or pass --resize."
            )
    val, train = _divide(train, validation, len(classes), seeds.generator(0, "validation split"))
    content = [tensor for split in (train, val, test) for tensor in (split.images, split.labels)]
    return Dataset(name, classes, train, val, test, files.fingerprint(list(classes), *content))


def _read(source: str, resize: int | None, column: str | None) -> tuple[str, Content]:
    """The name of a source and what it holds."""
    path = Path(source)
    if source == "digits":
        return source, _digits()
    if path.is_file():
        if path.suffix != ".npz":
            raise PotstillError(f"{source}: a file, but not .npz; give a folder, an .npz file or a dataset's name.")
        return path.stem, cached(stamps([path]), resize, column, lambda: arrays.read([path], resize))
    if not path.is_dir():
        if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or path.suffix == ".npz":
            raise PotstillError(f"{source}: there is no such file or folder; check the path.")
        return source, tables.hub(source, resize, column)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    name = path.resolve().name
    if packed := [file for file in files if file.suffix == ".npz"]:
        return name, cached(stamps(packed), resize, column, lambda: arrays.read(packed, resize))
    if parquet := [file for file in files if file.suffix == ".parquet"]:
        return name, cached(stamps(parquet), resize, column, lambda: tables.parquet(source, parquet, resize, column))
    identity = [str(path.resolve()), stamps(files)]  # the same files below another folder are of other classes
    return name, cached(identity, resize, column, lambda: folders.read(path, resize))


def _digits() -> Content:
    """1797 hand-written digits of 8×8 grey pixels (UCI; in scikit-learn), a fifth of them for testing."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    whole = Split(images, torch.from_numpy(raw.target.astype(np.int64)))
    test, train = _divide(whole, TEST_PART, 10, seeds.generator(0, "digits"))
    return tuple("0123456789"), {"train": train, "test": test}


def _check(name: str, classes: Sequence[str], split: Split, part: str) -> None:
    if len(classes) < 2:
        raise PotstillError(f"{name}: {len(classes)} class; classification needs two or more.")
    outside = [int(label) for label in (split.labels.min(), split.labels.max()) if not 0 <= label < len(classes)]
    if outside:
        raise PotstillError(
            f"{name}: {part} label {outside[0]} is out of range for {len(classes)} classes; labels count from 0."
        )
    empty = torch.bincount(split.labels, minlength=len(classes)).eq(0).nonzero()
    if len(empty):
        raise PotstillError(
            f"{name}: class {classes[int(empty[0])]!r} has no {part} images; add some, or drop the class."
        )


def _divide(split: Split, part: float, classes: int, generator: torch.Generator) -> tuple[Split, Split]:
    """Split off a part of each class, at least one image and never the last one; orders are kept."""
    aside = torch.zeros(len(split), dtype=torch.bool)
    for label in range(classes):
        rows = (split.labels == label).nonzero().flatten()
        if len(rows) < 2:
            raise PotstillError(
                f"class number {label} has only {len(rows)} training image; a validation part (and a test part where "
                "there is none) must be taken from each class: add images or drop the class."
            )
        count = min(max(round(part * len(rows)), 1), len(rows) - 1)
        aside[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return split[aside.nonzero().flatten()], split[(~aside).nonzero().flatten()]


def _shape(split: Split) -> str:
    c, h, w = split.images.shape[1:]
    return f"{w}×{h} {'grey' if c == 1 else 'colour'}"
