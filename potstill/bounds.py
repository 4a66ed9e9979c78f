"""What a value may be, declared beside its field: ``iterations: Count = 1000``, ``lr_images: Rate | None = None``.

Command line, Python and files give values of many kinds.  :func:`fit` brings each to its field's type, or refuses it
with the value, the reason and the remedy, before any work is done; :func:`changed` does so for fields by their names.
"""

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from potstill.errors import PotstillError


@dataclass(frozen=True)
class Bounds:
    """What a number may be beside finite, as a test and in words: "ipc 0: at least 1 is needed; raise --ipc."."""

    least: float = -math.inf
    most: float = math.inf
    reason: str = ""
    without_ends: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number lies within."""
        if self.without_ends:
            return self.least < value < self.most
        return self.least <= value <= self.most


@dataclass(frozen=True)
class Beside:
    """Texts that are taken beside the choices of a Literal: those that begin so."""

    prefix: str


Count = Annotated[int, Bounds(1, reason="at least 1 is needed")]
Whole = Annotated[int, Bounds(0, reason="cannot be negative")]
Rate = Annotated[float, Bounds(0, reason="cannot be negative")]
Positive = Annotated[float, Bounds(0, reason="a number above 0 is needed", without_ends=True)]
Fraction = Annotated[float, Bounds(0, 1, reason="a fraction from 0 to 1 is needed")]
Pictures = Annotated[int, Bounds(1, 8, reason="1 to 8 pictures a side are meant")]
Part = Annotated[float, Bounds(0, 1, reason="a fraction between 0 and 1 is needed", without_ends=True)]

APART = {"apart": True}
"""Metadata of a field that is set whole by other means: :func:`changed` and :func:`changes_between` pass over it."""


def check(values: Any, prefix: str = "") -> None:
    """Hold every field of a dataclass, and of those inside it, to its type and bounds.

    Args:
        values: the dataclass.
        prefix: of its fields' names in messages, e.g. "datm.".

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    for name, hint in hints_of(type(values)).items():
        value = getattr(values, name)
        if dataclasses.is_dataclass(value):
            check(value, f"{prefix}{name}.")
        else:
            fit(value, hint, f"{prefix}{name}")


def hints_of(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, bounds included."""
    hints = _hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def fit(value: Any, hint: Any, name: str) -> Any:
    """A value brought to its field's type: NumPy's numbers to Python's, lists to tuples, paths and devices to text.

    Raises:
        PotstillError: it is of another type, not among the choices, not finite, or outside the bounds.
    """
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)
        if isinstance(value, str) and any(isinstance(one, Beside) and value.startswith(one.prefix) for one in more):
            return value
        return _within(fit(value, kind, name), [one for one in more if isinstance(one, Bounds)], name)
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None and len(kinds) < len(get_args(hint)) else fit(value, kinds[0], name)
    if get_origin(hint) is Literal:
        return _chosen(value, get_args(hint), name)
    if get_origin(hint) is tuple:
        return _several(value, get_args(hint), name)
    return _FITTING[hint](value, name) if hint in _FITTING else value


def _within(value: Any, bounds: list[Bounds], name: str) -> Any:
    for one in bounds:
        if value is not None and not one.hold(value):
            verb = "raise" if value <= one.least else "lower"
            raise PotstillError(f"{name} {value}: {one.reason}; {verb} {_flag(name)}.")
    return value


def _chosen(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise PotstillError(f"{name} {_shown(value)}: choose among {', '.join(choices)}.")
    return str(value)


def _several(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if getattr(value, "ndim", None) == 1:  # an array
        value = value.tolist()
    if not isinstance(value, list | tuple | range):
        raise _refused(value, name, "several values are needed; give a tuple")
    if kinds[-1] is Ellipsis:
        return tuple(fit(one, kinds[0], name) for one in value)
    if len(value) != len(kinds):
        raise _refused(value, name, f"{len(kinds)} values are needed; give so many")
    return tuple(fit(one, kind, name) for one, kind in zip(value, kinds, strict=True))


def _flagged(value: Any, name: str) -> bool:
    value = _single(value)
    if not isinstance(value, bool):
        raise _refused(value, name, "yes or no is needed; give True or False")
    return value


def _whole(value: Any, name: str) -> int:
    value = _single(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refused(value, name, "a whole number is needed; give one")
    return int(value)


def _number(value: Any, name: str) -> float:
    value = _single(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _refused(value, name, "a number is needed; give one")
    if not abs(value) <= _LARGEST:  # nor is what is no number
        raise PotstillError(f"{name} {value}: a finite number is needed; correct {_flag(name)}.")
    return float(value)


def _text(value: Any, name: str) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else _single(value)
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        value = str(value)
    if not isinstance(value, str):
        raise _refused(value, name, "text is needed; give a str")
    if "\0" in value:
        raise _refused(value, name, "holds a zero character, which no name or path may; leave it out")
    return str(value)


def _path(value: Any, name: str) -> Path:
    return Path(_text(value, name))


_LARGEST = 1e300  # near which whole numbers cease to be floats
_FITTING = {bool: _flagged, int: _whole, float: _number, str: _text, Path: _path}


def _single(value: Any) -> Any:
    """A single number of NumPy or PyTorch as Python's."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _refused(value: Any, name: str, reason: str) -> PotstillError:
    kind = type(value).__name__
    return PotstillError(f"{name} {_shown(value)}: is a {kind}, where {reason}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# --- by name -------------------------------------------------------------------------------------------------------


def changed(values: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass with some fields changed, each brought to its type; nested ones by mappings of their own fields.

    ``prefix`` stands before the fields' names in messages.

    Raises:
        PotstillError: there is no such field (all are named), a nested one was given a plain value, or a value is of
            another type or outside its bounds.
    """
    apart = {item.name for item in dataclasses.fields(values) if "apart" in item.metadata}
    hints = {name: hint for name, hint in hints_of(type(values)).items() if name not in apart}
    fitted = {}
    for name, value in changes.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, 1)
            hint = f"did you mean {near[0]}? All: " if near else "choose among "
            raise PotstillError(f"{prefix}{name}: no such setting; {hint}{', '.join(hints)}.")
        old = getattr(values, name)
        if dataclasses.is_dataclass(old):
            fitted[name] = nested(old, value, f"{prefix}{name}")
        else:
            fitted[name] = fit(value, hints[name], f"{prefix}{name}")
    return dataclasses.replace(values, **fitted)


def nested(old: Any, value: Any, name: str) -> Any:
    """A nested dataclass with the changes of a mapping, or one given whole in its place."""
    if isinstance(value, type(old)):
        return value
    if not isinstance(value, Mapping):
        fields = ", ".join(item.name for item in dataclasses.fields(old))
        raise PotstillError(f"{name} {value!r}: holds several settings; give a mapping of {fields or 'nothing'}.")
    return changed(old, value, f"{name}.")


def changes_between(given: Any, base: Any) -> dict[str, Any]:
    """What ``given`` changes in ``base``, nested: what :func:`changed` takes to make one of the other."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(given):
        mine, was = getattr(given, item.name), getattr(base, item.name)
        if mine == was or "apart" in item.metadata:
            continue
        found[item.name] = changes_between(mine, was) if dataclasses.is_dataclass(mine) else mine
    return found
