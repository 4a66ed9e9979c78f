"""What the literature reports, cell by cell, and where it was read: ``published.toml``."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = {
    "D": "table 1 of the DATM paper",
    "P": "PAD's repository",
    "N": "the NCFM paper; four images a slot",
    "A": "the repository of AT-BPTT++",
    "I": "the IDM paper; four images a slot",
    "S": "the SelMatch paper; ResNet-18 with batch norm",
}


@dataclass(frozen=True)
class Published:
    """An accuracy as it was published."""

    accuracy: float  # fraction of 1
    source: str  # where it was read


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))


def methods() -> list[str]:
    """Methods that accuracies are known of, whether they are implemented here or not."""
    return list(_table())


def accuracy(method: str, dataset: str, ipc: int) -> Published | None:
    """The published accuracy of a method's cell; None where none is known.

    The full set stands under the method "full" and 0 images per class.
    """
    found = _table().get(method, {})
    value = found.get(dataset, {}).get(str(ipc))
    return None if value is None else Published(value / 100, SOURCES[found["source"]])


def cells(method: str) -> dict[tuple[str, int], Published]:
    """All published accuracies of a method."""
    found = _table().get(method, {})
    named = ((dataset, int(ipc)) for dataset, row in found.items() if dataset != "source" for ipc in row)
    return {cell: known for cell in named if (known := accuracy(method, *cell)) is not None}
