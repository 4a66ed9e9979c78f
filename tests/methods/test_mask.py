"""Which weights are matched."""

import pytest
import torch

from potstill.methods.mask import weights_of

SIZES = {"0.weight": [2, 2], "0.bias": [2], "1.weight": [3], "4.weight": [1]}
SHAPES = {name: torch.Size(size) for name, size in SIZES.items()}
ERROR = torch.tensor([5.0, 1.0, 4.0, 2.0, 9.0, 3.0, 8.0, 7.0, 6.0, 0.5])


def test_those_that_are_met_best_are_left_out():
    assert weights_of(SHAPES, ERROR, "error", 0.3).tolist() == [1, 0, 1, 0, 1, 1, 1, 1, 1, 0]


def test_shallow_layers_are_left_out_whole():
    assert weights_of(SHAPES, ERROR, "shallow", 0.34).tolist() == 6 * [0] + 4 * [1]
    assert weights_of(SHAPES, ERROR, "shallow", 0.67).tolist() == 9 * [0] + [1]


@pytest.mark.parametrize("mask", ["error", "shallow"])
def test_something_is_always_matched(mask):
    assert float(weights_of(SHAPES, ERROR, mask, 1.0).sum()) == 1
    assert float(weights_of(SHAPES, ERROR, mask, 0.0).sum()) == 10
