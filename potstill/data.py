"""Any labelled images → uint8 arrays with a training, a validation and a test part.

``load`` takes "digits" (embedded), a folder of class folders, a folder of Parquet or ``.npz`` files, one ``.npz``
file, or the name of a Hugging Face dataset.  Files are decoded once; the arrays are cached by what the files were.
"""

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill import artefacts, seeds
from potstill.errors import PotstillError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_TRAIN, _TEST, _VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
TEST_PART = 0.2  # taken from the training images where a dataset brings no test images


@dataclass(frozen=True)
class Split:
    """Images and what they show."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        return Split(self.images[rows], self.labels[rows])


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
    name, classes, parts = _read(source, resize, label_column)
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
    return Dataset(name, classes, train, val, test, artefacts.fingerprint(list(classes), *content))


def _read(source: str, resize: int | None, column: str | None) -> tuple[str, tuple[str, ...], dict[str, Split]]:
    """Name, classes and the splits present ("train", perhaps "test")."""
    path = Path(source)
    if source == "digits":
        return _digits()
    if path.is_file():
        if path.suffix != ".npz":
            raise PotstillError(f"{source}: a file, but not .npz; give a folder, an .npz file or a dataset's name.")
        return path.stem, *_cached(_stamps([path]), resize, column, lambda: _arrays([path], resize))
    if not path.is_dir():
        if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
            raise PotstillError(f"{source}: there is no such folder; check the path.")
        return source, *_hub(source, resize, column)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    name = path.resolve().name
    if arrays := [file for file in files if file.suffix == ".npz"]:
        return name, *_cached(_stamps(arrays), resize, column, lambda: _arrays(arrays, resize))
    if tables := [file for file in files if file.suffix == ".parquet"]:
        return name, *_cached(_stamps(tables), resize, column, lambda: _parquet(source, tables, resize, column))
    return name, *_cached(_stamps(files), resize, column, lambda: _folder(path, resize))


# --- the embedded dataset ------------------------------------------------------------------------------------------


def _digits() -> tuple[str, tuple[str, ...], dict[str, Split]]:
    """1797 hand-written digits of 8×8 grey pixels (UCI; in scikit-learn), a fifth of them for testing."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    whole = Split(images, torch.from_numpy(raw.target.astype(np.int64)))
    test, train = _divide(whole, TEST_PART, 10, seeds.generator(0, "digits"))
    return "digits", tuple("0123456789"), {"train": train, "test": test}


# --- folders of class folders --------------------------------------------------------------------------------------


