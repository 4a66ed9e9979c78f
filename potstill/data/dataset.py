"""Any labelled images → uint8 arrays with a training, a validation and a test part.

``load`` takes "digits" (embedded), a folder, a file, or the name of a Hugging Face dataset.  A folder may hold class
folders, images with a table of their labels, ``.npz``, Parquet, IDX or CIFAR's binary files, or WebDataset shards.
Files are decoded once; the arrays are cached by what the files were.  A program also gives what it holds in memory
(``memory.py``), which settings then name by its contents: "arrays:" and the fingerprint.
"""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill import files, seeds
from potstill.data import annotations, arrays, binaries, folders, memory, shards, tables
from potstill.data.decoded import cached, stamps
from potstill.data.reading import Content, Found, Reading, content
from potstill.data.split import Part, Split
from potstill.errors import PotstillError
from potstill.store import cache_folder

__all__ = ["Dataset", "Split", "cache_folder", "load"]

OPTIONS = ("validation", "resize", "label_column", "image_column", "classes", "skip_unreadable")
"""Settings of a run that say how its data are read: the arguments of :func:`load`."""
TEST_PART = 0.2  # taken from the training images where a dataset brings no test images
TEXTS = (".txt", *annotations.ENDINGS)  # files that tell labels or names
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits; ``fingerprint`` changes with any pixel, label or class name."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    notes: tuple[str, ...] = ()  # what was left out or changed on the way, a sentence each

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w


def load(
    source: Any, *, test: Any = None, validation: float = 0.1, resize: int | None = None,
    label_column: str | None = None, image_column: str | None = None, classes: Sequence[str] = (),
    skip_unreadable: bool = False,
) -> Dataset:  # fmt: skip
    """Read a dataset; a validation part that it does not bring is taken from the training part, class by class.

    Args:
        source: see the module's text.
        test: the test part of data in memory that hold none.
        validation: fraction of the training images kept aside, at least one and never all of a class.  Which ones
            does not depend on a run's seed, so that experts, controls and runs of other seeds fit together.  A dataset
            that brings validation images beside test images keeps its own.
        resize: resize the shorter side to this many pixels and crop the centre.
        label_column: label column of tables with several.
        image_column: image column of tables with several.
        classes: names of the classes to read; by default all.
        skip_unreadable: leave images out that cannot be decoded, and say which.

    Raises:
        PotstillError: the source cannot be read or does not hold images of one shape with labels in range.
    """
    if resize is not None and resize < 1:
        raise PotstillError(f"resize {resize}: at least 1 pixel is needed, or leave it out.")
    if not 0 < validation < 1:
        raise PotstillError(f"validation is a fraction between 0 and 1 of the training images; got {validation}.")
    name, found = _read(source, test, Reading(resize, label_column, image_column, skip_unreadable))
    found = replace(found, parts={part: _counted(split) for part, split in found.parts.items()})
    found = _subset(name, found, classes) if classes else found
    parts, names = dict(found.parts), found.classes
    _check(name, names, parts["train"], "training")
    if "test" not in parts and "validation" in parts:  # as where the public test images have no labels
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        parts["test"], parts["train"] = _divide(parts["train"], TEST_PART, names, seeds.generator(0, "test split"))
    else:
        _check(name, names, parts["test"], "test")
    if "validation" not in parts:
        draws = seeds.generator(0, "validation split")
        parts["validation"], parts["train"] = _divide(parts["train"], validation, names, draws)
    _check_shapes(name, parts)
    for note in found.notes:
        logger.info("%s: %s", name, note)
    train, val, test = parts["train"], parts["validation"], parts["test"]
    tensors = [tensor for split in (train, val, test) for tensor in (split.images, split.labels)]
    return Dataset(name, names, train, val, test, files.fingerprint(list(names), *tensors), found.notes)


# --- what a source is ----------------------------------------------------------------------------------------------


def in_memory(source: Any) -> bool:
    """Whether a source is what a program holds, and no name or path."""
    return not isinstance(source, str | Path)


