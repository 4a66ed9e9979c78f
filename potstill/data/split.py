"""Images with their labels, and the names under which they come in parts."""

import re
from dataclasses import dataclass

from torch import Tensor

TRAIN, TEST, VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")


@dataclass(frozen=True)
class Split:
    """Images and what they show."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        return Split(self.images[rows], self.labels[rows])


Content = tuple[tuple[str, ...], dict[str, Split]]
"""What a source holds: the names of its classes, and its parts "train" and perhaps "test"."""


def split_of(name: str) -> str:
    """The split that the words of a file's name tell; training where none does."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    splits = {"train": TRAIN, "test": TEST, "validation": VALIDATION}
    return next((split for split, names in splits.items() if words & set(names)), "train")
