"""ZCA, in both forms, against its definition; every transform against its inverse; what is no picture is refused."""

import subprocess
import sys
from dataclasses import replace

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


@pytest.mark.parametrize("kind", ["zca", "zca-image"])
def test_eigenvectors_of_large_images_take_minutes_and_that_is_said(kind, monkeypatch, caplog):
    caplog.set_level("INFO", "potstill")
    transforms.fit(kind, pixels())
    assert caplog.messages == []
    monkeypatch.setattr(transforms, "AUTO_VALUES", 47)
    transforms.fit(kind, pixels())
    assert caplog.messages == ["whitening images of 48 values each: eigenvectors take minutes"]


@pytest.mark.parametrize("kind", ["zca", "standardise"])
def test_invert_undoes_it(kind):
    transform = transforms.fit(kind, pixels())
    assert torch.allclose(transform.invert(transform(pixels())), pixels().float() / 255, atol=1e-4)


@pytest.mark.parametrize("kind", transforms.KINDS)
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


@pytest.mark.parametrize("kind", transforms.WHITENING)
def test_large_images_are_refused_with_a_remedy(kind):
    with pytest.raises(PotstillError, match=r"27648 values each needs a matrix of 3 GB; use --transform standardise"):
        transforms.fit(kind, torch.zeros(2, 3, 96, 96, dtype=torch.uint8))


@pytest.mark.parametrize("kind", transforms.WHITENING)
def test_images_of_another_shape_are_refused(kind):
    transform = transforms.fit(kind, pixels())
    with pytest.raises(
        PotstillError, match=r"12 values each, the ZCA transform was fitted on images \(3, 4, 4\); resize"
    ):
        transform(torch.zeros(1, 3, 2, 2))
    with pytest.raises(PotstillError, match=r"12 values each, the ZCA transform was fitted on 48; resize"):
        transform.invert(torch.zeros(1, 3, 2, 2))


# --- each image at one scale ---------------------------------------------------------------------------------------


def at_one_scale(images):
    """Each image less its own mean over all values, divided by its own norm, in float64: (N, C·H·W)."""
    found = []
    for image in images.double().div(255).flatten(1):
        image = image - sum(image.tolist()) / len(image)
        found.append(image / sum(value**2 for value in image.tolist()) ** 0.5)
    return torch.stack(found)


def eigenvalues_and_vectors(images):
    """Of the second moments, not centred, of these images at one scale."""
    scaled = at_one_scale(images)
    moment = sum(torch.outer(image, image) for image in scaled) / len(scaled)
    return torch.linalg.eigh(moment)


def test_zca_image_is_the_published_formula():
    """T = V (e + 0.1 mean(e))^(−1/2) Vᵀ of C = XᵀX / N, for training images and others alike."""
    e, v = eigenvalues_and_vectors(pixels())
    matrix = v @ torch.diag((e + 0.1 * e.mean()) ** -0.5) @ v.T
    transform, others = transforms.fit("zca-image", pixels()), pixels(260)[200:]
    for images in (pixels(), others):
        found = transform(images).double().flatten(1)
        assert torch.allclose(found, at_one_scale(images) @ matrix, atol=2e-5)
    assert float(transform.floor) == pytest.approx(0.1 / 48, rel=1e-6)


def test_what_zca_image_gives_is_white_but_for_what_is_added_to_the_eigenvalues():
    """Second moments V e / (e + 0.1 mean(e)) Vᵀ: the identity where e is large."""
    e, v = eigenvalues_and_vectors(pixels())
    found = transforms.fit("zca-image", pixels())(pixels()).double().flatten(1)
    moment = found.T @ found / len(found)
    left = e / (e + 0.1 * e.mean())
    assert torch.allclose(moment, v @ torch.diag(left) @ v.T, atol=2e-5)
    assert float(found.square().mean()) == pytest.approx(float(left.mean()), rel=1e-5)
    varied = torch.randint(0, 256, (4000, 1, 3, 3), generator=seeds.generator(0, "varied"), dtype=torch.uint8)
    white = transforms.fit("zca-image", varied)(varied).double().flatten(1) * 1.1**0.5
    projection = torch.eye(9, dtype=torch.float64) - 1 / 9  # the mean of each image is gone
    assert torch.allclose(white.T @ white / len(white), projection, atol=0.03)


