"""Networks as chains of a linear layer and its tail."""

from typing import get_args

import pytest
import torch

from potstill.config import Architecture, NetworkConfig
from potstill.networks import flat, layers

SHAPE, CLASSES = (3, 32, 32), 10


def setting(name, batch=2):
    """A network, its parameters, a direction, images and logits."""
    config = NetworkConfig(name, width=8)
    network = flat.flat_network(config, SHAPE, CLASSES)
    network.module.double()
    theta = flat.initial(config, SHAPE, CLASSES, 5).double()
    draws = torch.Generator().manual_seed(0)
    x, z, direction = (
        torch.randn(size, generator=draws).double() for size in ((batch, *SHAPE), (batch, CLASSES), theta.shape)
    )
    return network, theta, x, z, direction


@pytest.mark.parametrize("name", get_args(Architecture))
def test_the_links_are_the_network_and_share_out_its_parameters(name):
    network, theta, x, _, direction = setting(name)
    parameters, other = network.unflatten(theta), network.unflatten(direction)
    names, here = [], x
    for link in network.links:
        weights, others = link.part(parameters)
        names += [*weights, *others]
        y = link.linear(weights, here)
        along = link.linear(link.part(other)[0], here)
        both = {key: weights[key] - 2 * other[key] for key in weights}
        assert torch.allclose(link.linear(both, here), y - 2 * along, atol=1e-9)
        bias = link.linear(weights, torch.zeros_like(here))
        assert torch.allclose(link.product(weights, here), y - bias, atol=1e-9)
        here = link.tail(others, y)
    assert torch.allclose(here, network(theta, x), atol=1e-12)
    assert sorted(names) == sorted(parameters)


@pytest.mark.parametrize("name", get_args(Architecture))
def test_the_first_links_adjoint_is_autograds(name):
    network, theta, x, _, direction = setting(name)
    link, x = network.links[0], x.requires_grad_()
    weights, _ = link.part(network.unflatten(theta))
    y = link.linear(weights, x)
    slope = link.linear(link.part(network.unflatten(direction))[0], x).detach()
    (expected,) = torch.autograd.grad(y, x, slope)
    assert torch.allclose(link.adjoint(weights, slope, x), expected, atol=1e-9)


def test_a_convolution_of_few_channels_has_its_adjoint_as_a_product(monkeypatch):
    """Or the test above would hold autograd against itself."""
    network, theta, x, _, _ = setting("convnet")
    monkeypatch.setattr(torch.func, "vjp", None)
    weights, _ = network.links[0].part(network.unflatten(theta))
    assert network.links[0].adjoint(weights, network.links[0].linear(weights, x), x).shape == x.shape


def test_layers_within_blocks_belong_to_a_tail():
    network, *_ = setting("resnet18")
    assert len(network.links) == 2
    assert [type(link.layers[-1]) for link in network.links] == [torch.nn.Conv2d, torch.nn.Linear]
    assert layers.lowered(torch.float64, torch.float32) == torch.float64
    assert layers.lowered(torch.float32, torch.bfloat16) == torch.bfloat16
