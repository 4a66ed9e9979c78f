"""Modules as pure functions, against the modules themselves."""

from typing import get_args

import pytest
import torch

from potstill.errors import PotstillError
from potstill.networks import architectures, flat, functional
from potstill.networks.architectures import Architecture, NetworkConfig, Norm

SHAPE = (3, 16, 16)


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("name", get_args(Architecture))
def test_equals_the_module_in_training_and_in_evaluation_mode(name, norm):
    config = NetworkConfig(name=name, width=8, norm=norm)
    module = architectures.build(config, SHAPE, 5)
    network = flat.flat_network(config, SHAPE, 5)
    theta, buffers = network.fresh(0), network.initial_buffers()
    module.load_state_dict(network.as_module(theta, buffers).state_dict())
    x, draws = 2 + torch.randn(8, *SHAPE), torch.Generator().manual_seed(0)
    assert torch.equal(network(theta, x), module(x))  # moves the module's statistics, none of ours
    network(theta, x, buffers)
    for _ in range(2):
        x = torch.randn(8, *SHAPE, generator=draws)
        assert torch.equal(network(theta, x, buffers), module(x))
    expected = torch.cat([buffer.float().flatten() for buffer in module.buffers()] or [torch.zeros(0)])
    assert torch.equal(buffers, expected)
    module.eval()
    assert torch.equal(network(theta, x, buffers, training=False), module(x))
    assert torch.equal(buffers, expected)


def test_the_gradient_moves_statistics_and_is_autograds():
    config = NetworkConfig(width=8, depth=2, norm="batch")
    network = flat.flat_network(config, SHAPE, 5)
    theta, buffers = network.fresh(0).requires_grad_(), network.initial_buffers()
    module, x = network.as_module(theta, buffers).train(), torch.randn(8, *SHAPE)
    (found,) = torch.autograd.grad(network(theta, x, buffers).square().sum(), theta)
    module(x).square().sum().backward()
    assert torch.allclose(found, torch.cat([parameter.grad.flatten() for parameter in module.parameters()]), atol=1e-5)
    assert torch.equal(buffers, torch.cat([buffer.float().flatten() for buffer in module.buffers()]))


def test_a_layer_with_weights_of_an_unknown_kind_is_refused():
    with pytest.raises(PotstillError, match="layer PReLU: has weights"):
        functional.check(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.PReLU()))