def test_brightness_and_contrast_of_an_image_do_not_reach_what_zca_image_gives():
    transform, x = transforms.fit("zca-image", pixels()), pixels().float() / 255
    assert torch.allclose(transform(0.3 * x + 0.2), transform(x), atol=1e-4)


def test_with_its_levels_an_image_comes_back_and_without_them_at_those_of_the_training_images():
    transform, others = transforms.fit("zca-image", pixels()), pixels(260)[200:]
    x, levels = others.float() / 255, transforms.levels(others)
    assert torch.allclose(transform.invert(transform(others), levels), x, atol=1e-5)
    mean, norm = transforms.levels(pixels())
    shown = transform.invert(transform(others))
    assert torch.allclose(at_one_scale(shown * 255), at_one_scale(others), atol=1e-5)
    assert torch.allclose(shown.mean((1, 2, 3)), mean.mean().expand(60), atol=1e-5)
    assert torch.allclose((shown.flatten(1) - mean.mean()).norm(dim=1), norm.mean().expand(60), atol=1e-5)
    assert (float(transform.mean), float(transform.norm)) == pytest.approx((float(mean.mean()), float(norm.mean())))


def test_synthetic_images_of_any_scale_are_shown_alike():
    transform = transforms.fit("zca-image", pixels())
    noise = torch.randn(5, 3, 4, 4, generator=seeds.generator(0, "noise"))
    shown = transform.invert(noise)
    assert torch.allclose(transform.invert(1e-3 * noise), shown, atol=1e-5)
    about = shown.flatten(1) - transform.mean
    assert torch.allclose(about.norm(dim=1), transform.norm.expand(5))
    assert transform.invert(torch.zeros(1, 3, 4, 4)).unique().tolist() == [float(transform.mean)]
    assert transform.pixels(noise).dtype == torch.uint8


