"""ZCA against its definition; every transform against its inverse."""

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
    with pytest.raises(PotstillError, match="12 values each, the ZCA transform was fitted on 48"):
        transforms.fit("zca", pixels())(torch.zeros(1, 3, 2, 2))
