"""A small set, whitened by ZCA."""

import pytest
import torch

from potstill import seeds
from potstill.data import transform as transforms
from potstill.data.distilled import Distilled


@pytest.fixture
def distilled():
    draws = seeds.generator(0, "set")
    pixels = torch.randint(0, 256, (60, 3, 6, 5), generator=draws, dtype=torch.uint8)
    transform = transforms.fit("zca", pixels)
    return Distilled(
        images=transform(pixels[:6]), targets=torch.randn(6, 3, generator=draws), kind="logits",
        labels=torch.tensor([0, 0, 1, 1, 2, 2]), step_size=0.02, transform=transform, classes=("a", "b", "c/d"),
        recipe={"network": {"name": "convnet", "width": 4, "depth": 1}, "augment": ["flip"]},
        provenance={"iteration": 3},
    )  # fmt: skip
