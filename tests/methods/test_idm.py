"""IDM: a queue of networks that train on real images."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.methods import METHODS, idm, matching
from potstill.runs import run
from tests.conftest import tiny


@pytest.fixture
def setting(tmp_path):
    own = {"real_batch": 20, "queue": 4, "every": 2, "iterations": 8}
    job = run.open_run(tiny("idm", ipc=2, idm=own), tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS["idm"].begin(ctx, settings, None)


def test_the_queue_grows_and_the_oldest_gives_way(setting):
    ctx, settings, begun = setting
    assert idm._size(begun.memory) == 3
    memory = begun.memory
    for iteration in range(4):
        memory = METHODS["idm"].loss(ctx, settings, begun.variables, memory, begun.labels, iteration).memory
    assert (idm._size(memory), int(memory[idm.BORN])) == (4, 5)
    assert torch.equal(memory["network.0"], ctx.fresh("network", 4)), "the fifth took the place of the first"


def test_networks_of_the_queue_train_on_real_images(setting):
    ctx, settings, begun = setting
    theta, right = begun.memory["network.0"], 0.0
    velocity = torch.zeros_like(theta)
    for number in range(6):
        theta, velocity, right = idm._trained(ctx, settings, theta, velocity, ctx.draws("training", number))
    assert right > 0.3, "guessing gives 0.1"


def test_they_train_as_sgd_with_momentum_and_weight_decay_does(setting):
    ctx, settings, begun = setting
    theta, velocity, _ = idm._trained(
        ctx, settings, begun.memory["network.0"], torch.zeros_like(begun.memory["network.0"]), ctx.draws("training", 0)
    )
    expected = begun.memory["network.0"].clone().requires_grad_()
    optimiser = torch.optim.SGD([expected], lr=0.01, momentum=0.9, weight_decay=5e-4)
    split, draws = ctx.problem.train, ctx.draws("training", 0)
    for _ in range(settings.training_steps):
        rows = torch.randint(len(split.labels), (256,), generator=draws)
        optimiser.zero_grad()
        F.cross_entropy(ctx.problem.network(expected, split.images[rows]), split.labels[rows]).backward()
        optimiser.step()
    assert torch.allclose(theta, expected, atol=1e-5)
    assert torch.allclose(velocity, optimiser.state[expected]["momentum_buffer"], atol=1e-4)


def test_a_fresh_network_begins_without_velocity(setting):
    ctx, settings, begun = setting
    memory = begun.memory
    for iteration in range(4):
        memory = METHODS["idm"].loss(ctx, settings, begun.variables, memory, begun.labels, iteration).memory
    assert "velocity.0" not in memory, "the fifth network, in the first one's place, was made last"
    assert any(name.startswith("velocity.") for name in memory), "others have trained"


def test_the_cross_entropy_weighs_as_published_at_2048_features_and_less_at_fewer(setting):
    ctx, settings, begun = setting
    memory = {**begun.memory, idm.RIGHT: torch.full((settings.queue,), 0.6)}

    def loss(weight: float) -> float:
        own = replace(settings, cross_entropy=weight)
        return float(METHODS["idm"].loss(ctx, own, begun.variables, memory, begun.labels, 0).loss.detach())

    number = int(torch.randint(3, (), generator=ctx.draws("queue", 0)))
    images, classes = matching.images_of(begun.variables, begun.labels, settings.pictures)
    theta, network, expected = begun.memory[f"network.{number}"], ctx.problem.network, 0.0
    for label in range(10):
        found = matching.pair(ctx, images, classes, label, settings.real_batch, 0)
        truth = torch.full((len(found.synthetic),), label)
        expected += float(F.cross_entropy(network(theta, found.synthetic), truth))
    features = network.features(theta, images[:1]).shape[1]
    assert loss(0.5) - loss(0.0) == pytest.approx(30 * math.sqrt(features / 2048) * expected, rel=1e-4)