def test_constant_images_are_nothing_and_come_back():
    constant = torch.tensor([0, 7, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 4, 4)
    for training in (pixels(), torch.cat([pixels(), constant]), constant):
        transform = transforms.fit("zca-image", training)
        found = transform(constant)
        assert float(found.abs().max()) < 1e-4
        assert torch.equal(transform.invert(found, transforms.levels(constant)), constant.float() / 255)
        assert bool(transform(pixels()).isfinite().all())
    mixed = transforms.fit("zca-image", torch.cat([pixels(), constant]))
    assert float(mixed.scale.sum()) == pytest.approx(200 / 204, rel=1e-5)


def test_what_is_kept_of_the_two_forms_of_zca_does_not_mix():
    kept = [transforms.fit(kind, pixels(), "of both") for kind in (*transforms.WHITENING, *transforms.WHITENING)]
    for first, again in zip(kept[:2], kept[2:], strict=True):
        assert first.tensors().keys() == again.tensors().keys()
        assert all(tensor.equal(again.tensors()[name]) for name, tensor in first.tensors().items())
    assert set(kept[1].tensors()) - set(kept[0].tensors()) == {"transform.floor", "transform.norm"}


@pytest.mark.parametrize("kind", ["zca", "standardise"])
def test_levels_are_of_zca_image_alone(kind):
    transform = transforms.fit(kind, pixels())
    with pytest.raises(PotstillError, match=f"levels: the transform {kind} keeps them in the images; leave them out"):
        transform.invert(transform(pixels()), transforms.levels(pixels()))


# --- what may be given ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", transforms.KINDS)
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


@pytest.mark.parametrize("kind", transforms.KINDS)
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
    for kind in transforms.WHITENING:
        with pytest.raises(PotstillError, match=r"fitted on images \(3, 4, 4\); resize"):
            transforms.fit(kind, pixels())(tall)
    assert transforms.fit("standardise", pixels())(tall).shape == tall.shape


@pytest.mark.parametrize("kind", transforms.WHITENING)
def test_an_overshoot_of_rounding_and_no_image_at_all_pass(kind):
    transform = transforms.fit(kind, pixels())
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


def inverted(transform, whitened, images):
    """Pixels from whitened images, with their own levels where the transform forgets them."""
    return transform.invert(whitened, *[transforms.levels(images)] * (transform.kind == "zca-image"))


@pytest.mark.parametrize(("kind", "error"), [("zca", 5e-5), ("zca-image", 1e-4)])
def test_packed_it_is_the_same_within_the_stated_error(kind, error):
    images, other = smooth(), smooth(800)[400:]
    transform = transforms.fit(kind, images)
    packed = again(transform)
    assert bytes_of(transform.packed()) < bytes_of(transform.tensors()) / 2
    change = packed(other) - transform(other)
    assert float(change.square().mean().sqrt()) < error
    assert float(change.abs().max()) < 1e-3
    assert float((inverted(packed, transform(other), other) - other).abs().max()) < 1e-3


@pytest.mark.parametrize("kind", transforms.WHITENING)
@pytest.mark.parametrize("error", [1e-3, 1e-2])
def test_leaving_eigenvectors_out_costs_no_more_than_is_asked_for(kind, error):
    """On the images it was fitted on, of which the bound is; and the next one would have been too many."""
    transform = transforms.fit(kind, smooth())
    leading = transform.leading(error)

    def cost(of):
        return float((of(smooth()) - transform(smooth())).square().mean().sqrt())

    assert cost(leading) < 1.01 * error
    order = transform.scale.argsort(descending=True)[: leading.basis.shape[1] - 1]
    fewer = replace(transform, scale=transform.scale[order], basis=transform.basis[:, order])
    assert cost(fewer) > 0.99 * error


@pytest.mark.parametrize("kind", transforms.WHITENING)
def test_packed_again_nothing_more_is_lost(kind):
    once = again(transforms.fit(kind, smooth()))
    twice = again(once)
    assert once.basis.shape == twice.basis.shape
    assert torch.equal(once.packed()["transform.basis"], twice.packed()["transform.basis"])
    assert torch.allclose(once(smooth()), twice(smooth()), atol=1e-5)


@pytest.mark.parametrize("kind", transforms.WHITENING)
def test_eigenvectors_left_out_count_as_eigenvalue_0(kind):
    transform = transforms.fit(kind, smooth())
    leading = transform.leading(error=1e-3)
    whole = leading.whole()
    assert leading.basis.shape[1] < whole.basis.shape[1] == 768
    assert torch.allclose(whole.basis.T @ whole.basis, torch.eye(768), atol=1e-4)
    assert torch.allclose(leading(smooth()), whole(smooth()), atol=1e-4)
    assert torch.allclose(leading.invert(smooth()), whole.invert(smooth()), atol=1e-4)
    assert torch.allclose(inverted(leading, leading(smooth()), smooth()), smooth(), atol=1e-4)


def test_a_standardising_transform_has_nothing_to_pack():
    transform = transforms.fit("standardise", smooth())
    assert transform.leading() is transform.whole() is transform
    assert transform.packed().keys() == transform.tensors().keys()


@pytest.mark.parametrize(
    ("kind", "size", "rms", "change", "most", "in_pixels"),
    [("zca", 11e6, 0.26, 2e-5, 3e-4, 1e-4), ("zca-image", 17.1e6, 0.53, 8e-5, 6e-4, 5e-5)],
)
def test_packed_cifar10_has_the_error_that_is_stated(real_data, tmp_path, kind, size, rms, change, most, in_pixels):
    command = [sys.executable, str(real_data / "unpack.py"), str(tmp_path), "--only", "cifar10", "--format", "npz"]
    subprocess.run(command, check=True, capture_output=True)
    images = {
        split: torch.from_numpy(np.load(tmp_path / "cifar10" / f"{split}.npz")["images"]).permute(0, 3, 1, 2)
        for split in ("train", "test")
    }
    transform = transforms.fit(kind, images["train"])
    packed, whitened = again(transform), transform(images["test"])
    assert bytes_of(transform.packed()) < size
    assert float(whitened.square().mean().sqrt()) == pytest.approx(rms, abs=0.005)
    found = packed(images["test"]) - whitened
    assert float(found.square().mean().sqrt()) < change
    assert float(found.abs().max()) < most
    assert float((inverted(packed, whitened, images["test"]) - images["test"] / 255).abs().max()) < in_pixels