def name_in_settings(dataset: Dataset) -> str:
    """How settings name data that were given in memory."""
    return f"{memory.NAME}:{dataset.fingerprint}"


def _read(source: Any, test: Any, how: Reading) -> tuple[str, Content]:
    """The name of a source and what it holds."""
    if in_memory(source):
        return memory.NAME, memory.read(source, test, how)
    if test is not None:
        raise PotstillError(f"test: belongs to data in memory; put the test images into {source}, or leave it out.")
    source = str(source)
    if source.partition(":")[0] == memory.NAME and not Path(source).exists():
        raise PotstillError(
            f"{source}: these data were given in Python, and only their fingerprint is known; give them again there "
            "(data=), or as a folder or .npz file by --dataset."
        )
    path = Path(source)
    if source == "digits":
        _refuse(how, "the digits", "resize", "label_column", "image_column", "skip_unreadable")
        return source, _digits()
    if path.is_dir():
        opened, read = _folder(path, how)
        identity = [str(path.absolute()), stamps(opened), asdict(how)]
        return path.resolve().name, cached(identity, lambda: content(read(), how))
    if path.exists():
        opened, read = _file(path, how)
        return path.stem, cached([stamps(opened), asdict(how)], lambda: content(read(), how))
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or path.suffix in (".npz", ".csv"):
        raise PotstillError(f"{source}: there is no such file or folder; check the path.")
    table, identity = tables.load_hub(source)
    return source, cached([identity, asdict(how)], lambda: content(tables.read_hub(source, table, how), how))


Reader = tuple[list[Path], Callable[[], Found]]
"""All files that are opened, and what opens them."""


def _file(path: Path, how: Reading) -> Reader:
    """How one file is read: arrays, or a table of the images beside it."""
    ending = path.suffix.lower()
    if path.is_file() and ending == ".npz":
        _refuse(how, "an .npz file", "label_column", "image_column", "skip_unreadable")
        return [path], lambda: arrays.read(path.parent, [path])
    if path.is_file() and ending in annotations.ENDINGS:
        tree = folders.scan(path.parent)
        return [path, *tree.all_images], lambda: annotations.read(tree, [path], how)
    raise PotstillError(f"{path}: a file, but not .npz or .csv; give a folder, such a file or a dataset's name.")


def _folder(root: Path, how: Reading) -> Reader:
    """How a folder is read, by what lies in it; folders of images outrank files that lie deeper than they."""
    tree = folders.scan(root)
    images = tree.all_images
    told = annotations.tables(tree)
    texts = [file for file in tree.all_others if file.suffix.lower() in TEXTS]
    if images and (named := annotations.by_convention(told)):
        return [*images, *named], lambda: annotations.read(tree, named, how)
    if folders.holds_classes(tree):
        _refuse(how, "class folders", "label_column", "image_column")
        return [*images, *texts], lambda: folders.read(tree)
    top = min((len(image.parent.parts) for image in images), default=None)
    if packed := _packed(root, [f for f in tree.all_others if top is None or len(f.parent.parts) < top], how):
        return packed
    if told and images:
        return [*images, *told], lambda: annotations.read(tree, told, how)
    if images:
        _refuse(how, "class folders", "label_column", "image_column")
        return [*images, *texts], lambda: folders.read(tree)
    raise PotstillError(
        f"{root}: holds no class folders, no table of images and labels, and no .parquet, .npz, IDX, CIFAR or .tar "
        "files; expected one folder a class, or train/ and test/ with one folder a class in each."
    )


def _packed(root: Path, others: list[Path], how: Reading) -> Reader | None:
    """How the files that hold many images each are read; None where there are none."""
    if npz := [file for file in others if file.suffix.lower() == ".npz"]:
        _refuse(how, ".npz files", "label_column", "image_column", "skip_unreadable")
        return npz, lambda: arrays.read(root, npz)
    if parquet := [file for file in others if file.suffix.lower() == ".parquet"]:
        named = tables.references(root, parquet, stamps(parquet))
        return [*parquet, *named], lambda: tables.read_parquet(root, parquet, how)
    if idx := binaries.idx_files(others):
        _refuse(how, "IDX files", "label_column", "image_column", "skip_unreadable")
        return idx, lambda: binaries.read_idx(idx)
    if cifar := binaries.cifar_files(others):
        _refuse(how, "CIFAR's binary files", "image_column", "skip_unreadable")
        names = [file for file in others if file.suffix == ".txt"]
        return [*cifar, *names], lambda: binaries.read_cifar(cifar, how)
    if tars := shards.shard_files(others):
        _refuse(how, "tar files", "image_column")
        return tars, lambda: shards.read(root, tars, how)
    return None


