"""Images with a table of file names and labels beside them: CSV, TSV or JSON lines.

The convention of Hugging Face's ImageFolder (metadata.csv or metadata.jsonl with a column file_name), and what else
people publish: labels.csv, train.csv and test.csv, a column that tells the part.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.folders import Folder
from potstill.data.reading import Found, Raw, Reading
from potstill.data.split import Part, part_of, part_of_path
from potstill.errors import PotstillError

ENDINGS = (".csv", ".tsv", ".jsonl")
PATHS = (
    "file_name",
    "filename",
    "file",
    "filepath",
    "file_path",
    "path",
    "image",
    "image_path",
    "img",
    "image_id",
    "id",
)
LABELS = ("label", "labels", "class", "class_name", "target", "category", "y", "breed")
PARTS = ("split", "part", "set", "subset", "fold")
CONVENTION = "metadata"  # the name by which a table outranks class folders
Row = tuple[str, Mapping[str, Any]]
"""Where it stands, and its fields."""


def tables(root: Folder) -> list[Path]:
    """The tables that may tell labels: in the folder, in its folders and theirs."""
    near = [root, *root.folders, *(inner for child in root.folders for inner in child.folders)]
    return [file for folder in near for file in folder.others if file.suffix.lower() in ENDINGS]


def by_convention(files: Sequence[Path]) -> list[Path]:
    """Those named as the convention has it."""
    return [file for file in files if file.stem.lower() == CONVENTION]


def read(root: Folder, files: Sequence[Path], how: Reading) -> Found:
    """The images that the tables name, with their labels.

    Raises:
        PotstillError: no table has a column of file names and one of labels, or a row names no image of the folder.
    """
    images = _Index(root)
    parts: dict[Part, tuple[list[tuple[str, Path]], list[Any]]] = {}
    unnamed = 0
    for file in files:
        rows = _rows(file)
        columns = _columns(file, list(rows[0][1]) if rows else [], how)
        if columns is None:
            continue
        own = part_of_path(file.relative_to(root.path))
        for where, row in rows:
            given = row.get(columns[2]) if columns[2] else None
            part = (part_of(str(given)) if given else None) or own or "train"
            entries, labels = parts.setdefault(part, ([], []))
            entries.append((where, images.find(str(row.get(columns[0]) or ""), file.parent, where)))
            labels.append(row.get(columns[1]) if columns[1] else None)
            unnamed += columns[1] is None
    if not parts or all(label is None for _, labels in parts.values() for label in labels):
        told = ", ".join(file.name for file in files)
        raise PotstillError(
            f"{root.path}: {told}: no column of labels among them (looked for {', '.join(LABELS)}); name it by "
            "--label-column."
        )
    left = len(images) - sum(len(entries) for entries, _ in parts.values())
    notes = (f"{left} images are in none of the tables and were left out",) if left > 0 else ()
    found = {part: Raw(entries, labels, str(root.path)) for part, (entries, labels) in parts.items()}
    return Found(found, None, notes)


class _Index:
    """The images of a folder by the ways in which a table may write them; nothing outside of it can be named."""

    def __init__(self, root: Folder) -> None:
        self.root = root.path
        self.paths = {image.relative_to(root.path).as_posix(): image for image in root.all_images}
        self.names: dict[str, list[Path]] = {}
        for image in self.paths.values():
            for name in {image.name, image.stem}:
                self.names.setdefault(name, []).append(image)

    def __len__(self) -> int:
        return len(self.paths)

    def find(self, name: str, folder: Path, where: str) -> Path:
        """The image that a row names: from the table's folder, from the root, or by a name that only one has."""
        name = name.replace("\\", "/").removeprefix("./")
        beside = (folder.relative_to(self.root) / name).as_posix()
        found = self.paths.get(beside) or self.paths.get(name)
        if found is None:
            same = self.names.get(name, [])
            if len(same) != 1:
                what = f"names {len(same)} images of the folder" if same else "is no image in the folder"
                raise PotstillError(f"{where}: {name!r} {what}; mend the row, or remove it.")
            found = same[0]
        return found


def _rows(file: Path) -> list[Row]:
    """The rows of a table.

    Raises:
        PotstillError: it is no text, or a line is no JSON object.
    """
    try:
        text = file.read_text("utf-8-sig")
        if file.suffix.lower() == ".jsonl":
            numbered = [(i, json.loads(line)) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
            if wrong := next((i for i, row in numbered if not isinstance(row, dict)), None):
                raise ValueError(f"line {wrong} is no object")
        else:
            first = text.partition("\n")[0]
            delimiter = max(",;\t", key=first.count)
            numbered = list(enumerate(csv.DictReader(text.splitlines(), delimiter=delimiter), 2))
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        raise PotstillError(f"{file}: not a readable table ({error}); write it again as UTF-8.") from error
    return [(f"{file}, line {line}", row) for line, row in numbered]


def _columns(file: Path, columns: list[str], how: Reading) -> tuple[str, str | None, str | None] | None:
    """The columns of file names, labels and parts; None where the table names no files."""
    lower = {str(column).strip().lower(): column for column in columns if column is not None}
    for flag, wanted in (("image", how.image_column), ("label", how.label_column)):
        if wanted is not None and wanted not in columns:
            raise PotstillError(f"{file}: no column {wanted!r} among {', '.join(columns)}; correct --{flag}-column.")
    path = how.image_column or next((lower[name] for name in PATHS if name in lower), None)
    if path is None:
        return None
    rest = [name for name in LABELS if name in lower and lower[name] != path]
    label = how.label_column or (lower[rest[0]] if rest else None)
    return (
        path,
        label,
        next((lower[name] for name in PARTS if name in lower and lower[name] not in (path, label)), None),
    )
