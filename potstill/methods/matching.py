"""What methods share that compare real and synthetic images of a class: which real ones, augmented alike.

Siamese augmentation draws one operation and one set of its parameters for all images of a class, real and synthetic, as
the public code of DSA does; a set for each image would make most of the distance noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data import augment
from potstill.data.distilled import decode
from potstill.methods.method import Context, Variables
from potstill.methods.selection import rows_of


@dataclass(frozen=True)
class Pair:
    """Images of one class in one iteration."""

    label: int
    real: Tensor  # (b, C, H, W)
    synthetic: Tensor  # (m, C, H, W), differentiable in the set's images


def images_of(variables: Variables, labels: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
    """All pictures of the set (n · f², C, H, W) and their classes."""
    return decode(variables["images"], pictures), labels.repeat_interleave(pictures**2)


@torch.no_grad()
def constant_features(ctx: Context, theta: Tensor, images: Tensor) -> Tensor:
    """The last features (b, F) of real images, which nothing is differentiated through, the quickest way there is.

    In float32 a CPU convolves fastest where a pixel's channels lie side by side; its bfloat16 units do not, and a
    user's own network may count on another order.
    """
    network = ctx.problem.network
    if network.own is None and images.device.type == "cpu" and network.precision == torch.float32:
        images = images.contiguous(memory_format=torch.channels_last)
    parts = images.split(ctx.problem.at_once)
    return torch.cat([network.features(theta, part) for part in parts])


def pair(
    ctx: Context, images: Tensor, classes: Tensor, label: int, count: int, iteration: int, siamese: bool = True
) -> Pair:  # fmt: skip
    """The synthetic images of a class and ``count`` real ones; siamese: all augmented by the same parameters."""
    split, draws = ctx.problem.train, ctx.draws("real", iteration, label)
    own = rows_of(ctx, label)
    real = split.images[own[torch.randperm(len(own), generator=draws)[:count].to(own.device)]]
    synthetic = images[classes == label]
    if not siamese:
        return Pair(label, real, synthetic)
    drawing = augment.draw(ctx.augment, 1, (images.shape[2], images.shape[3]), draws).to(ctx.problem.device)
    augmented = (augment.apply(x, drawing.repeated(len(x))) for x in (real, synthetic))
    return Pair(label, *augmented)