def _refuse(how: Reading, source: str, *options: str) -> None:
    """Refuse options that would have no effect on a source."""
    for option in options:
        if value := getattr(how, option):
            raise PotstillError(f"{option} {value}: has no effect on {source}; leave --{option.replace('_', '-')} out.")


def _digits() -> Content:
    """1797 hand-written digits of 8×8 grey pixels (UCI; in scikit-learn), a fifth of them for testing."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    whole, names = Split(images, torch.from_numpy(raw.target.astype(np.int64))), tuple("0123456789")
    test, train = _divide(whole, TEST_PART, names, seeds.generator(0, "digits"))
    return Content(names, {"train": train, "test": test})


# --- classes and parts ---------------------------------------------------------------------------------------------


def _subset(name: str, found: Content, wanted: Sequence[str]) -> Content:
    """The images of some classes, numbered in their old order.

    Raises:
        PotstillError: there is no such class (near names are suggested).
    """
    for one in wanted:
        if one not in found.classes:
            near = difflib.get_close_matches(one, found.classes, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(found.classes)}."
            raise PotstillError(f"classes {one!r}: {name} has no such class; {hint}")
    kept = [label for label, one in enumerate(found.classes) if one in wanted]
    numbers = torch.full((len(found.classes),), -1)
    numbers[kept] = torch.arange(len(kept))
    parts: dict[Part, Split] = {}
    for part, split in found.parts.items():
        inside = split[(numbers[split.labels] >= 0).nonzero().flatten()]
        parts[part] = replace(inside, labels=numbers[inside.labels])
    return replace(found, classes=tuple(found.classes[label] for label in kept), parts=parts)


def _counted(split: Split) -> Split:
    """A part that knows the rows of its images, so that what is taken out of it does too."""
    return split if split.rows is not None else replace(split, rows=torch.arange(len(split)))


def _check(name: str, classes: Sequence[str], split: Split, part: str) -> None:
    if len(classes) < 2:
        raise PotstillError(f"{name}: {len(classes)} class; classification needs two or more.")
    empty = torch.bincount(split.labels, minlength=len(classes)).eq(0).nonzero()
    if len(empty):
        raise PotstillError(
            f"{name}: class {classes[int(empty[0])]!r} has no {part} images; add some, or drop the class."
        )


def _check_shapes(name: str, parts: dict[Part, Split]) -> None:
    for part, split in parts.items():
        if split.images.shape[1:] != parts["train"].images.shape[1:]:
            raise PotstillError(
                f"{name}: training images are {_shape(parts['train'])}, {part} images {_shape(split)}; make them "
                "alike, or pass --resize."
            )


def _divide(
    split: Split, part: float, classes: Sequence[str], generator: torch.Generator
) -> tuple[Split, Split]:  # fmt: skip
    """Split off a part of each class, at least one image and never the last one; orders are kept."""
    aside = torch.zeros(len(split), dtype=torch.bool)
    for label, name in enumerate(classes):
        rows = (split.labels == label).nonzero().flatten()
        if len(rows) < 2:
            raise PotstillError(
                f"class {name!r} has only {len(rows)} training image; a validation part (and a test part where there "
                "is none) must be taken from each class: add images or drop the class."
            )
        count = min(max(round(part * len(rows)), 1), len(rows) - 1)
        aside[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return split[aside.nonzero().flatten()], split[(~aside).nonzero().flatten()]


def _shape(split: Split) -> str:
    c, h, w = split.images.shape[1:]
    return f"{w}×{h} {'grey' if c == 1 else 'colour'}"


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")
