"""The derivatives along a chain of layers, against plain autograd, in float64 and for every network."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
import torch

from potstill import seeds
from potstill.adjoint.chain import Chain
from potstill.adjoint.derivatives import eager
from potstill.networks.architectures import Architecture
from potstill.networks.losses import LabelKind, label_loss, loss_for
from tests.networks.test_layers import CLASSES, setting
from tests.networks.test_losses import labels_of


def close(found, expected):
    return float((found - expected).norm()) <= 1e-10 * float(expected.norm())


@pytest.mark.parametrize("kind", get_args(LabelKind))
@pytest.mark.parametrize("name", get_args(Architecture))
@pytest.mark.usefixtures("as_compiled")
def test_both_derivatives_are_autograds(name, kind):
    network, theta, x, _, direction = setting(name)
    z, loss = labels_of(kind, len(x), CLASSES), loss_for(network, kind)
    chain, obvious = Chain(loss), eager(loss)
    gradient, residuals = chain.gradient(network.unflatten(theta), x, z)
    assert close(network.flatten(gradient), obvious.gradient(theta, x, z)[0])
    s, d_theta, d_x, d_z = chain.directional(network.unflatten(theta), x, z, network.unflatten(direction), residuals)
    for found, expected in zip(
        (s, network.flatten(d_theta), d_x, d_z), obvious.directional(theta, x, z, direction, ()), strict=True
    ):
        assert close(found, expected)


@pytest.mark.usefixtures("as_compiled")
def test_residuals_are_used_and_no_larger_than_documented():
    """Of every layer but the first: y, and the gradient in x; a wrong one gives a wrong derivative."""
    network, theta, x, z, direction = setting("convnet")
    chain = Chain(label_loss(network))
    parameters, tangent = network.unflatten(theta), network.unflatten(direction)
    _, residuals = chain.gradient(parameters, x, z)
    assert [tuple(tuple(tensor.shape) for tensor in pair) for pair in residuals] == [
        ((2, 8, 16, 16), (2, 8, 16, 16)), ((2, 8, 8, 8), (2, 8, 8, 8)), ((2, CLASSES), (2, 128))
    ]  # fmt: skip
    right = chain.directional(parameters, x, z, tangent, residuals)[2]
    for i, j in itertools.product(range(len(residuals)), range(2)):
        noise = 0.1 * torch.randn(residuals[i][j].shape, generator=seeds.generator(0, "noise")).double()
        wrong = [
            tuple(t + noise if (i, j) == (m, n) else t for n, t in enumerate(pair)) for m, pair in enumerate(residuals)
        ]
        assert not torch.allclose(chain.directional(parameters, x, z, tangent, tuple(wrong))[2], right, rtol=1e-3)


@pytest.mark.usefixtures("as_compiled")
def test_bfloat16_is_for_features_alone_and_stays_near():
    """Weights, images and labels and their gradients are float32; residuals have the type of the features."""
    network, theta, x, z, direction = setting("convnet")
    exact = eager(label_loss(network)).directional(theta, x, z, direction, ())
    chain = Chain(label_loss(replace(network, precision=torch.bfloat16)))
    theta, x, z, direction = (tensor.float() for tensor in (theta, x, z, direction))
    _, residuals = chain.gradient(network.unflatten(theta), x, z)
    assert {tensor.dtype for pair in residuals for tensor in pair} == {torch.bfloat16}
    s, gradient, s_x, s_z = chain.directional(
        network.unflatten(theta), x, z, network.unflatten(direction), residuals
    )  # fmt: skip
    for low, full in zip((s, network.flatten(gradient), s_x, s_z), exact, strict=True):
        assert low.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(low.double().flatten(), full.flatten(), 0) > 0.99
