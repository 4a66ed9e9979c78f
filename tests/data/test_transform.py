"""ZCA against its definition; every transform against its inverse; what is no picture is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from potstill import seeds
from potstill.data import transform as transforms
from potstill.errors import PotstillError


def pixels(n=200, shape=(3, 4, 4)):
    draws = seeds.generator(0, "pixels")
    mixed = torch.randn(n, 10, generator=draws) @ torch.randn(10, shape[0] * shape[1] * shape[2], generator=draws)
    return (128 + 12 * mixed).clamp(0, 255).to(torch.uint8).view(n, *shape)


def test_zca_is_the_published_formula():
    """μ the mean, covariance over N − 1, T = U (S + 0.1)^(−1/2) Uᵀ, x' = (x − μ) T, on pixels in [0, 1]."""
    x = (pixels().double() / 255).flatten(1)
    covariance = torch.cov(x.T)
    values, vectors = torch.linalg.eigh(covariance + 0.1 * torch.eye(48, dtype=torch.float64))
    expected = (x - x.mean(0)) @ (vectors @ torch.diag(values**-0.5) @ vectors.T)
    found = transforms.fit("zca", pixels())(pixels())
    assert torch.allclose(found.double().flatten(1), expected, atol=1e-4)


def test_eigenvectors_are_found_once(monkeypatch):
    first = transforms.fit("zca", pixels(), "these pixels")
    monkeypatch.setattr(torch.linalg, "eigh", None)
    again = transforms.fit("zca", pixels(), "these pixels")
    assert all(tensor.equal(again.tensors()[name]) for name, tensor in first.tensors().items())
    with pytest.raises(TypeError):
        transforms.fit("zca", pixels(), "others")


@pytest.mark.parametrize("kind", ["zca", "standardise"])
def test_invert_undoes_it(kind):
    transform = transforms.fit(kind, pixels())
    assert torch.allclose(transform.invert(transform(pixels())), pixels().float() / 255, atol=1e-4)


@pytest.mark.parametrize("kind", ["zca", "standardise"])
def test_stored_and_read_it_is_the_same(kind):
    transform = transforms.fit(kind, pixels())
    again = transforms.Transform.from_tensors(kind, transform.tensors())
    assert torch.equal(again(pixels()), transform(pixels()))


def test_standardised_channels_have_mean_0_and_deviation_1():
    found = transforms.fit("standardise", pixels())(pixels()).transpose(0, 1).flatten(1)
    assert torch.allclose(found.mean(1), torch.zeros(3), atol=1e-4)
    assert torch.allclose(found.std(1), torch.ones(3), atol=1e-4)


def test_a_constant_channel_is_no_division_by_zero():
    assert bool(
        transforms.fit("standardise", torch.full((5, 1, 2, 2), 7, dtype=torch.uint8))(pixels()[:, :1]).isfinite().all()
    )


def test_auto_whitens_small_images_only():
    assert transforms.fit("auto", pixels()).kind == "zca"
    assert transforms.fit("auto", torch.zeros(2, 3, 40, 40, dtype=torch.uint8)).kind == "standardise"


def test_large_images_are_refused_with_a_remedy():
    with pytest.raises(PotstillError, match=r"27648 values each needs a matrix of 3 GB; use --transform standardise"):
        transforms.fit("zca", torch.zeros(2, 3, 96, 96, dtype=torch.uint8))


def test_images_of_another_shape_are_refused():
    with pytest.raises(
        PotstillError, match="12 values each, the ZCA transform was fitted on images \\(3, 4, 4\\); resize"
    ):
        transforms.fit("zca", pixels())(torch.zeros(1, 3, 2, 2))


# --- what may be given ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zca", "standardise"])
@pytest.mark.parametrize(
    "alike",
    [
        lambda x: x.numpy(),
        lambda x: x.flip(3).numpy()[:, :, :, ::-1],  # strides that torch does not take
        lambda x: x.numpy().astype(">i2"),
        lambda x: x.long(),
        lambda x: x.int().numpy(),
        lambda x: x.float() / 255,
        lambda x: x.double().numpy() / 255,
    ],
    ids=["uint8", "flipped", "big-endian", "int64", "int32", "float32", "float64"],
)
def test_arrays_and_tensors_of_all_number_types_mean_the_same(kind, alike):
    transform = transforms.fit(kind, pixels())
    found = transform(alike(pixels()))
    assert found.dtype == torch.float32
    assert torch.allclose(found, transform(pixels()), atol=1e-5)


def test_an_array_is_not_written_to_and_may_be_read_only():
    given = pixels().numpy()
    given.setflags(write=False)
    before = given.copy()
    transforms.fit("standardise", pixels())(given)
    assert np.array_equal(given, before)


