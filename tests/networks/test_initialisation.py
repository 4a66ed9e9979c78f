"""Fresh parameters are PyTorch's own under the seed, bit for bit, and no other state is touched."""

from typing import get_args

import pytest
import torch

from potstill.networks import architectures, flat
from potstill.networks.architectures import Architecture, NetworkConfig, Norm


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("name", get_args(Architecture))
def test_equals_the_module_built_under_the_seed(name, norm, shape):
    config = NetworkConfig(name=name, width=16, norm=norm)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = architectures.build(config, shape, 7)
    network = flat.flat_network(config, shape, 7)
    expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert torch.equal(network.fresh(5), expected)
    assert torch.equal(flat.initial(config, shape, 7, 5), expected)
    expected = torch.cat([buffer.float().flatten() for buffer in module.buffers()] or [torch.zeros(0)])
    assert torch.equal(network.initial_buffers(), expected)


@pytest.mark.parametrize("name", get_args(Architecture))
def test_a_seed_decides_the_weights_and_nothing_else_does(name):
    config, shape = NetworkConfig(name=name, width=11), (3, 16, 16)  # a width no other test has built
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = flat.flat_network(config, shape, 10).fresh(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(321)
    assert torch.equal(first, flat.initial(config, shape, 10, 1))
    assert not torch.equal(first, flat.initial(config, shape, 10, 2))
