"""Parquet files and Hugging Face datasets, both through the package ``datasets``."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from potstill.data.decoded import cached
from potstill.data.pixels import decode
from potstill.data.split import TEST, TRAIN, VALIDATION, Content, Split, split_of
from potstill.errors import PotstillError

log = logging.getLogger(__name__)


def parquet(source: str, files: list[Path], resize: int | None, column: str | None) -> Content:
    """A folder of Parquet files in the Hugging Face convention; the file names tell the splits."""
    try:
        import datasets
    except ImportError as error:
        raise PotstillError(f"{source}: Parquet needs the package datasets; pip install datasets.") from error
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(split_of(str(file.relative_to(source))), []).append(str(file))
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset("parquet", data_files=by_split)
    except Exception as error:  # the library raises many kinds for a damaged file
        cause = error.__cause__ or error
        raise PotstillError(f"{source}: its Parquet files cannot be read ({cause}); write them again.") from error
    return _table(source, table, resize, column)


def hub(name: str, resize: int | None, column: str | None) -> Content:
    """A dataset by its Hugging Face name, through the package ``datasets`` and its cache."""
    try:
        import datasets
    except ImportError as error:
        raise PotstillError(
            f"{name}: neither a folder nor a file here, and a Hugging Face name needs the package datasets; "
            "check the path, or pip install datasets."
        ) from error
    log.info("%s is no folder or file here: asking Hugging Face for it", name)  # offline it tries for half a minute
    try:
        table = datasets.load_dataset(name)
    except Exception as error:  # not found, offline, gated, or needing a configuration: the library's words say which
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PotstillError(
            f"{name}: neither a folder or file here nor a Hugging Face dataset that can be reached ({reason}); "
            "check the spelling and the network, or download it and give the folder."
        ) from error
    identity = [(key, table[key]._fingerprint) for key in table]
    return cached(identity, resize, column, lambda: _table(name, table, resize, column))


def _table(name: str, table: Any, resize: int | None, column: str | None) -> Content:
    """Splits of a DatasetDict: the image column and the label column, found by their types."""
    import datasets

    present = {key.lower(): key for key in table}
    train = next((present[key] for key in TRAIN if key in present), next(iter(table)))
    test = next((present[key] for key in (*TEST, *VALIDATION) if key in present and present[key] != train), None)
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
        images = decode(_rows(f"{name} {split}", encoded, image_column), resize)
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
