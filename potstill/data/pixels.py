"""Image files and numeric arrays → uint8 pixels, as a viewer shows them; what had to be changed is remarked once."""

import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from potstill.errors import PotstillError

NAMED = 10  # files that a remark names
WHITE = (255, 255, 255, 255)
BITS_16 = 257  # 65535 / 255
Source = Path | bytes | Any
"""A file, its bytes, or an image that Pillow has opened."""


class Encoded(Protocol):
    """Encoded images with their names, one at a time: a list, or a view of a table that is larger than memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> "tuple[str, Source]":
        """The name for messages, and the file, its bytes, or an image of Pillow's."""
        ...


@dataclass
class Remarks:
    """What was done to images on the way, by what it was."""

    found: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, name: str, count: int = 1) -> None:
        """Note one image, or some."""
        self.counts[what] = self.counts.get(what, 0) + count
        if len(names := self.found.setdefault(what, [])) < NAMED:
            names.append(name)

    def sentences(self) -> tuple[str, ...]:
        """One for each thing, with the number of images and the first names."""
        return tuple(
            f"{self.counts[what]} {what} ({', '.join(names)}{', …' if self.counts[what] > len(names) else ''})"
            for what, names in self.found.items()
        )


@cache
def endings() -> frozenset[str]:
    """The endings of all formats that Pillow reads, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(ending.lower() for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def decode(
    sources: Encoded, resize: int | None, skip_unreadable: bool, remarks: Remarks
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Decode images into one (N, C, H, W) uint8 tensor, grey only where all are grey.

    Returns:
        The images, and the rows (N,) that were decoded; None for all.

    Raises:
        PotstillError: an image cannot be read, or is of another size than the first; it is named.
    """
    whole: np.ndarray | None = None  # (N, H, W, C), filled image by image: no list, no second copy
    rows: list[int] = []
    first, grey = "", 0
    for row in range(len(sources)):
        name, source = sources[row]
        try:
            array = _decode_one(name, source, resize, remarks)
        except Unreadable as error:
            if not skip_unreadable:
                raise
            remarks.add("unreadable images were left out", error.name)
            continue
        if whole is None:
            whole, first = _room(len(sources), array, name), name
        if array.shape[:2] != whole.shape[1:3]:
            raise PotstillError(
                f"{name}: {_size(array)} pixels, but {first} has {_size(whole[0])}; pass --resize PIXELS."
            )
        if array.shape[2] > whole.shape[3]:
            whole = np.repeat(whole, array.shape[2], 3)
        if array.shape[2] == 1 and not grey:
            grey_name = name
        grey += array.shape[2] == 1
        whole[len(rows)] = array
        rows.append(row)
    if whole is None:
        raise PotstillError(
            "none of the images can be read; check the files." if len(sources) else "there are no images to read."
        )
    if whole.shape[3] == 3 and grey:
        remarks.add("grey images became colour, as others are", grey_name, grey)
    images = torch.from_numpy(whole[: len(rows)]).permute(0, 3, 1, 2).contiguous()
    return images, None if len(rows) == len(sources) else torch.tensor(rows)


class Unreadable(PotstillError):
    """An image that cannot be decoded."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(
            f"{name}: not a readable image ({reason}); replace it or remove it, or leave all such images out by "
            "--skip-unreadable."
        )
        self.name = name


def _room(count: int, array: np.ndarray, name: str) -> np.ndarray:
    """Room for so many images like ``array``."""
    try:
        return np.empty((count, *array.shape), np.uint8)
    except MemoryError as error:
        raise PotstillError(
            f"{name}: {count} images of {_size(array)} pixels need {count * array.nbytes / 1e9:.0f} GB, more than "
            "memory holds; lower --resize, or take fewer of them."
        ) from error


def _decode_one(name: str, source: Source, resize: int | None, remarks: Remarks) -> np.ndarray:
    """One image as (H, W, 1) grey or (H, W, 3) colour."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), _opened(source) as image:
            warnings.simplefilter("ignore")  # of large images, and of damaged metadata that no pixel depends on
            if getattr(image, "n_frames", 1) > 1:
                remarks.add("files hold several pages or frames, of which the first was taken", name)
            image.load()
            upright: Any = ImageOps.exif_transpose(image)
            converted = _eight_bits(upright, name, remarks)
    except UnidentifiedImageError as error:
        raise Unreadable(name, "of no known format") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(name, error) from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError) as error:
        raise Unreadable(name, error or type(error).__name__) from error
    except (MemoryError, RuntimeError, ArithmeticError, AttributeError, AssertionError) as error:  # of damaged headers
        raise Unreadable(name, f"{type(error).__name__} {error}") from error
    if resize:
        converted = ImageOps.fit(converted, (resize, resize), Image.Resampling.LANCZOS)
    array = np.asarray(converted, np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _opened(source: Source) -> Any:
    from PIL import Image

    if isinstance(source, Image.Image):
        return source.copy()  # the caller's stays open
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if not source.is_file():  # a pipe would be waited for, and never end
        raise ValueError("not a regular file" if source.exists() else "there is no such file")
    return Image.open(source)


def _eight_bits(image: Any, name: str, remarks: Remarks) -> Any:
    """A grey or colour image of 8 bits a channel, transparency laid on white."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image.convert("I")), name, remarks))
    if image.mode == "F":
        raise ValueError("floating point pixels, whose black and white are not known; convert it to 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        if opaque.getextrema()[3][0] < 255:
            remarks.add("images were transparent and are laid on white", name)
            opaque = Image.alpha_composite(Image.new("RGBA", opaque.size, WHITE), opaque)
        return opaque.convert("L" if image.mode in ("L", "LA", "La", "1") else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _scaled(values: np.ndarray, name: str, remarks: Remarks) -> np.ndarray:
    """Grey values of 16 bits (or of 8, stored wider) as uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"values from {low} to {high}, more than 16 bits; convert it to 8 bits")
    if high <= 255:
        return values.astype(np.uint8)
    remarks.add("images of 16 bits were scaled to 8", name)
    return np.round(values / BITS_16).astype(np.uint8)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"


