"""Images with their labels, and the words by which a file or folder tells which part of a dataset it is."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from torch import Tensor

Part = Literal["train", "validation", "test"]
_WORDS: dict[Part, str] = {  # what tells apart comes first: "train-jobs/test" is for testing
    "test": "t10k|test|tests|testing|testset|testdata|holdout",
    "validation": "val|valid|validation|valset|dev|devel|eval|evaluation",
    "train": "train|training|trainset|traindata",
}


@dataclass(frozen=True)
class Split:
    """Images and what they show."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    rows: Tensor | None = None  # (N,) int64, of the images as they were given, where some were taken out of them

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        return Split(self.images[rows], self.labels[rows], rows if self.rows is None else self.rows[rows])


def part_of(name: str) -> Part | None:
    """The part that the words of a name tell; None where none does."""
    words = re.findall("t10k|[a-z]+", name.lower())
    return next((part for part, known in _WORDS.items() if any(re.fullmatch(known, word) for word in words)), None)


def part_of_path(path: PurePath) -> Part | None:
    """The part that a path tells: its own name before its folders', and nearer folders before farther ones."""
    names = (path.name.split(".")[0], *reversed(path.parent.parts))
    return next((part for name in names if (part := part_of(name)) is not None), None)
