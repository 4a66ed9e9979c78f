"""The training loop against torch.optim, and the flat recipe against its formula."""

import pytest
import torch

from potstill import seeds
from potstill.adjoint import engine
from potstill.data.labels import one_hot
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig
from potstill.networks.losses import target_loss
from potstill.training.sgd import Recipe, sgd, sharpness_aware
from tests.conftest import needs_compiler

CONFIG, SHAPE = NetworkConfig(width=6, depth=2), (1, 8, 8)


@pytest.fixture
def problem():
    draws = seeds.generator(0, "data")
    network = flat.flat_network(CONFIG, SHAPE, 4)
    images, labels = torch.randn(20, *SHAPE, generator=draws), torch.randint(4, (20,), generator=draws)
    return network, flat.initial(CONFIG, SHAPE, 4, 0), images, one_hot(labels, 4), labels


def gradient_of(network):
    return engine.mean_gradient(target_loss(network))


def test_equals_torch_optim(problem):
    network, theta, images, targets, labels = problem
    recipe = Recipe(6, 8, 0.1, momentum=0.9, weight_decay=5e-3, decay_after=4)
    *_, found = sgd(gradient_of(network), theta, images, targets, recipe, seed=3)
    module = network.as_module(theta)
    for epoch in range(6):
        if epoch in (0, 4):  # the published recipe makes a new optimiser when the step size falls
            optimiser = torch.optim.SGD(
                module.parameters(), 0.1 if epoch == 0 else 0.01, momentum=0.9, weight_decay=5e-3
            )
        for rows in torch.randperm(20, generator=seeds.generator(3, "epoch", epoch)).split(8):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimiser.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert torch.allclose(found, expected, atol=1e-5)


def test_goes_on_after_any_epoch_as_if_it_had_not_stopped(problem):
    network, theta, images, targets, _ = problem
    recipe = Recipe(5, 8, 0.1, augment=("crop", "flip"))
    whole = list(sgd(gradient_of(network), theta, images, targets, recipe, seed=3))
    *_, resumed = sgd(gradient_of(network), whole[1], images, targets, recipe, seed=3, first_epoch=2)
    assert torch.equal(resumed, whole[-1])


def test_what_is_yielded_is_never_written_to_again(problem):
    """Trap 1 of the public code: snapshots that alias the live weights all end as the last."""
    network, theta, images, targets, _ = problem
    snapshots = list(sgd(gradient_of(network), theta, images, targets, Recipe(4, 8, 0.1), seed=3))
    copies = [s.clone() for s in sgd(gradient_of(network), theta, images, targets, Recipe(4, 8, 0.1), seed=3)]
    assert all(torch.equal(a, b) for a, b in zip(snapshots, copies, strict=True))
    assert len({float(s.norm()) for s in snapshots}) == 4


def test_flat_gradient_is_the_published_formula(problem):
    network, theta, images, targets, _ = problem
    gradient, rho, alpha = gradient_of(network), 0.05, 0.3
    g = gradient(theta, images, targets)
    e = theta**2 * g * rho / (theta.abs() * g).norm()
    there = gradient(theta + e, images, targets)
    unit = there / there.norm()
    orthogonal = g - (g @ unit) * unit
    found = sharpness_aware(gradient, rho, alpha)(theta, images, targets)
    assert torch.allclose(found, there - alpha * orthogonal, atol=1e-6)
    assert abs(float(orthogonal @ there)) < 1e-5
    assert not torch.allclose(found, g, atol=1e-3)


@needs_compiler
def test_compiled_training_gradient_equals_the_obvious_one():
    config = NetworkConfig(width=128, depth=2)
    network = flat.flat_network(config, (3, 32, 32), 4)
    theta = flat.initial(config, (3, 32, 32), 4, 0).double()
    images = torch.randn(40, 3, 32, 32, generator=seeds.generator(0, "x")).double()
    targets = one_hot(torch.arange(40) % 4, 4).double()
    assert engine.multiplications(network, (3, 32, 32)) > engine.LARGE
    fast = engine.training_gradient(network, (3, 32, 32), 40, 1.0, "yes")(theta, images, targets)  # parts of 32 and 8
    obvious = gradient_of(network)(theta, images, targets)
    assert float((fast - obvious).norm() / obvious.norm()) < 1e-10