@pytest.mark.parametrize("kind", ["zca", "standardise"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            lambda x: x.permute(0, 2, 3, 1),
            r"pixels \(200, 4, 4, 3\): their channels come last, .*permute\(0, 3, 1, 2\)",
        ),
        (lambda x: x[:, 0], r"pixels \(200, 4, 4\): the transform takes four axes, \(N, 3, 4, 4\)"),
        (lambda x: x[0], r"pixels \(3, 4, 4\): .*add the axis of the images"),
        (lambda x: x[:, :1], r"1 channels, the transform was fitted on 3; give images of the same mode"),
        (lambda x: x.float(), r"from 0 to 255: floats go from 0 to 1; divide them by 255"),
        (lambda x: x.float() / 255 - 0.01, r"pixels from -0.01 .*floats go from 0 to 1"),
        (lambda x: x.float() / 255 + torch.nan, r"pixels from nan to nan: floats"),
        (lambda x: x.int() * 257, r"pixels from 0 to 65535: whole numbers go from 0 to 255; rescale"),
        (lambda x: x.int() - 1, r"pixels from -1 to 254: whole numbers"),
        (lambda x: x > 100, r"pixels of type bool: are no brightness"),
        (lambda x: x.tolist(), r"pixels of type list: the transform takes tensors and NumPy arrays"),
        (lambda x: x.numpy().astype(object), r"pixels of type object: are no plain numbers"),
    ],
)
def test_what_is_no_picture_is_refused(kind, given, words):
    x = pixels()
    x[0, 0, 0, :2] = torch.tensor([0, 255])
    with pytest.raises(PotstillError, match=words):
        transforms.fit(kind, pixels())(given(x))


def test_height_and_width_are_those_it_was_fitted_on_where_each_pixel_counts():
    tall = torch.zeros(2, 3, 8, 2, dtype=torch.uint8)  # as many values as (3, 4, 4)
    with pytest.raises(PotstillError, match=r"fitted on images \(3, 4, 4\); resize"):
        transforms.fit("zca", pixels())(tall)
    assert transforms.fit("standardise", pixels())(tall).shape == tall.shape


def test_an_overshoot_of_rounding_and_no_image_at_all_pass():
    transform = transforms.fit("zca", pixels())
    assert bool(transform(torch.full((1, 3, 4, 4), 1 + 1e-6)).isfinite().all())
    assert transform(pixels()[:0]).shape == (0, 3, 4, 4)


def test_a_transform_is_printed_in_a_line():
    assert repr(transforms.fit("zca", pixels())) == "Transform(zca, fitted on (3, 4, 4))"


# --- in less room --------------------------------------------------------------------------------------------------


def smooth(n=400, size=16):
    """Images with the falling spectrum of photographs: amplitude 1/f, so that most eigenvalues are small."""
    draws = seeds.generator(0, "smooth")
    f = torch.fft.fftfreq(size) * size
    amplitude = 1 / (1 + (f[:, None] ** 2 + f[None, :] ** 2))
    noise = torch.fft.fft2(torch.randn(n, 3, size, size, generator=draws))
    images = torch.fft.ifft2(noise * amplitude).real
    return (0.5 + 0.2 * images / images.std()).clamp(0, 1)


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def again(transform):
    return transforms.Transform.from_tensors(transform.kind, transform.packed(), transform.shape)


def test_packed_it_is_the_same_within_the_stated_error():
    images, other = smooth(), smooth(800)[400:]
    transform = transforms.fit("zca", images)
    packed = again(transform)
    assert bytes_of(transform.packed()) < bytes_of(transform.tensors()) / 2
    change = packed(other) - transform(other)
    assert float(change.square().mean().sqrt()) < 5e-5
    assert float(change.abs().max()) < 1e-3
    assert float((packed.invert(transform(other)) - other).abs().max()) < 1e-3


def test_packed_again_nothing_more_is_lost():
    once = again(transforms.fit("zca", smooth()))
    twice = again(once)
    assert once.basis.shape == twice.basis.shape
    assert torch.equal(once.packed()["transform.basis"], twice.packed()["transform.basis"])
    assert torch.allclose(once(smooth()), twice(smooth()), atol=1e-5)


def test_eigenvectors_left_out_count_as_eigenvalue_0():
    transform = transforms.fit("zca", smooth())
    leading = transform.leading(error=1e-3)
    whole = leading.whole()
    assert leading.basis.shape[1] < whole.basis.shape[1] == 768
    assert torch.allclose(whole.basis.T @ whole.basis, torch.eye(768), atol=1e-4)
    assert torch.allclose(leading(smooth()), whole(smooth()), atol=1e-4)
    assert torch.allclose(leading.invert(smooth()), whole.invert(smooth()), atol=1e-4)
    assert torch.allclose(leading.invert(leading(smooth())), smooth(), atol=1e-4)


def test_a_standardising_transform_has_nothing_to_pack():
    transform = transforms.fit("standardise", smooth())
    assert transform.leading() is transform.whole() is transform
    assert transform.packed().keys() == transform.tensors().keys()


def test_packed_cifar10_has_the_error_that_is_stated(real_data, tmp_path):
    command = [sys.executable, str(real_data / "unpack.py"), str(tmp_path), "--only", "cifar10", "--format", "npz"]
    subprocess.run(command, check=True, capture_output=True)
    images = {
        split: torch.from_numpy(np.load(tmp_path / "cifar10" / f"{split}.npz")["images"]).permute(0, 3, 1, 2)
        for split in ("train", "test")
    }
    transform = transforms.fit("zca", images["train"])
    packed, whitened = again(transform), transform(images["test"])
    assert bytes_of(transform.packed()) < 11e6
    change = packed(images["test"]) - whitened
    assert float(change.square().mean().sqrt()) < 2e-5
    assert float(change.abs().max()) < 3e-4
    assert float((packed.invert(whitened) - images["test"] / 255).abs().max()) < 1e-4
