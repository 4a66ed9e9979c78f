"""NCFM's distance: zero for equal sets, and that of the definition."""

import pytest
import torch

from potstill.methods.ncfm import characteristic, distance


def drawn(*sizes):
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(*size, generator=draws).double() for size in sizes]


def test_it_is_nothing_for_equal_sets_in_any_order():
    features, frequencies = drawn((12, 5), (40, 5))
    assert float(distance(features, features.flip(0), frequencies)) < 1e-5
    assert float(distance(features, features + 0.5, frequencies)) > 0.1


def test_it_is_that_of_complex_numbers():
    real, synthetic, frequencies = drawn((12, 5), (3, 5), (40, 5))
    r, s = (torch.exp(1j * (x @ frequencies.T)).mean(0) for x in (real, synthetic))
    amplitude = 0.5 * (r.abs() - s.abs()).square()
    phase = r.abs() * s.abs() - (r * s.conj()).real
    expected = (amplitude + phase).sqrt().mean()
    assert float(distance(real, synthetic, frequencies)) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(torch.complex(*characteristic(real, frequencies)), r)


def test_its_gradient_is_that_of_finite_differences():
    real, synthetic, frequencies = drawn((12, 5), (3, 5), (7, 5))
    assert torch.autograd.gradcheck(lambda s: distance(real, s, frequencies), synthetic.requires_grad_())
