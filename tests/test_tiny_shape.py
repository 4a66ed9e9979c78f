"""recipes/tiny_shape.py: the presets of Tiny ImageNet, cut short, hold on classes as they are asked for."""

import numpy as np
import pytest

from potstill.cli.arguments import parse
from potstill.runs import settings
from recipes import tiny_shape


@pytest.mark.parametrize("ipc", tiny_shape.SHORTER)
def test_a_preset_that_is_cut_short_holds(ipc, tmp_path):
    images, labels = np.zeros((120, 8, 8, 3), np.uint8), np.arange(120) % 30
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=images, labels=labels, classes=[f"class {n}" for n in range(30)])
    given = parse("run", tiny_shape.flags(tmp_path, ipc)).settings
    settings.check(given)
    (matching,) = given.stages
    assert (given.ipc, given.resize, given.network.depth, len(given.classes)) == (ipc, 64, 4, tiny_shape.CLASSES)
    assert (given.expert.epochs, given.expert.rho, matching.step_size) == (2, 0.01, 0.01)  # cut, and the preset's
    assert matching.iterations <= 20
