"""What every reader of a source gives, and how that becomes images of one shape with labels that count from 0.

A reader only tells what is there: encoded images or arrays, and the labels as they were written.  What the labels
mean, which images do not fit, and what had to be changed is decided here, once for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from potstill.data import pixels
from potstill.data.classes import Labels, number
from potstill.data.pixels import Encoded
from potstill.data.split import Part, Split
from potstill.errors import PotstillError


@dataclass(frozen=True)
class Reading:
    """How a source is read."""

    resize: int | None = None  # the shorter side becomes so many pixels, and the centre is cropped
    label_column: str | None = None  # of tables with several
    image_column: str | None = None
    skip_unreadable: bool = False  # leave images out that cannot be decoded, instead of refusing the source


@dataclass(frozen=True)
class Raw:
    """A part of a dataset as it was found."""

    images: Encoded | np.ndarray  # arrays as (N, C, H, W) of any numeric type
    labels: Labels  # as written: whole numbers, names; None or −1 where there is none
    where: str  # names it in messages


@dataclass(frozen=True)
class Found:
    """What a reader found in a source."""

    parts: Mapping[Part, Raw]
    names: Sequence[str] | None = None  # of the classes, in the order that whole numbers count; None: as the labels say
    notes: tuple[str, ...] = ()  # what was left out or changed, a sentence each


@dataclass(frozen=True)
class Content:
    """The same, ready: uint8 images of one shape, and labels that count from 0."""

    classes: tuple[str, ...]
    parts: Mapping[Part, Split]
    notes: tuple[str, ...] = field(default=())


def content(found: Found, how: Reading) -> Content:
    """Decode what was found and number its labels; a part without labels is left aside.

    Raises:
        PotstillError: an image or a label that does not fit; it is named.
    """
    classes, labels, notes = number({part: raw.labels for part, raw in found.parts.items()}, found.names)
    if "train" not in labels:
        where = found.parts["train"].where if "train" in found.parts else next(iter(found.parts.values())).where
        raise PotstillError(f"{where}: no labelled training images; say what they show, or give another folder.")
    parts: dict[Part, Split] = {}
    remarks = pixels.Remarks()
    for part, numbers in labels.items():
        raw = found.parts[part]
        if isinstance(raw.images, np.ndarray):
            images, kept = pixels.from_array(raw.images, raw.where, how.resize, remarks), None
        else:
            images, kept = pixels.decode(raw.images, how.resize, how.skip_unreadable, remarks)
        if len(numbers) != (len(images) if kept is None else len(raw.images)):
            raise PotstillError(
                f"{raw.where}: {len(raw.images)} images but {len(numbers)} labels; make them the same number."
            )
        parts[part] = Split(images, numbers if kept is None else numbers[kept], kept)
    if {split.images.shape[1] for split in parts.values()} == {1, 3}:  # grey only where all are grey
        for part, split in parts.items():
            if split.images.shape[1] == 1:
                remarks.add("grey images became colour, as others are", raw.where, len(split))
                parts[part] = replace(split, images=split.images.expand(-1, 3, -1, -1).contiguous())
    return Content(classes, parts, (*found.notes, *notes, *remarks.sentences()))
