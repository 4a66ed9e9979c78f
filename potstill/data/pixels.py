"""Image files and numeric arrays → uint8 pixels."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.errors import PotstillError


def decode(sources: Iterable[tuple[str, Any]], resize: int | None) -> Tensor:
    """Decode (name, file) pairs into one (N, C, H, W) uint8 tensor; whatever does not fit is named."""
    arrays: list[np.ndarray] = []
    first = ""
    for name, source in sources:
        array = _decode_one(name, source, resize)
        if arrays and array.shape != arrays[0].shape:
            same_mode = array.shape[2] == arrays[0].shape[2]
            remedy = "pass --resize PIXELS" if same_mode else "convert all images to one mode"
            raise PotstillError(f"{name}: {_describe(array)}, but {first} is {_describe(arrays[0])}; {remedy}.")
        first = first or name
        arrays.append(array)
    if not arrays:
        raise PotstillError("a table without rows: there are no images to read; check its files.")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _decode_one(name: str, source: Any, resize: int | None) -> np.ndarray:
    """One image as (H, W, 1) grey or (H, W, 3) colour."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            image.load()
            grey = image.mode in ("1", "L", "LA")
            if image.mode in ("I", "I;16", "F"):
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel; convert it to 8 bits")
            converted: Any = image.convert("L" if grey else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise PotstillError(f"{name}: not a readable image ({error}); replace it or remove it.") from error
    if resize:
        converted = ImageOps.fit(converted, (resize, resize), Image.Resampling.LANCZOS)
    array = np.asarray(converted, np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _describe(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]} {'grey' if array.shape[2] == 1 else 'colour'}"


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """One (C, H, W) uint8 image, its shorter side resized and its centre cropped."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    array = np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def to_bytes(images: np.ndarray, where: str) -> np.ndarray:
    """Whole numbers from 0 to 255, or floats from 0 to 1, as uint8; anything else is an error."""
    if not np.isfinite(images).all():
        bad = int(np.argwhere(~np.isfinite(images))[0][0])
        raise PotstillError(f"{where}: image {bad} holds NaN or infinity; replace or remove it.")
    low, high = float(images.min()), float(images.max())
    if np.issubdtype(images.dtype, np.integer) and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if low >= 0 and high <= 1:
        return np.round(images * 255).astype(np.uint8)
    raise PotstillError(
        f"{where}: pixels from {low:g} to {high:g}; expected uint8 from 0 to 255 or floats from 0 to 1."
    )
