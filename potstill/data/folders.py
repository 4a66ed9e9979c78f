"""Folders with one folder of image files a class."""

from collections.abc import Sequence
from pathlib import Path

import torch

from potstill.data.pixels import decode
from potstill.data.split import TEST, TRAIN, VALIDATION, Content, Split
from potstill.errors import PotstillError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def read(root: Path, resize: int | None) -> Content:
    """Class folders, with or without train and test (or val) folders above them."""
    children = {child.name.lower(): child for child in sorted(root.iterdir()) if child.is_dir()}
    if not children:
        raise PotstillError(
            f"{root}: holds no class folders, no .parquet and no .npz; expected one folder a class, or train/ and "
            "test/ with one folder a class in each."
        )
    train = next((children[name] for name in TRAIN if name in children and not _is_class(children[name])), None)
    test = next((children[name] for name in (*TEST, *VALIDATION) if name in children), None)
    if train is None:
        train, test = root, None
    classes = _class_names(train)
    if not classes:
        raise PotstillError(f"{train}: holds no class folders; expected one folder a class.")
    if test is not None and (unknown := set(_class_names(test)) - set(classes)):
        raise PotstillError(f"{test}: class {sorted(unknown)[0]!r} has no folder in {train}; rename or remove it.")
    named = {"train": train} if test is None else {"train": train, "test": test}
    return classes, {name: _class_folders(folder, classes, resize) for name, folder in named.items()}


def _is_class(folder: Path) -> bool:
    """Whether it holds images and no folders: classes may be called as parts are, CIFAR-100 has one of trains."""
    images = any(file.suffix.lower() in SUFFIXES for file in folder.iterdir() if file.name[0] != ".")
    return images and not _class_names(folder)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != "."))


def _class_folders(folder: Path, classes: Sequence[str], resize: int | None) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = folder / name
        found = sorted(f for f in inside.rglob("*") if f.suffix.lower() in SUFFIXES) if inside.is_dir() else []
        if not found:
            raise PotstillError(f"{inside}: class {name!r} has no images; add some, or remove the folder.")
        files += found
        labels += [label] * len(found)
    return Split(decode(((str(file), file) for file in files), resize), torch.tensor(labels))
