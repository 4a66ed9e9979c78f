"""RCIG: its gradient against differentiating the whole inner training, its parts written out, and its memory."""

from dataclasses import replace

import pytest
import torch

from potstill.methods import METHODS, convex, frepo, rcig, ridge
from potstill.methods.rcig import Rcig
from potstill.networks.architectures import NetworkConfig
from potstill.networks.flat import flat_network
from potstill.networks.tangent import linearise, smoothed
from potstill.runs import run
from tests.conftest import tiny

CONVERGED = Rcig(inner_steps=600, solve_steps=600, l2=0.05)


@pytest.fixture
def setting(tmp_path):
    own = {"real_batch": 40, "pool": 2, "life": 7, "pool_steps": 3, "iterations": 8, "inner_steps": 4, "solve_steps": 4}
    job = run.open_run(tiny("rcig", ipc=2, rcig=own), tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS["rcig"].begin(ctx, settings, None)


def small():
    """A smooth network of three classes, θ, a set of five images, and nine real ones, all float64."""
    network = smoothed(flat_network(NetworkConfig(width=3, depth=1), (1, 4, 4), 3), 5.0)
    draws = torch.Generator().manual_seed(0)
    images, values = torch.randn(5, 1, 4, 4, generator=draws).double(), torch.randn(5, 3, generator=draws).double()
    real = torch.randn(9, 1, 4, 4, generator=draws).double()
    truth = torch.eye(3).double()[torch.arange(9) % 3] - 1 / 3
    variables = {"images": images, "values": values, "temperature": torch.tensor(0.7).double()}
    return network, network.fresh(0).double(), variables, (real, truth)


def unrolled(settings, network, theta, variables, real, steps=200):
    """The loss of real images after descending the obvious inner loss to its end with the whole graph kept, and δ."""
    x, y, l2 = variables["images"], variables["values"], settings.l2 * len(variables["images"])
    near, far = linearise(network, theta, x), linearise(network, theta, real[0])
    h, identity = near.features, torch.eye(len(x)).double()

    def head_of(delta):
        residual = y - near.times(delta, True)
        return h.T @ torch.linalg.solve(h @ h.T + l2 * identity, residual), residual

    delta = velocity = torch.zeros_like(theta, requires_grad=True)
    for _ in range(steps):
        best, residual = head_of(delta)
        loss = 0.5 * ((residual - h @ best).square().sum() + l2 * (best.square().sum() + delta @ delta))
        (gradient,) = torch.autograd.grad(loss, delta, create_graph=True)
        velocity = 0.8 * velocity + gradient
        delta = delta - 0.15 * velocity
    assert float(gradient.detach().norm()) < 1e-9
    outputs = variables["temperature"].exp() * (far.times(delta, True) + far.features.detach() @ head_of(delta)[0])
    loss = torch.nn.functional.cross_entropy(outputs, real[1].argmax(1))
    return loss + ridge.unsureness(y, 0.5), delta.detach()


def distance(a, b):
    """Relative to b."""
    return float((a - b).norm() / b.norm())


def test_its_gradient_is_that_of_the_whole_inner_training():
    network, theta, variables, real = small()
    found = rcig.direct(CONVERGED, network, theta, variables, real, 0.03)
    implicit, _ = rcig.implicit(CONVERGED, found, 0.3)
    leaves = {name: x.clone().requires_grad_() for name, x in variables.items()}
    expected, delta = unrolled(CONVERGED, network, theta, leaves, real)
    assert distance(found.delta, delta) < 1e-6
    assert float(found.loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    theirs = torch.autograd.grad(expected, list(leaves.values()))
    for direct, more, gradient in zip(found.gradients, implicit, theirs, strict=False):
        assert distance(direct + more, gradient) < 1e-5
        assert distance(direct, gradient) > 0.3  # the direct part alone would not do
    assert distance(found.gradients[2], theirs[2]) < 1e-5


def test_mirror_images_are_trained_on_and_their_gradients_come_back():
    network, theta, variables, real = small()
    settings = replace(CONVERGED, flip=True, inner_steps=5)
    both = [
        torch.cat([x, y]) for x, y in ((variables["images"], variables["images"].flip(3)), 2 * [variables["values"]])
    ]
    doubled = {"images": both[0], "values": both[1], "temperature": variables["temperature"]}
    found = rcig.direct(settings, network, theta, variables, real, 0.03)
    whole = rcig.direct(replace(settings, flip=False, l2=settings.l2 / 2), network, theta, doubled, real, 0.03)
    assert float(found.loss) == pytest.approx(float(whole.loss))
    parts = whole.gradients[0].chunk(2)
    assert torch.allclose(found.gradients[0], parts[0] + parts[1].flip(3))


def test_the_loss_of_real_images_is_computed_in_parts(monkeypatch):
    network, theta, variables, real = small()
    settings = replace(CONVERGED, inner_steps=5)
    found = rcig.direct(settings, network, theta, variables, real, 0.03)
    monkeypatch.setattr(rcig, "CHUNK", 4)
    parts = rcig.direct(settings, network, theta, variables, real, 0.03)
    assert torch.allclose(found.of_delta, parts.of_delta)
    assert all(torch.allclose(a, b) for a, b in zip(found.gradients, parts.gradients, strict=True))


def test_the_implicit_part_is_at_most_as_long_as_the_direct_one():
    direct, implicit = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert torch.allclose(rcig.joined(direct, implicit), torch.tensor([3.0, 3.0]))
    assert torch.allclose(rcig.joined(direct, 0.5 * implicit), torch.tensor([3.0, 2.0]))
    assert torch.equal(rcig.joined(direct, torch.zeros(2)), direct)


def test_the_loop_is_given_the_joined_gradients(setting):
    ctx, settings, begun = setting
    leaves = {name: x.clone().requires_grad_() for name, x in begun.variables.items()}
    outcome = METHODS["rcig"].loss(ctx, settings, leaves, begun.memory, begun.labels, 0)
    given = torch.autograd.grad(outcome.loss, list(leaves.values()))
    number = int(torch.randint(2, (), generator=ctx.draws("network", 0)))
    network, sizes = rcig.distilling_network(ctx, settings), begun.memory[rcig.STEP_SIZES].tolist()
    real = frepo.real_batch(ctx, 40, 0)
    found = rcig.direct(settings, network, begun.memory[f"theta.{number}"], begun.variables, real, sizes[0])
    more, _ = rcig.implicit(settings, found, sizes[1])
    assert float(outcome.loss.detach()) == pytest.approx(float(found.loss))
    expected = [*map(rcig.joined, found.gradients[:2], more), found.gradients[2]]
    assert all(torch.allclose(a, b) for a, b in zip(given, expected, strict=True))


def test_networks_train_for_some_steps_and_are_replaced_at_the_end_of_their_lives(setting):
    ctx, settings, begun = setting
    memory, steps, replaced = begun.memory, [0, 0], 0
    for iteration in range(10):
        number = int(torch.randint(2, (), generator=ctx.draws("network", iteration)))
        before = memory[f"theta.{number}"]
        memory = METHODS["rcig"].loss(ctx, settings, begun.variables, memory, begun.labels, iteration).memory
        now = int(memory[frepo.STEPS][number])
        if now == 0:
            assert torch.equal(memory[f"theta.{number}"], ctx.fresh("pool", number, iteration + 1))
            replaced += 1
        else:
            assert steps[number] < now <= min(steps[number] + 3, 6)
            assert not torch.equal(before, memory[f"theta.{number}"])
        steps[number] = now
        assert memory[frepo.STEPS].tolist() == steps
    assert replaced


def test_step_sizes_begin_as_large_as_every_step_still_falls(setting):
    ctx, settings, begun = setting
    assert all(size > smallest for size, smallest in zip(begun.memory[rcig.STEP_SIZES], rcig.SMALLEST, strict=True))
    problem, *_ = rcig.inner(settings, rcig.distilling_network(ctx, settings), begun.memory["theta.0"], begun.variables)
    size = float(begun.memory[rcig.STEP_SIZES][0])
    assert convex.falls(convex.descend(problem.loss, begun.memory["theta.0"], settings.inner_steps, size)[1])


def test_evaluation_keeps_its_relu(setting):
    ctx, settings, _ = setting
    kinds = [
        [type(layer) for layer in network.module]
        for network in (ctx.problem.network, rcig.distilling_network(ctx, settings))
    ]
    assert torch.nn.ReLU in kinds[0]
    assert torch.nn.ReLU not in kinds[1]
    assert rcig.distilling_network(ctx, replace(settings, softplus=0.0)) is ctx.problem.network
