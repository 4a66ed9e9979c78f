"""Flat parameters, losses, buffers; and that a seed is a seed (trap 3 of the public code)."""

import torch
import torch.nn.functional as F

from potstill import seeds
from potstill.config import NetworkConfig
from potstill.networks import architectures, flat

CONFIG, SHAPE = NetworkConfig(width=8, depth=2), (3, 8, 8)


def test_flat_equals_the_module():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = architectures.build(CONFIG, SHAPE, 10)
    network = flat.flat_network(CONFIG, SHAPE, 10)
    x = torch.randn(4, *SHAPE)
    assert torch.equal(network(flat.initial(CONFIG, SHAPE, 10, 5), x), module(x))


def test_a_seed_decides_the_weights_and_nothing_else_does():
    first = flat.initial(CONFIG, SHAPE, 10, 1)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(first, flat.initial(CONFIG, SHAPE, 10, 1))
    assert not torch.equal(first, flat.initial(CONFIG, SHAPE, 10, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_counter_based_seeds_replay_any_draw_alone():
    drawn = [torch.rand(3, generator=seeds.generator(0, "segment", i)) for i in range(5)]
    assert torch.equal(drawn[3], torch.rand(3, generator=seeds.generator(0, "segment", 3)))
    assert len({tuple(d.tolist()) for d in drawn}) == 5
    assert seeds.derive(0, "a", 1) != seeds.derive(0, "b", 1)
    assert seeds.derive(0, "a", 1, 2) != seeds.derive(0, "a", 12)


def test_soft_cross_entropy_with_one_hot_rows_is_the_hard_one():
    outputs, labels = torch.randn(6, 10), torch.randint(10, (6,))
    one_hot = F.one_hot(labels, 10).float()
    found = flat.soft_cross_entropy(outputs, one_hot)
    assert torch.allclose(found, F.cross_entropy(outputs, labels, reduction="sum"))


def test_running_statistics_go_out_and_in_again():
    network = flat.flat_network(NetworkConfig(width=8, depth=2, norm="batch"), SHAPE, 10)
    theta = flat.initial(NetworkConfig(width=8, depth=2, norm="batch"), SHAPE, 10, 0)
    fresh = network.buffers
    network(theta, 3 + torch.randn(32, *SHAPE))
    moved = network.buffers
    assert not torch.equal(fresh, moved)
    outputs = flat.predict(network, theta, torch.randn(4, *SHAPE, generator=seeds.generator(0, "x")))
    network.reset_buffers()
    assert torch.equal(network.buffers, fresh)
    network.set_buffers(moved)
    again = flat.predict(network, theta, torch.randn(4, *SHAPE, generator=seeds.generator(0, "x")))
    assert torch.equal(outputs, again)


def test_accuracy_is_the_fraction_right():
    network = flat.flat_network(CONFIG, SHAPE, 10)
    theta = flat.initial(CONFIG, SHAPE, 10, 0)
    x = torch.randn(50, *SHAPE)
    labels = network(theta, x).argmax(1)
    labels[:20] = (labels[:20] + 1) % 10
    assert abs(flat.accuracy(network, theta, x, labels) - 0.6) < 1e-6
