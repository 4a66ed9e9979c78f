"""Networks as chains of layers, each a linear and a nonlinear part."""

from typing import get_args

import pytest
import torch

from potstill.networks import flat, layers
from potstill.networks.architectures import Architecture, NetworkConfig

SHAPE, CLASSES = (3, 32, 32), 10


def setting(name, batch=2):
    """A network, its parameters, a direction, images and logits."""
    config = NetworkConfig(name, width=8)
    network = flat.flat_network(config, SHAPE, CLASSES)
    theta = flat.initial(config, SHAPE, CLASSES, 5).double()
    draws = torch.Generator().manual_seed(0)
    x, z, direction = (
        torch.randn(size, generator=draws).double() for size in ((batch, *SHAPE), (batch, CLASSES), theta.shape)
    )
    return network, theta, x, z, direction


@pytest.mark.parametrize("name", get_args(Architecture))
def test_the_layers_are_the_network_and_divide_its_parameters(name):
    network, theta, x, _, direction = setting(name)
    parameters, other = network.unflatten(theta), network.unflatten(direction)
    names, here = [], x
    for layer in network.layers:
        weights, others = layer.split(parameters)
        names += [*weights, *others]
        y = layer.linear(weights, here)
        along = layer.linear(layer.split(other)[0], here)
        both = {key: weights[key] - 2 * other[key] for key in weights}
        assert torch.allclose(layer.linear(both, here), y - 2 * along, atol=1e-9)
        bias = layer.linear(weights, torch.zeros_like(here))
        assert torch.allclose(layer.linear_without_bias(weights, here), y - bias, atol=1e-9)
        here = layer.nonlinear(others, y)
    assert torch.allclose(here, network(theta, x), atol=1e-12)
    assert sorted(names) == sorted(parameters)


@pytest.mark.parametrize("name", get_args(Architecture))
def test_the_first_layers_input_gradient_is_autograds(name):
    network, theta, x, _, direction = setting(name)
    layer, x = network.layers[0], x.requires_grad_()
    weights, _ = layer.split(network.unflatten(theta))
    y = layer.linear(weights, x)
    y_gradient = layer.linear(layer.split(network.unflatten(direction))[0], x).detach()
    (expected,) = torch.autograd.grad(y, x, y_gradient)
    assert torch.allclose(layer.input_gradient(weights, y_gradient, x), expected, atol=1e-9)


def test_a_convolution_of_few_channels_has_its_adjoint_as_a_product(monkeypatch):
    """Otherwise the test above would compare autograd with itself."""
    network, theta, x, _, _ = setting("convnet")
    monkeypatch.setattr(torch.func, "vjp", None)
    layer = network.layers[0]
    weights, _ = layer.split(network.unflatten(theta))
    assert layer.input_gradient(weights, layer.linear(weights, x), x).shape == x.shape


def test_convolutions_within_blocks_belong_to_a_nonlinear_part():
    network, *_ = setting("resnet18")
    assert [type(layer.linear_part[-1]) for layer in network.layers] == [torch.nn.Conv2d, torch.nn.Linear]
    assert layers.lowered(torch.float64, torch.float32) == torch.float64
    assert layers.lowered(torch.float32, torch.bfloat16) == torch.bfloat16
