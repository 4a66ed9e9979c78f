"""The derivatives along a chain of links, against autograd as it is, in float64 and for every network."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
import torch

from potstill import seeds
from potstill.adjoint.chain import Chain
from potstill.adjoint.derivatives import plain
from potstill.config import Architecture
from potstill.networks.flat import label_loss, target_loss
from tests.networks.test_layers import CLASSES, setting


def close(found, expected):
    return float((found - expected).norm()) <= 1e-10 * float(expected.norm())


@pytest.mark.parametrize("loss_of", [label_loss, target_loss])
@pytest.mark.parametrize("name", get_args(Architecture))
@pytest.mark.usefixtures("as_compiled")
def test_both_derivatives_are_autograds(name, loss_of):
    network, theta, x, z, direction = setting(name)
    z = z if loss_of is label_loss else z.softmax(1)
    chain, obvious = Chain(loss_of(network)), plain(loss_of(network))
    gradient, kept = chain.gradient(network.unflatten(theta), x, z)
    assert close(network.flatten(gradient), obvious.gradient(theta, x, z)[0])
    s, d_theta, d_x, d_z = chain.directional(network.unflatten(theta), x, z, network.unflatten(direction), kept)
    for found, expected in zip(
        (s, network.flatten(d_theta), d_x, d_z), obvious.directional(theta, x, z, direction, ()), strict=True
    ):
        assert close(found, expected)


@pytest.mark.usefixtures("as_compiled")
def test_what_is_kept_is_used_and_no_larger_than_said():
    """Of every link but the first y and the slope in x; a wrong one gives a wrong derivative."""
    network, theta, x, z, direction = setting("convnet")
    chain = Chain(label_loss(network))
    parameters, moving = network.unflatten(theta), network.unflatten(direction)
    _, kept = chain.gradient(parameters, x, z)
    assert [tuple(tuple(tensor.shape) for tensor in pair) for pair in kept] == [
        ((2, 8, 16, 16), (2, 8, 16, 16)), ((2, 8, 8, 8), (2, 8, 8, 8)), ((2, CLASSES), (2, 128))
    ]  # fmt: skip
    right = chain.directional(parameters, x, z, moving, kept)[2]
    for i, j in itertools.product(range(len(kept)), range(2)):
        noise = 0.1 * torch.randn(kept[i][j].shape, generator=seeds.generator(0, "noise")).double()
        wrong = [tuple(t + noise if (i, j) == (m, n) else t for n, t in enumerate(pair)) for m, pair in enumerate(kept)]
        assert not torch.allclose(chain.directional(parameters, x, z, moving, tuple(wrong))[2], right, rtol=1e-3)


@pytest.mark.usefixtures("as_compiled")
def test_bfloat16_is_for_features_alone_and_stays_near():
    """Weights, images and labels and their slopes are float32; what is kept is as narrow as the features."""
    network, theta, x, z, direction = setting("convnet")
    exact = plain(label_loss(network)).directional(theta, x, z, direction, ())
    network.module.float()
    chain = Chain(label_loss(replace(network, precision=torch.bfloat16)))
    theta, x, z, direction = (tensor.float() for tensor in (theta, x, z, direction))
    _, kept = chain.gradient(network.unflatten(theta), x, z)
    assert {tensor.dtype for pair in kept for tensor in pair} == {torch.bfloat16}
    s, gradient, s_x, s_z = chain.directional(
        network.unflatten(theta), x, z, network.unflatten(direction), kept
    )  # fmt: skip
    for low, full in zip((s, network.flatten(gradient), s_x, s_z), exact, strict=True):
        assert low.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(low.double().flatten(), full.flatten(), 0) > 0.99