# --- arrays --------------------------------------------------------------------------------------------------------


def from_array(images: np.ndarray, where: str, resize: int | None, remarks: Remarks) -> Tensor:
    """Arrays (N, H, W), (N, H, W, C) or (N, C, H, W) of numbers as a (N, C, H, W) uint8 tensor.

    Raises:
        PotstillError: another shape, no numbers, or a range of values whose black and white are not known.
    """
    if images.dtype.kind not in "biuf":
        raise PotstillError(
            f"{where}: images of type {images.dtype}; expected numbers: uint8 from 0 to 255, or floats from 0 to 1."
        )
    grey = images.ndim == 3
    if grey:
        images = images[:, None]
    if images.ndim != 4 or (images.shape[1] not in (1, 3) and images.shape[3] not in (1, 3)):
        raise PotstillError(
            f"{where}: images of shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3."
        )
    if not grey and images.shape[3] in (1, 3) and images.shape[1] in (1, 3):
        raise PotstillError(
            f"{where}: images of shape {images.shape}, which may be (N, H, W, C) as well as (N, C, H, W); give PIL "
            "images, or grey ones as (N, H, W)."
        )
    if not grey and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if 0 in images.shape:
        raise PotstillError(f"{where}: holds no images (shape {images.shape}).")
    if images.dtype != np.uint8:
        images = to_bytes(images, where, remarks)
    if resize:
        images = np.stack([resized(image, resize) for image in images])
    return torch.from_numpy(np.array(images, order="C"))  # a copy, for what was read may not be writable


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """One (C, H, W) uint8 image, its shorter side resized and its centre cropped."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    array = np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def to_bytes(images: np.ndarray, where: str, remarks: Remarks) -> np.ndarray:
    """Numbers (N, ...) as uint8: whole ones up to 255, 16 bits, or floats from 0 to 1; anything else is an error."""
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = int(np.argwhere(~np.isfinite(images))[0][0])
        raise PotstillError(f"{where}: image {bad} holds NaN or infinity; replace or remove it.")
    low, high = float(images.min()), float(images.max())
    whole = images.dtype.kind in "biu"
    if images.dtype.kind == "b" or (low >= 0 and high <= 1 and not whole):
        return np.round(images.astype(np.float32) * 255).astype(np.uint8)
    if low >= 0 and high <= 255 and (whole or np.array_equal(images, np.round(images))):
        return images.astype(np.uint8)
    if whole and low >= 0 and high <= 65535:
        remarks.add("images of 16 bits were scaled to 8", where, len(images))
        return np.round(images / BITS_16).astype(np.uint8)
    remedy = "divide by 255, or round them to uint8" if 1 < high <= 255 and low >= 0 else "scale them to that"
    raise PotstillError(
        f"{where}: pixels from {low:g} to {high:g}; expected uint8 from 0 to 255 or floats from 0 to 1: {remedy}."
    )


def claimed(shape: Sequence[int], bytes_each: int, held: int, where: str) -> None:
    """Refuse a header that claims more than its file holds, before room is made for it.

    Raises:
        PotstillError: with both sizes.
    """
    count = bytes_each
    for extent in shape:
        count *= extent
    if count > held or count > sys.maxsize:
        raise PotstillError(
            f"{where}: its header claims {' × '.join(map(str, shape))} values, {count} bytes, but it holds {held}; it "
            "is damaged: get it again."
        )
