"""The tangent kernel against that of a finite, very wide network, its layers by hand, and finite differences."""

import itertools
import math

import pytest
import torch

from potstill.methods import ntk


def empirical(x, y, depth, width, seed):
    """⟨∂f(x)/∂θ, ∂f(y)/∂θ⟩ of a network in the parametrisation of the kernel, by autograd."""
    draws = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], *[width] * depth, 1]
    weights = [torch.randn(b, a, generator=draws).double().requires_grad_() for a, b in itertools.pairwise(sizes)]
    biases = [torch.randn(b, generator=draws).double().requires_grad_() for b in sizes[1:]]

    def gradient(row):
        h = row
        for number, (w, b) in enumerate(zip(weights, biases, strict=True)):
            h = math.sqrt(2 / w.shape[1]) * w @ h + math.sqrt(ntk.BIAS) * b
            h = torch.relu(h) if number < depth else h
        return torch.cat([g.flatten() for g in torch.autograd.grad(h.sum(), [*weights, *biases])])

    return torch.stack([gradient(a) for a in x]) @ torch.stack([gradient(b) for b in y]).T


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_it_is_the_limit_of_wide_networks(depth):
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 6, generator=draws).double(), torch.randn(2, 6, generator=draws).double()
    mean = torch.stack([empirical(x, y, depth, 1000, seed) for seed in range(6)]).mean(0)
    expected = ntk.fully_connected(x, y, depth)
    assert float((mean - expected).norm() / expected.norm()) < 0.1


def test_one_layer_by_hand():
    """Perpendicular images of norm √D without bias: κ₁(0) = 1/π and κ₀(0) = 1/2."""
    x = torch.eye(2).double() * 2**0.5
    found = ntk.fully_connected(x[:1], x[1:], 1)
    c = ntk.BIAS / (2 + ntk.BIAS)
    angle = math.acos(c)
    kappa1 = (math.sin(angle) + (math.pi - angle) * c) / math.pi
    kappa0 = 1 - angle / math.pi
    assert float(found) == pytest.approx(kappa1 * (2 + ntk.BIAS) + ntk.BIAS + kappa0 * ntk.BIAS)


def test_gradients_are_finite_differences_and_finite_where_images_meet():
    draws = torch.Generator().manual_seed(2)
    x, y = torch.randn(3, 5, generator=draws).double(), torch.randn(4, 5, generator=draws).double()
    assert torch.autograd.gradcheck(lambda a: ntk.fully_connected(a, y, 2), x.requires_grad_())
    apart = 1 - torch.eye(3)
    assert torch.autograd.gradcheck(lambda a: apart * ntk.fully_connected(a, a, 2), x.detach().requires_grad_())


def test_on_the_diagonal_it_is_linear_in_the_square_of_the_norm():
    """K_l(x, x) = K₀(x, x) + l β², so that Θ₂(x, x) = 3 K₀ + 3 β², whose gradient is finite: 12 x / D."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    found = ntk.fully_connected(x, x, 2).diagonal()
    k0 = 2 / 5 * x.square().sum(1) + ntk.BIAS
    assert torch.allclose(found, 3 * k0 + 3 * ntk.BIAS, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(slope, 12 * x / 5, atol=1e-6)
