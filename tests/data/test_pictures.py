"""Pictures to look at: every image stands where its class and number say."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.pictures import enlarged, grid, png
from potstill.errors import PotstillError


def flat(values, c=3, h=32, w=32):
    """One image of each value, (n, C, H, W) uint8."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, c, h, w)


def test_a_png_holds_the_pixels():
    image = torch.arange(2 * 3 * 3).view(3, 2, 3).to(torch.uint8)
    found = np.asarray(Image.open(io.BytesIO(png(image))))
    assert np.array_equal(found, image.permute(1, 2, 0).numpy())


def test_grey_images_make_grey_pngs():
    image = Image.open(io.BytesIO(png(torch.zeros(1, 4, 6, dtype=torch.uint8), 3)))
    assert (image.mode, image.size) == ("L", (18, 12))


def test_enlarging_repeats_pixels():
    assert enlarged(torch.tensor([[1, 2]]), 2).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_a_row_a_class():
    picture = grid(flat([10, 20, 30, 40, 50]), torch.tensor([0, 1, 0, 1, 1]), most=2, gap=2)
    assert picture.shape == (3, 2 * 66 + 2, 2 * 66 + 2)  # 32 pixels are drawn as 64, with gaps of 2
    assert picture[0, 2 + 32, [34, 100]].tolist() == [10, 30]
    assert picture[0, 68 + 32, [34, 100]].tolist() == [20, 40]  # the third of this class is left out
    assert picture[0, 0].unique().tolist() == [255]


def test_single_images_side_by_side():
    picture = grid(flat([10, 20, 30], c=1, h=64, w=16), torch.tensor([0, 1, 2]), most=2, gap=1)
    assert picture.shape == (1, 2 * 65 + 1, 2 * 17 + 1)
    assert picture[0, 5, [5, 22]].tolist() == [10, 20]
    assert picture[0, 70, [5, 22]].tolist() == [30, 255]


@pytest.mark.parametrize(("count", "most"), [(3, 0), (3, -1), (0, 5)])
def test_nothing_to_draw_is_refused(count, most):
    with pytest.raises(PotstillError, match=f"{most} of {count} images to draw: at least 1 is needed"):
        grid(flat([1, 2, 3][:count]), torch.arange(count), most)
