"""Each operation against its plain definition, image by image."""

import math

import pytest
import torch
import torch.nn.functional as F

from potstill import seeds
from potstill.data import augment
from potstill.data.augment import DSA


def images(b=7, size=(12, 10)):
    return torch.randn(b, 3, *size, generator=seeds.generator(0, "images"))


def drawn(operation, b=7, size=(12, 10), seed=0):
    return augment.draw((operation,), b, size, seeds.generator(seed, "draw"))


@pytest.mark.parametrize("operation", DSA)
def test_same_seed_same_images_and_a_slice_is_the_slice(operation):
    x, drawing = images(), drawn(operation)
    whole = augment.apply(x, drawing)
    assert torch.equal(whole, augment.apply(x, drawn(operation)))
    parts = [augment.apply(x[rows], drawing[rows]) for rows in (slice(0, 3), slice(3, 7))]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    assert whole.shape == x.shape
    assert not torch.equal(whole, x)


@pytest.mark.parametrize("operation", DSA)
def test_differentiable_in_the_images(operation):
    x = images(2, (6, 6)).double().requires_grad_()
    drawing = drawn(operation, 2, (6, 6))
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, drawing), x)


def test_no_operation_is_the_identity():
    drawing = augment.draw((), 7, (12, 10), seeds.generator(0, "draw"))
    assert torch.equal(augment.apply(images(), drawing), images())


def test_crop_shifts_by_whole_pixels_and_fills_with_zeros():
    x, drawing = images(40), drawn("crop", 40)
    reach_y, reach_x = 2, 1  # ⌊12 · 0.125 + 0.5⌋ and ⌊10 · 0.125 + 0.5⌋
    shifts = drawing.parameters[:, :2].long()
    assert set(shifts[:, 0].tolist()) == {-2, -1, 0, 1, 2}
    assert set(shifts[:, 1].tolist()) == {-1, 0, 1}
    for image, result, (dy, dx) in zip(x, augment.apply(x, drawing), shifts.tolist(), strict=True):
        padded = F.pad(image, (reach_x, reach_x, reach_y, reach_y))
        assert torch.equal(result, padded[:, reach_y + dy : reach_y + dy + 12, reach_x + dx : reach_x + dx + 10])


def test_cutout_blanks_half_of_each_side_or_what_of_it_lies_inside():
    x = torch.ones(200, 1, 12, 10)
    blank = augment.apply(x, drawn("cutout", 200)) == 0
    assert int(blank.sum((1, 2, 3)).max()) == 6 * 5
    assert int(blank.sum((1, 2, 3)).min()) >= 3 * 2


def test_flip_mirrors_about_half_of_the_images():
    x, drawing = images(400, (4, 4)), drawn("flip", 400, (4, 4))
    result = augment.apply(x, drawing)
    mirrored = (result == x.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, drawing.parameters[:, 0] == 1)
    assert torch.equal(result[~mirrored], x[~mirrored])
    assert 150 < int(mirrored.sum()) < 250


def test_strengths_are_the_published_ones():
    scale = drawn("scale", 4000).parameters
    assert scale.shape == (4000, 2)
    assert 1 / 1.2 <= float(scale.min()) < 0.84
    assert 1.19 < float(scale.max()) <= 1.2
    turn = drawn("rotate", 4000).parameters
    assert math.radians(14.9) < float(turn.abs().max()) <= math.radians(15)
    brightness, saturation, contrast = drawn("colour", 4000).parameters.T
    for values, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        assert low <= float(values.min()) < low + 0.01
        assert high - 0.01 < float(values.max()) <= high


def test_colour_is_brightness_then_saturation_then_contrast():
    x, drawing = images(3), drawn("colour", 3)
    for image, result, (b, s, c) in zip(x, augment.apply(x, drawing), drawing.parameters.tolist(), strict=True):
        image = image + b
        grey = image.mean(0, keepdim=True)
        image = (image - grey) * s + grey
        assert torch.allclose(result, (image - image.mean()) * c + image.mean(), atol=1e-5)


def test_every_operation_is_drawn_about_as_often():
    draws = seeds.generator(1, "many")
    counts = dict.fromkeys(DSA, 0)
    for _ in range(1200):
        counts[augment.draw(DSA, 1, (4, 4), draws).operation] += 1
    assert min(counts.values()) > 150
