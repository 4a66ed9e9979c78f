"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021), drawn apart from being applied.

One operation is drawn for a whole batch, with parameters for each image.  Since a drawing is a value, the reverse
sweep replays the very augmentation of the forward sweep, and a micro-batch takes its slice of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.bounds import Beside
from potstill.data import own_augment
from potstill.data.functions import PREFIX

Operation = Literal["colour", "crop", "cutout", "flip", "scale", "rotate"]
Named = Annotated[Operation, Beside(PREFIX)]
"""An operation, or the name of a function that a user gave."""
DSA: tuple[Operation, ...] = get_args(Operation)
FLIP, SCALE, DEGREES, PADDING, CUTOUT = 0.5, 1.2, 15.0, 0.125, 0.5  # the published strengths
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5


@dataclass(frozen=True)
class Drawing:
    """What was drawn for a batch: the operation, and one row of parameters for each image."""

    operation: Operation | None  # None leaves images as they are
    parameters: Tensor  # (b, up to 3) in the units of the operation; (b, 8) of a user's own

    def __getitem__(self, rows: slice) -> "Drawing":
        """The drawing of a part of the batch."""
        return Drawing(self.operation, self.parameters[rows])

    def repeated(self, count: int) -> "Drawing":
        """The first image's parameters for so many images: siamese augmentation (DSA)."""
        return Drawing(self.operation, self.parameters[:1].expand(count, -1))

    def to(self, device: torch.device) -> "Drawing":
        """The same drawing on another device."""
        return Drawing(self.operation, self.parameters.to(device))


def draw(
    operations: Sequence[Operation], batch: int, size: tuple[int, int], generator: torch.Generator
) -> Drawing:  # fmt: skip
    """Draw one of the operations and its parameters for ``batch`` images of ``size`` (H, W).

    Args:
        operations: the operations to choose from, each as likely; none draws the identity.
        batch: number of images b.
        size: height and width in pixels, which crop and cutout count in.
        generator: a CPU generator, the only source of chance.
    """
    if not operations:
        return Drawing(None, torch.zeros(batch, 0))
    chosen = operations[int(torch.randint(len(operations), (), generator=generator))]
    if chosen.startswith(PREFIX):
        return Drawing(chosen, torch.rand(batch, own_augment.NUMBERS, generator=generator))
    unit = torch.rand(batch, 3, generator=generator)
    extent = torch.tensor([size[0], size[1], 1.0])
    match chosen:
        case "colour":
            offset = torch.tensor([-0.5 * BRIGHTNESS, 0.0, CONTRAST])
            parameters = unit * torch.tensor([BRIGHTNESS, SATURATION, 1.0]) + offset
        case "crop":
            reach = (extent * PADDING + 0.5).floor()
            parameters = (unit * (2 * reach + 1)).floor() - reach  # whole pixels in [-reach, reach]
        case "cutout":
            hole = (extent * CUTOUT + 0.5).floor()
            parameters = (unit * (extent + 1 - hole % 2)).floor() - (hole / 2).floor()  # the hole's first row, column
        case "flip":
            parameters = (unit[:, :1] < FLIP).float()
        case "scale":
            parameters = unit[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE
        case "rotate":
            parameters = (unit[:, :1] - 0.5) * 2 * math.radians(DEGREES)
    return Drawing(chosen, parameters)


def apply(images: Tensor, drawing: Drawing) -> Tensor:
    """Augmented images, differentiable in ``images`` (b, C, H, W); ``drawing`` has b rows.

    Always contiguous: group norm is twice as slow on other layouts, and has no forward derivative there.
    """
    if drawing.operation is None:
        return images
    operation = _APPLY.get(drawing.operation) or own_augment.GIVEN.find(drawing.operation)
    return operation(images, drawing.parameters.to(images)).contiguous()


def _colour(images: Tensor, parameters: Tensor) -> Tensor:
    brightness, saturation, contrast = (column.view(-1, 1, 1, 1) for column in parameters.T)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def _crop(images: Tensor, parameters: Tensor) -> Tensor:
    b, _, h, w = images.shape
    reach = [int(extent * PADDING + 0.5) for extent in (h, w)]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    shift = parameters.long()
    rows = torch.arange(h, device=images.device) + (shift[:, :1] + reach[0])  # (b, h)
    columns = torch.arange(w, device=images.device) + (shift[:, 1:2] + reach[1])
    batch = torch.arange(b, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, parameters: Tensor) -> Tensor:
    inside = []
    for extent, first in zip(images.shape[2:], parameters.T[:2], strict=True):
        pixel = torch.arange(extent, device=images.device)
        first = first.view(-1, 1)
        inside.append((pixel >= first) & (pixel < first + int(extent * CUTOUT + 0.5)))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _flip(images: Tensor, parameters: Tensor) -> Tensor:
    return torch.where(parameters.view(-1, 1, 1, 1) > 0.5, images.flip(3), images)


def _scale(images: Tensor, parameters: Tensor) -> Tensor:
    zero = torch.zeros_like(parameters[:, 0])
    sy, sx = parameters.T
    return _affine(images, [[sx, zero, zero], [zero, sy, zero]])


def _rotate(images: Tensor, parameters: Tensor) -> Tensor:
    cos, sin = parameters[:, 0].cos(), parameters[:, 0].sin()
    zero = torch.zeros_like(cos)
    return _affine(images, [[cos, -sin, zero], [sin, cos, zero]])


def _affine(images: Tensor, rows: list[list[Tensor]]) -> Tensor:
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (b, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


_APPLY: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
