"""Pictures to look at: PNG bytes, and many images drawn as one."""

import torch
from torch import Tensor

from potstill.errors import PotstillError

LEGIBLE = 64  # pixels of height to which small images are enlarged


def png(image: Tensor, scale: int = 1) -> bytes:
    """PNG bytes of one uint8 image (C, H, W), grey or colour, each pixel drawn ``scale`` pixels wide."""
    import io

    from PIL import Image

    array = enlarged(image, scale).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def enlarged(images: Tensor, scale: int) -> Tensor:
    """Images (..., H, W) with each pixel ``scale`` pixels wide and high."""
    return images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def grid(pixels: Tensor, labels: Tensor, most: int = 10, gap: int = 2) -> Tensor:
    """One uint8 image (C, H', W') of the images (n, C, H, W), enlarged to be seen.

    A row a class, ``most`` images of each at most; where every class has one image, ``most`` side by side.  ``gap``
    white pixels lie between them.

    Raises:
        PotstillError: there is nothing to draw.
    """
    if most < 1 or len(pixels) == 0:
        raise PotstillError(f"{most} of {len(pixels)} images to draw: at least 1 is needed; raise --most.")
    c, h, w = pixels.shape[1:]
    scale = max(1, LEGIBLE // h)
    rows = [pixels[labels == label][:most] for label in range(int(labels.max()) + 1)]
    if all(len(row) == 1 for row in rows):
        rows = list(torch.cat(rows).split(most))
    height, width = h * scale, w * scale
    columns = max(len(row) for row in rows)
    canvas = pixels.new_full((c, len(rows) * (height + gap) + gap, columns * (width + gap) + gap), 255)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            canvas[:, y : y + height, x : x + width] = enlarged(image, scale)
    return canvas
