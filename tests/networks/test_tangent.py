"""The Jacobian of a network against forward mode, its transpose, its derivative in the images; and a smooth ReLU."""

import math

import pytest
import torch

from potstill.networks import tangent
from potstill.networks.architectures import NetworkConfig
from potstill.networks.flat import flat_network

SHAPE = (2, 8, 8)


def setting(name="convnet", beta=20.0, **more):
    network = flat_network(NetworkConfig(name, width=4, depth=2, **more), SHAPE, 3)
    network = tangent.smoothed(network, beta) if beta else network
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(5, *SHAPE, generator=draws).double()
    theta = network.fresh(0).double()
    return network, theta, images, torch.randn(len(theta), generator=draws).double()


def headless(network, direction):
    """The direction with 0 for the weights of the last layer."""
    *_, head, _bias = network.shapes
    parts = network.unflatten(direction.clone())
    parts[head] = torch.zeros_like(parts[head])
    return network.flatten(parts)


@pytest.mark.parametrize("more", [{}, {"norm": "none"}, {"name": "mlp"}, {"beta": 0.0}])
def test_products_are_those_of_forward_and_reverse_mode(more):
    network, theta, images, direction = setting(**more)
    near = tangent.linearise(network, theta, images)
    f = lambda at: network(at, images)  # noqa: E731
    outputs, expected = torch.func.jvp(f, (theta,), (headless(network, direction),))
    assert torch.allclose(near.outputs, outputs)
    assert torch.allclose(near.features, network.features(theta, images))
    assert torch.allclose(near.times(direction), expected)
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    (pulled,) = torch.func.vjp(f, theta)[1](weights)
    assert torch.allclose(near.transposed(weights), headless(network, pulled))


def test_the_product_is_differentiable_in_images_and_direction():
    network, theta, images, direction = setting(beta=3.0)

    def product(x, v):
        return tangent.linearise(network, theta, x).times(v, True)

    leaves = images[:2].requires_grad_(), (0.1 * direction).requires_grad_()
    assert torch.autograd.gradcheck(product, leaves, fast_mode=True)


def test_the_smoothed_network_is_nearly_the_same_and_leaves_it_alone():
    network, theta, images, _ = setting(beta=0.0, norm="none")
    before = network(theta, images)
    smooth = tangent.smoothed(network, 60.0)
    assert smooth.shapes == network.shapes
    assert torch.equal(network(theta, images), before)
    assert 0 < float((smooth(theta, images) - before).abs().max()) < 0.1
    layer = dict(smooth.module.named_children())["2"]
    assert float(layer(torch.zeros(1))) == pytest.approx(math.log(2) / 60)
