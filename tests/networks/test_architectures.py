"""Every architecture on the image shapes that users bring."""

import pytest
import torch

from potstill.errors import PotstillError
from potstill.networks import architectures, flat
from potstill.networks.architectures import Architecture, NetworkConfig

ALL = Architecture.__args__


@pytest.mark.parametrize(("shape", "classes", "depth", "count"), [
    ((3, 32, 32), 10, 3, 320_010), ((3, 32, 32), 100, 3, 504_420), ((3, 64, 64), 200, 4, 857_160),
])  # fmt: skip
def test_convnet_has_the_published_number_of_weights(shape, classes, depth, count):
    assert len(flat.initial(NetworkConfig(depth=depth), shape, classes, 0)) == count
    assert len(flat.initial(NetworkConfig(), shape, classes, 0)) == count  # the depth follows from the size


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 33, 20)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_every_network_takes_every_shape_and_trains(name, shape, norm):
    network = architectures.build(NetworkConfig(name=name, width=16, norm=norm), shape, 7)
    outputs = network(torch.randn(4, *shape))
    assert outputs.shape == (4, 7)
    outputs.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and float(p.grad.abs().sum()) >= 0 for p in network.parameters())


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_convnet_family(pooling, norm):
    network = architectures.build(NetworkConfig(width=8, depth=2, norm=norm, pooling=pooling), (3, 16, 16), 5)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet"])
def test_narrower_networks_have_as_many_fewer_channels(name):
    def widest(narrower):
        network = architectures.build(NetworkConfig(name=name, narrower=narrower), (3, 32, 32), 10)
        return max(p.shape[0] for p in network.parameters())

    assert widest(4) == widest(1) // 4
    assert widest(10_000) == 10, "the classes; every layer is left a channel"


def test_settings_of_later_versions_that_change_nothing_go_unnamed():
    before = {"name": "convnet", "width": 128, "depth": None, "norm": "instance", "pooling": "avg"}
    assert architectures.identity(NetworkConfig()) == before
    assert architectures.identity(NetworkConfig(narrower=2)) == {**before, "narrower": 2}


def test_too_deep_a_network_is_refused_with_a_remedy():
    with pytest.raises(PotstillError, match="lower --network.depth"):
        architectures.build(NetworkConfig(depth=5), (1, 8, 8), 10)


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_size(size, depth):
    assert architectures.depth_for(size, size) == depth