def _folder(root: Path, resize: int | None) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Class folders, with or without train and test (or val) folders above them."""
    children = {child.name.lower(): child for child in sorted(root.iterdir()) if child.is_dir()}
    if not children:
        raise PotstillError(
            f"{root}: holds no class folders, no .parquet and no .npz; expected one folder a class, or train/ and "
            "test/ with one folder a class in each."
        )
    train = next((children[name] for name in _TRAIN if name in children), None)
    test = next((children[name] for name in (*_TEST, *_VALIDATION) if name in children), None)
    if train is None:
        train, test = root, None
    classes = _class_names(train)
    if not classes:
        raise PotstillError(f"{train}: holds no class folders; expected one folder a class.")
    if test is not None and (unknown := set(_class_names(test)) - set(classes)):
        raise PotstillError(f"{test}: class {sorted(unknown)[0]!r} has no folder in {train}; rename or remove it.")
    named = {"train": train} if test is None else {"train": train, "test": test}
    return classes, {name: _class_folders(folder, classes, resize) for name, folder in named.items()}


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
    return Split(_decode(((str(file), file) for file in files), resize), torch.tensor(labels))


def _decode(sources: Iterable[tuple[str, Any]], resize: int | None) -> Tensor:
    """Decode (name, file) pairs into one (N, C, H, W) uint8 tensor; whatever does not fit is named."""
    arrays: list[np.ndarray] = []
    first = ""
    for name, source in sources:
        array = _decode_one(name, source, resize)
        if arrays and array.shape != arrays[0].shape:
            same_mode = array.shape[2] == arrays[0].shape[2]
            remedy = "pass --resize PIXELS" if same_mode else "convert all images to one mode"
            raise PotstillError(f"{name}: {_describe(array)}, but {first} is {_describe(arrays[0])}; {remedy}.")
        first = first or name
        arrays.append(array)
    if not arrays:
        raise PotstillError("a table without rows: there are no images to read; check its files.")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _decode_one(name: str, source: Any, resize: int | None) -> np.ndarray:
    """One image as (H, W, 1) grey or (H, W, 3) colour."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            image.load()
            grey = image.mode in ("1", "L", "LA")
            if image.mode in ("I", "I;16", "F"):
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel; convert it to 8 bits")
            converted: Any = image.convert("L" if grey else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise PotstillError(f"{name}: not a readable image ({error}); replace it or remove it.") from error
    if resize:
        converted = ImageOps.fit(converted, (resize, resize), Image.Resampling.LANCZOS)
    array = np.asarray(converted, np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _describe(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]} {'grey' if array.shape[2] == 1 else 'colour'}"


# --- Parquet files and the hub -------------------------------------------------------------------------------------


def _parquet(
    source: str, files: list[Path], resize: int | None, column: str | None
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """A folder of Parquet files in the Hugging Face convention; the file names tell the splits."""
    try:
        import datasets
    except ImportError as error:
        raise PotstillError(f"{source}: Parquet needs the package datasets; pip install datasets.") from error
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(str(file.relative_to(source))), []).append(str(file))
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset("parquet", data_files=by_split)
    except Exception as error:  # the library raises many kinds for a damaged file
        cause = error.__cause__ or error
        raise PotstillError(f"{source}: its Parquet files cannot be read ({cause}); write them again.") from error
    return _table(source, table, resize, column)


def _split_of(name: str) -> str:
    """The split that the words of a file's name tell; training where none does."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    splits = {"train": _TRAIN, "test": _TEST, "validation": _VALIDATION}
    return next((split for split, names in splits.items() if words & set(names)), "train")


def _hub(name: str, resize: int | None, column: str | None) -> tuple[tuple[str, ...], dict[str, Split]]:
    """A dataset by its Hugging Face name, through the package ``datasets`` and its cache."""
    try:
        import datasets
    except ImportError as error:
        raise PotstillError(
            f"{name}: neither a folder nor a file here, and a Hugging Face name needs the package datasets; "
            "check the path, or pip install datasets."
        ) from error
    try:
        table = datasets.load_dataset(name)
    except Exception as error:  # not found, offline, gated, or needing a configuration: the library's words say which
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PotstillError(
            f"{name}: neither a folder or file here nor a Hugging Face dataset that can be reached ({reason}); "
            "check the spelling and the network, or download it and give the folder."
        ) from error
    content = [(key, table[key]._fingerprint) for key in table]
    return _cached(content, resize, column, lambda: _table(name, table, resize, column))


def _table(
    name: str, table: Any, resize: int | None, column: str | None
) -> tuple[tuple[str, ...], dict[str, Split]]:  # fmt: skip
    """Splits of a DatasetDict: the image column and the label column, found by their types."""
    import datasets

    present = {key.lower(): key for key in table}
    train = next((present[key] for key in _TRAIN if key in present), next(iter(table)))
    test = next((present[key] for key in (*_TEST, *_VALIDATION) if key in present and present[key] != train), None)
    features = table[train].features
    image_column = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    image_column = image_column or next((key for key in ("image", "img") if key in features), None)
    if image_column is None:
        raise PotstillError(f"{name}: no image column among {list(features)}; expected one of type Image.")
    label_column = _label_column(name, features, column)
    kind = features[label_column]
    splits = {"train": train} if test is None else {"train": train, "test": test}
    raw = {key: list(table[split][label_column]) for key, split in splits.items()}
    if isinstance(kind, datasets.ClassLabel):
        classes = tuple(kind.names)
        index: dict[Any, int] = {label: label for label in range(len(classes))}
    else:
        distinct = sorted({value for value in raw["train"] if value is not None}, key=str)
        classes, index = tuple(map(str, distinct)), {value: label for label, value in enumerate(distinct)}
    parts = {}
    for key, split in splits.items():
        encoded = table[split].cast_column(image_column, datasets.Image(decode=False))
        images = _decode(_rows(f"{name} {split}", encoded, image_column), resize)
        unknown = next((value for value in raw[key] if value not in index), None)
        if unknown is not None or None in raw[key]:
            raise PotstillError(
                f"{name} {split}: label {unknown!r} is out of range for {len(classes)} classes; mend the column "
                f"{label_column!r} or its class names."
            )
        parts[key] = Split(images, torch.tensor([index[value] for value in raw[key]]))
    return classes, parts


def _rows(name: str, table: Any, column: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(table):
        encoded = row[column]
        if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
            raise PotstillError(f"{name}, row {number}: has no image; remove the row.")
        yield f"{name}, row {number}", encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])


def _label_column(name: str, features: Any, wanted: str | None) -> str:
    import datasets

    if wanted is not None:
        if wanted not in features:
            raise PotstillError(f"{name}: no column {wanted!r} among {list(features)}; correct --label-column.")
        return wanted
    labelled = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(labelled) > 1:
        raise PotstillError(f"{name}: several label columns, {labelled}; choose one with --label-column.")
    candidates = labelled or [key for key in ("label", "labels", "class", "target") if key in features]
    if not candidates:
        raise PotstillError(f"{name}: no label column among {list(features)}; name it with --label-column.")
    return candidates[0]


# --- arrays --------------------------------------------------------------------------------------------------------


def _arrays(files: list[Path], resize: int | None) -> tuple[tuple[str, ...], dict[str, Split]]:
    """One ``.npz`` with x_train, y_train (and x_test, y_test) or images and labels; or train.npz and test.npz."""
    parts: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    names: list[str] | None = None
    for file in files:
        content = _open_npz(file)
        names = [str(name) for name in content["classes"]] if "classes" in content else names
        if "x_train" in content:
            pairs = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
        else:
            pairs = {_split_of(file.stem): ("images", "labels")}
        for part, (x, y) in pairs.items():
            if x in content and y in content:
                if part in parts:
                    raise PotstillError(
                        f"{file}: a second file of {part} images beside {parts[part][2]}; join them into one .npz."
                    )
                parts[part] = (content[x], content[y], str(file))
            elif part != "test" or "x_train" not in content:
                raise PotstillError(
                    f"{file}: holds {sorted(content)}; expected images and labels, or x_train and y_train "
                    "(and x_test and y_test)."
                )
    if "train" not in parts:
        raise PotstillError(f"{files[0].parent}: no training arrays; expected train.npz or x_train and y_train.")
    test = parts.get("test", parts.get("validation"))  # a validation file serves as test where there is no other
    chosen = {"train": parts["train"]} if test is None else {"train": parts["train"], "test": test}
    splits = {part: _from_arrays(*values, names, resize) for part, values in chosen.items()}
    count = int(splits["train"].labels.max()) + 1
    return tuple(names or map(str, range(count))), splits


def _open_npz(file: Path) -> dict[str, np.ndarray]:
    import zipfile
    import zlib

    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise PotstillError(
                f"{file}: is or holds a pickle, which is never read because it can run code; save plain numeric "
                "arrays with numpy.savez."
            ) from error
        raise PotstillError(f"{file}: not a readable .npz file ({error}); write it again.") from error


def _from_arrays(
    images: np.ndarray, labels: np.ndarray, where: str, names: list[str] | None, resize: int | None
) -> Split:
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or (images.shape[1] not in (1, 3) and images.shape[3] not in (1, 3)):
        raise PotstillError(
            f"{where}: images of shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3."
        )
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    labels = labels.reshape(-1)
    if len(labels) != len(images):
        raise PotstillError(f"{where}: {len(images)} images but {len(labels)} labels; make them the same number.")
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole and not (np.issubdtype(labels.dtype, np.floating) and np.array_equal(labels, np.round(labels))):
        raise PotstillError(f"{where}: labels of type {labels.dtype}; expected whole numbers from 0.")
    if not len(labels):
        raise PotstillError(f"{where}: holds no images.")
    if labels.min() < 0 or labels.max() >= (len(names) if names is not None else len(labels)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        top = len(names) - 1 if names is not None else "the number of classes less one"
        raise PotstillError(f"{where}: label {wrong} is out of range; labels count from 0 to {top}.")
    if images.dtype != np.uint8:
        images = _to_bytes(images, where)
    if resize:
        images = np.stack([_resized(image, resize) for image in images])
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """One (C, H, W) uint8 image, its shorter side resized and its centre cropped."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    array = np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _to_bytes(images: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(images).all():
        bad = int(np.argwhere(~np.isfinite(images))[0][0])
        raise PotstillError(f"{where}: image {bad} holds NaN or infinity; replace or remove it.")
    low, high = float(images.min()), float(images.max())
    if np.issubdtype(images.dtype, np.integer) and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if low >= 0 and high <= 1:
        return np.round(images * 255).astype(np.uint8)
    raise PotstillError(
        f"{where}: pixels from {low:g} to {high:g}; expected uint8 from 0 to 255 or floats from 0 to 1."
    )


# --- the parts in common -------------------------------------------------------------------------------------------


def _shape(split: Split) -> str:
    c, h, w = split.images.shape[1:]
    return f"{w}×{h} {'grey' if c == 1 else 'colour'}"


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


def cache_folder() -> Path:
    """Where decoded arrays and control results are kept: $POTSTILL_CACHE, or ~/.cache/potstill."""
    return Path(os.environ.get("POTSTILL_CACHE", "~/.cache/potstill")).expanduser()


def _stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells that files are still the same: paths, sizes and times."""
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _cached(
    content: Any, resize: int | None, column: str | None, read: Callable[[], tuple[tuple[str, ...], dict[str, Split]]]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """What ``read`` gives, or what it gave before for the same content, size and column."""
    key = hashlib.sha256(json.dumps([content, resize, column]).encode()).hexdigest()[:24]
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
