"""Parquet files and Hugging Face datasets, both through the package ``datasets``."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import store
from potstill.data import hub
from potstill.data.reading import Found, Raw, Reading
from potstill.data.split import Part, part_of, part_of_path
from potstill.errors import PotstillError

log = logging.getLogger(__name__)
IMAGES = ("image", "img", "pixel_values", "picture")
LABELS = ("label", "labels", "class", "target")


# --- Parquet files -------------------------------------------------------------------------------------------------


def read_parquet(root: Path, files: Sequence[Path], how: Reading) -> Found:
    """A folder of Parquet files in the Hugging Face convention; names of files and folders tell the parts.

    Raises:
        PotstillError: a file is damaged or belongs to no part, several configurations lie side by side, or a row points
            at an image outside the folder.
    """
    by_part = _by_part(root, files)
    datasets = _library(str(root))
    try:
        table = datasets.load_dataset(
            "parquet", data_files={part: [str(f) for f in found] for part, found in by_part.items()}
        )
    except Exception as error:  # the library raises many kinds for a damaged file
        cause = error.__cause__ or error
        raise PotstillError(f"{root}: its Parquet files cannot be read ({cause}); write them again.") from error
    return _found(str(root), table, how, [root, *{file.parent for file in files}])


def _by_part(root: Path, files: Sequence[Path]) -> dict[Part, list[Path]]:
    """The files of each part, all of one configuration."""
    parts = {file: part_of_path(file.relative_to(root)) for file in files}
    unknown = [file for file, part in parts.items() if part is None]
    if unknown and len(unknown) < len(files):
        raise PotstillError(
            f"{unknown[0]}: neither for training nor for testing by its name, while other files tell; rename it "
            "(train, validation, test), or move it away."
        )
    folders = {file: [name for name in file.relative_to(root).parent.parts if not part_of(name)] for file in files}
    several = sorted({"/".join(names) or "." for names in folders.values()})
    if len(several) > 1:
        raise PotstillError(f"{root}: holds several configurations, {', '.join(several)}; give the folder of one.")
    found: dict[Part, list[Path]] = {}
    for file, part in parts.items():
        found.setdefault(part or "train", []).append(file)
    return found


def references(root: Path, files: Sequence[Path], stamps: Any) -> list[Path]:
    """Image files of the folder that rows of the tables name, so that a change of theirs is noticed."""
    return [Path(path) for path in store.once_json("references", stamps, lambda: _named(root, files))["paths"]]


def _named(root: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: set[str] = set()
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                leaves = [c.path for c in map(table.schema.column, range(len(table.schema))) if _is_path(c)]
                for batch in table.iter_batches(columns=leaves) if leaves else ():
                    for name in {name for column in batch.columns for name in _texts(column)}:
                        path = _inside(name, [root, file.parent])
                        found |= {str(path)} if path is not None and path.is_file() else set()
        except (pa.ArrowException, OSError, ValueError):
            continue  # who reads the table says what is wrong with it
    return {"paths": sorted(found)}


def _is_path(column: Any) -> bool:
    return column.path.endswith(".path") or (column.path in IMAGES and column.physical_type == "BYTE_ARRAY")


def _texts(column: Any) -> Iterable[str]:
    values = column.to_pylist()
    flat = (value["path"] if isinstance(value, dict) else value for value in values)
    return (value for value in flat if isinstance(value, str) and len(value) < 4096 and "\0" not in value)


def _inside(name: str, folders: Sequence[Path]) -> Path | None:
    """Where a row's path leads, from the first folder or from that of a table; None outside of the first one.

    What a dataset that came from elsewhere names on this disk must not get into a set that is then given away.
    """
    candidates = [Path(os.path.normpath(folder.absolute() / name)) for folder in folders]
    own = [path for path in candidates if path.is_relative_to(folders[0].absolute())]
    return next((path for path in own if path.is_file()), own[0] if own else None)


# --- Hugging Face --------------------------------------------------------------------------------------------------


def load_hub(name: str) -> tuple[Any, Any]:
    """A dataset by its Hugging Face name, and what identifies it; through the package ``datasets`` and its cache.

    Raises:
        PotstillError: it cannot be found or reached.
    """
    datasets = _library(name)
    log.info("%s is no folder or file here: asking Hugging Face for it", name)
    try:
        with _offline(not hub.answers(name)):
            table = datasets.load_dataset(name)
    except Exception as error:  # not found, offline, gated, or needing a configuration: the library's words say which
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PotstillError(
            f"{name}: neither a folder or file here nor a Hugging Face dataset that can be reached ({reason}); "
            "check the spelling and the network, or download it and give the folder."
        ) from error
    return table, [(key, table[key]._fingerprint) for key in table]


@contextlib.contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """The libraries take what they fetched before, and ask nobody."""
    import datasets
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place, was in zip(places, before, strict=True):
        place.HF_HUB_OFFLINE = was or wanted
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was


def read_hub(name: str, table: Any, how: Reading) -> Found:
    """The parts of a Hugging Face dataset."""
    return _found(name, table, how, None)


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise PotstillError(
            f"{name}: neither a folder of images nor arrays; Parquet files and Hugging Face names need the package "
            "datasets: check the path, or pip install datasets."
        ) from error
    datasets.disable_progress_bars()
    return datasets


# --- columns -------------------------------------------------------------------------------------------------------


def _found(name: str, table: Any, how: Reading, folders: Sequence[Path] | None) -> Found:
    """The splits of a DatasetDict; the columns by their types, or as asked for."""
    import datasets

    parts: dict[Part, str] = {}
    left = []
    for key in table:
        part = part_of(key) or (None if len(table) > 1 else "train")
        if part is None or part in parts:
            left.append(key)
        else:
            parts[part] = key
    if not parts:
        raise PotstillError(f"{name}: none of its splits {', '.join(table)} is named for training; choose another.")
    features = table[next(iter(parts.values()))].features
    image_column = _column(name, features, how.image_column, "image", _image_columns(features))
    label_column = _column(name, features, how.label_column, "label", _label_columns(features))
    kind = features[label_column]
    names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    found: dict[Part, Raw] = {}
    for part, key in parts.items():
        where = f"{name} {key}"
        if missing := {image_column, label_column} - set(table[key].features):
            raise PotstillError(f"{where}: has no column {missing.pop()!r}, which other parts have; add it.")
        found[part] = Raw(_Rows(where, table[key], image_column, folders), list(table[key][label_column]), where)
    left_out = f"splits {', '.join(left)} are for neither training, validation nor test, and were not read"
    return Found(found, names, (left_out,) if left else ())


class _Rows:
    """The encoded images of a table, row by row."""

    def __init__(self, where: str, table: Any, column: str, folders: Sequence[Path] | None) -> None:
        import datasets

        try:
            self.rows = table.cast_column(column, datasets.Image(decode=False))
        except Exception as error:  # of several libraries
            raise PotstillError(
                f"{where}: column {column!r} of type {table.features[column]} holds no encoded images; expected files "
                "(PNG, JPEG, …) as bytes, or choose another by --image-column."
            ) from error
        self.where, self.column, self.folders = where, column, folders

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[str, Path | bytes]:
        """An image's bytes, or its file in the dataset's folder."""
        name, encoded = f"{self.where}, row {row}", self.rows[row][self.column]
        if not isinstance(encoded, Mapping) or (encoded["bytes"] is None and encoded["path"] is None):
            raise PotstillError(f"{name}: has no image; remove the row.")
        if encoded["bytes"] is not None:
            return name, encoded["bytes"]
        if self.folders is None:
            return name, Path(encoded["path"])
        path = _inside(encoded["path"], self.folders)
        if path is None:
            raise PotstillError(
                f"{name}: points at {encoded['path']}, outside of the dataset's folder; put the image into it."
            )
        return name, path


def _image_columns(features: Mapping[str, Any]) -> list[str]:
    import datasets

    found = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    return found or [key for key in features if key in IMAGES]


def _label_columns(features: Mapping[str, Any]) -> list[str]:
    import datasets

    found = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return found or [key for key in LABELS if key in features][:1]


def _column(name: str, features: Mapping[str, Any], wanted: str | None, what: str, found: list[str]) -> str:
    if wanted is not None:
        if wanted not in features:
            raise PotstillError(f"{name}: no column {wanted!r} among {', '.join(features)}; correct --{what}-column.")
        return wanted
    if len(found) > 1:
        raise PotstillError(f"{name}: several {what} columns, {', '.join(found)}; choose one with --{what}-column.")
    if not found:
        raise PotstillError(f"{name}: no {what} column among {', '.join(features)}; name it with --{what}-column.")
    return found[0]
