"""Flat parameters, running statistics, features; and that a seed is a seed (trap 3 of the public code)."""

from typing import get_args

import pytest
import torch

from potstill import seeds
from potstill.errors import PotstillError
from potstill.networks import architectures, flat
from potstill.networks.architectures import Architecture, NetworkConfig, Norm

CONFIG, SHAPE = NetworkConfig(width=8, depth=2), (3, 8, 8)
BATCH_NORM = NetworkConfig(width=8, depth=2, norm="batch")


def test_flat_equals_the_module():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = architectures.build(CONFIG, SHAPE, 10)
    network = flat.flat_network(CONFIG, SHAPE, 10)
    x = torch.randn(4, *SHAPE)
    assert torch.equal(network(flat.initial(CONFIG, SHAPE, 10, 5), x), module(x))


def test_counter_based_seeds_replay_any_draw_alone():
    drawn = [torch.rand(3, generator=seeds.generator(0, "segment", i)) for i in range(5)]
    assert torch.equal(drawn[3], torch.rand(3, generator=seeds.generator(0, "segment", 3)))
    assert len({tuple(d.tolist()) for d in drawn}) == 5
    assert seeds.derive(0, "a", 1) != seeds.derive(0, "b", 1)
    assert seeds.derive(0, "a", 1, 2) != seeds.derive(0, "a", 12)


def test_running_statistics_are_the_callers_own():
    network = flat.flat_network(BATCH_NORM, SHAPE, 10)
    theta, fresh = network.fresh(0), network.initial_buffers()
    moved, other = network.initial_buffers(), network.initial_buffers()
    network(theta, 3 + torch.randn(32, *SHAPE), moved)
    network(theta, 3 + torch.randn(32, *SHAPE))  # without buffers there are none
    assert not torch.equal(fresh, moved)
    assert torch.equal(fresh, other)
    x = torch.randn(4, *SHAPE, generator=seeds.generator(0, "x"))
    before, after = flat.predict(network, theta, x, moved), flat.predict(network, theta, x, fresh)
    assert not torch.allclose(before, after)
    assert torch.equal(flat.predict(network, theta, x, moved), before)  # predicting moves nothing


def test_evaluation_without_running_statistics_is_refused():
    network = flat.flat_network(BATCH_NORM, SHAPE, 10)
    with pytest.raises(PotstillError, match="pass those it was trained with"):
        flat.predict(network, network.fresh(0), torch.randn(4, *SHAPE))
    with pytest.raises(PotstillError, match="needs running statistics"):
        network.as_module(network.fresh(0))


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("name", get_args(Architecture))
def test_features_are_what_the_last_linear_layer_is_given(name, norm):
    network = flat.flat_network(NetworkConfig(name=name, width=8, norm=norm), SHAPE, 5)
    theta, x = network.fresh(0).requires_grad_(), torch.randn(6, *SHAPE).requires_grad_()
    features = network.features(theta, x)
    *_, weight, bias = network.unflatten(theta).values()
    assert features.shape == (6, weight.shape[1])
    assert torch.allclose(features @ weight.T + bias, network(theta, x), atol=1e-5)
    for gradient in torch.autograd.grad(features.square().sum(), (theta, x)):
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().sum()) > 0


def test_images_are_predicted_in_batches_by_their_size(monkeypatch):
    """Else memory grows with the size of the images: 2.9 GB for 500 of 224×224."""
    network = flat.flat_network(NetworkConfig(width=4, depth=1), SHAPE, 3)
    theta, images, seen = network.fresh(0), torch.randn(10, *SHAPE), []
    whole = type(network).__call__

    def noted(self, theta, x, *more, **how):
        seen.append(len(x))
        return whole(self, theta, x, *more, **how)

    monkeypatch.setattr(flat, "MOST_PIXELS", 4 * SHAPE[1] * SHAPE[2])
    monkeypatch.setattr(type(network), "__call__", noted)
    found = flat.predict(network, theta, images)
    assert seen == [4, 4, 2]
    assert torch.allclose(found, network(theta, images, training=False), atol=1e-6)


@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_module_of_its_own_predicts_the_same(norm):
    network = flat.flat_network(NetworkConfig(width=8, depth=2, norm=norm), SHAPE, 10)
    theta, buffers, x = network.fresh(0), network.initial_buffers(), torch.randn(32, *SHAPE)
    network(theta, 2 + x, buffers)
    module = network.as_module(theta, buffers)
    assert torch.equal(module(x), flat.predict(network, theta, x, buffers))
    assert not module.training
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert torch.equal(theta, network.fresh(0))  # it shares no memory


def test_accuracy_is_the_fraction_right():
    network = flat.flat_network(CONFIG, SHAPE, 10)
    theta = flat.initial(CONFIG, SHAPE, 10, 0)
    x = torch.randn(50, *SHAPE)
    labels = network(theta, x).argmax(1)
    labels[:20] = (labels[:20] + 1) % 10
    assert abs(flat.accuracy(network, theta, x, labels) - 0.6) < 1e-6
