"""What labels mean: values as people write them → numbers that count from 0, and a name for each class.

Whole numbers keep their order (2 before 10), and where they are 0 … K−1 their values; names are sorted.  Labels with
gaps, or from 1 on, are numbered in their order; what they were is the name of their class.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.data.split import Part
from potstill.errors import PotstillError

Labels = Sequence[Any]
JOINERS = "\u200c\u200d"  # invisible, but part of how Persian, Hindi and emoji are written
SHOWN = 5  # values that a message names


def number(
    labels: Mapping[Part, Labels], names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[Part, Tensor], tuple[str, ...]]:  # fmt: skip
    """The classes, the labels (N,) int64 of each part that has any, and what there is to say about them.

    Args:
        labels: of each part, as written.
        names: of the classes, in the order that whole numbers count; None where the labels themselves are the names.

    Raises:
        PotstillError: a label that is missing, no whole number and no name, or unknown in the training part.
    """
    plain = {part: [_plain(value, part) for value in values] for part, values in labels.items()}
    bare = [part for part, values in plain.items() if values and all(value in (None, -1) for value in values)]
    notes = [f"the {part} part has no labels and is left aside" for part in bare]
    plain = {part: values for part, values in plain.items() if part not in bare}
    if "train" not in plain:
        return (), {}, tuple(notes)
    if names is None:
        classes, index = _by_value(plain["train"])
        notes += _uncommon(list(index))
    else:
        classes = tuple(map(readable, names))
        index, found = _by_names(plain, classes)
        notes += found
    for part, values in plain.items():
        _check(part, values, index, classes)
    return classes, {part: torch.tensor([index[v] for v in values]) for part, values in plain.items()}, tuple(notes)


def readable(name: object) -> str:
    """A class's name in one Unicode form (NFC); bytes that are not UTF-8 as \\xe9, what cannot be seen as \\x07."""
    text = unicodedata.normalize("NFC", str(name))
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(map(_visible, text)).strip() or repr(str(name))


def _visible(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    if unicodedata.category(character) == "Zs":  # spaces of other widths
        return " "
    return character.encode("unicode_escape").decode()  # controls, and marks that turn the direction of what follows


def _plain(value: Any, part: str) -> Any:
    """A label as a whole number or a text; one-element lists are what they hold; None where it is missing."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | int) or value is None:
        return value if value is None else int(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return readable(value) if value.strip() else None
    kind = "list" if isinstance(value, list | tuple) else type(value).__name__
    raise PotstillError(
        f"{part} label {str(value)[:60]} of type {kind}: a label is one whole number or one name; choose another "
        "column, or convert it."
    )


def _by_value(values: Labels) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Classes by the sorted values of the training labels."""
    distinct = {value for value in values if value is not None}
    numbers = sorted(value for value in distinct if isinstance(value, int))
    ordered = [*numbers, *sorted(value for value in distinct if not isinstance(value, int))]
    return tuple(map(str, ordered)), {value: label for label, value in enumerate(ordered)}


def _uncommon(values: list[Any]) -> list[str]:
    """A sentence where whole numbers do not count 0 … K−1, and so became others."""
    if not values or not all(isinstance(value, int) for value in values) or values == list(range(len(values))):
        return []
    return [f"labels {_shown(values)} were numbered from 0 in their order; the classes keep the old numbers as names"]


def _by_names(
    labels: Mapping[Part, Labels], classes: tuple[str, ...]
) -> tuple[dict[Any, int], list[str]]:  # fmt: skip
    """The number of each label where the classes' names were given: counted from 0, from 1, or the names themselves."""
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise PotstillError(f"class {twice!r} is named twice; give every class a name of its own.")
    values = {value for part in labels.values() for value in part}
    index: dict[Any, int] = {name: label for label, name in enumerate(classes)}
    numbers = {value for value in values if isinstance(value, int)}
    first = 1 if numbers and min(numbers) >= 1 and max(numbers) == len(classes) else 0
    index |= {label + first: label for label in range(len(classes))}
    return index, [f"labels run from 1 to {len(classes)} and were counted from 0"] if first else []


def _check(part: str, values: Labels, index: Mapping[Any, int], classes: tuple[str, ...]) -> None:
    row = next((row for row, value in enumerate(values) if value not in index), None)
    if row is None:
        return
    if values[row] is None:
        raise PotstillError(f"{part} image {row}: has no label; label it, or remove it.")
    raise PotstillError(
        f"{part} label {values[row]!r} is out of range: the classes are {_shown(classes)}; mend it, or name the class."
    )


def _shown(values: Sequence[Any]) -> str:
    """Some of the values, for a message."""
    few = ", ".join(map(str, values[:SHOWN]))
    return few if len(values) <= SHOWN else f"{few}, … ({len(values)})"
