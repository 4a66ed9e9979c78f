"""Which weights are matched (PAD; Li et al., "Prioritize Alignment in Dataset Distillation", 2024)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor


def weights_of(
    shapes: Mapping[str, torch.Size], error: Tensor, mask: Literal["error", "shallow"], ratio: float
) -> Tensor:  # fmt: skip
    """1 for the weights that are matched and 0 for the others (P,).

    Args:
        shapes: of the network's parameters, in the vector's order, layer by layer.
        error: squared, by which the student misses each weight (P,).
        mask: "error" leaves the ``ratio`` of the weights out that it misses least (PAD's code), "shallow" the first
            ``ratio`` of the layers (its paper: shallow layers learn what all images share).
        ratio: a fraction of 1; 0 leaves none out.
    """
    counted = torch.ones_like(error)
    if ratio == 0:
        return counted
    if mask == "error":
        least = round(ratio * len(error))
        counted[error.argsort()[: min(least, len(error) - 1)]] = 0.0
        return counted
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in shapes))
    left_out = set(layers[: min(round(ratio * len(layers)), len(layers) - 1)])
    parts = counted.split([shape.numel() for shape in shapes.values()])
    for name, part in zip(shapes, parts, strict=True):
        if name.rpartition(".")[0] in left_out:
            part.zero_()
    return counted
