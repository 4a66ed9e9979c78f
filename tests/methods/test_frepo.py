"""FRePo: its loss against the obvious one, its gradient by finite differences, and the life of its pool."""

from dataclasses import replace

import pytest
import torch

from potstill.methods import METHODS, frepo
from potstill.runs import run
from tests.conftest import tiny


@pytest.fixture
def setting(tmp_path):
    own = {"real_batch": 40, "pool": 2, "life": 3, "iterations": 8}
    job = run.open_run(tiny("frepo", ipc=2, frepo=own), tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS["frepo"].begin(ctx, settings, None)


def obvious(ctx, settings, begun, theta, images, values):
    """Every term written out, in float64."""
    network, split = ctx.problem.network, ctx.problem.train
    rows = torch.randperm(len(split.labels), generator=ctx.draws("real", 0))[:40]
    own = torch.cat([images, images.flip(3)]) if settings.flip else images
    y = torch.cat([values, values]) if settings.flip else values
    f_t, f_s = network.features(theta, split.images[rows].double()), network.features(theta, own)
    kernel = f_s @ f_s.T
    kernel = kernel + settings.ridge * kernel.trace() / len(kernel) * torch.eye(len(kernel)).double()
    predicted = f_t @ f_s.T @ torch.linalg.inv(kernel) @ y
    truth = torch.nn.functional.one_hot(split.labels[rows], 10) - 0.1
    top = values.topk(2).values
    return 0.5 * (predicted - truth).square().sum() / 40 - (top[:, 0] - top[:, 1]).clamp(max=0.1).mean()


@pytest.mark.parametrize("flip", [False, True])
def test_loss_and_gradients_are_those_of_the_formula(setting, flip):
    ctx, settings, begun = setting
    settings = replace(settings, flip=flip, ridge=1e-3)
    number = int(torch.randint(2, (), generator=ctx.draws("network", 0)))
    theta = begun.memory[f"theta.{number}"].double()
    leaves = {name: x.clone().requires_grad_() for name, x in begun.variables.items()}
    wide = {name: x.double().requires_grad_() for name, x in begun.variables.items()}
    found = METHODS["frepo"].loss(ctx, settings, leaves, begun.memory, begun.labels, 0).loss
    expected = obvious(ctx, settings, begun, theta, wide["images"], wide["values"])
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    mine = torch.autograd.grad(found, list(leaves.values()))
    theirs = torch.autograd.grad(expected, list(wide.values()))
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-3


def test_labels_begin_centred_and_are_regressed_to(setting):
    _, settings, begun = setting
    assert begun.variables["values"][0].tolist() == pytest.approx([0.9] + 9 * [-0.1])
    assert METHODS["frepo"].kind(settings) == "values"


def test_networks_take_steps_on_the_set_and_are_replaced_at_the_end_of_their_lives(setting):
    ctx, settings, begun = setting
    assert begun.memory[frepo.LEFT].tolist() == [3, 2]
    memory, steps = begun.memory, {0: 0, 1: 0}
    left = {0: 3, 1: 2}
    for iteration in range(12):
        number = int(torch.randint(2, (), generator=ctx.draws("network", iteration)))
        before = memory[f"theta.{number}"]
        memory = METHODS["frepo"].loss(ctx, settings, begun.variables, memory, begun.labels, iteration).memory
        left[number] -= 1
        steps[number] += 1
        if left[number] == 0:
            left[number], steps[number] = 3, 0
            assert torch.equal(memory[f"theta.{number}"], ctx.fresh("pool", number, iteration + 1))
        assert not torch.equal(before, memory[f"theta.{number}"])
        assert (memory[frepo.STEPS].tolist(), memory[frepo.LEFT].tolist()) == (
            list(steps.values()),
            list(left.values()),
        )


def test_a_network_trains_by_adam_on_the_squared_error(setting):
    """Three steps are those of torch.optim.Adam."""
    ctx, settings, begun = setting
    settings = replace(settings, pool=1, life=100)
    memory = METHODS["frepo"].begin(ctx, settings, None).memory
    theta = memory["theta.0"].clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=settings.inner_step_size)
    for iteration in range(3):
        memory = frepo._advanced(ctx, settings, memory, 0, begun.variables, iteration)
        optimiser.zero_grad()
        outputs = ctx.problem.network(theta, begun.variables["images"])
        (0.5 * (outputs - begun.variables["values"]).square().sum() / len(outputs)).backward()
        optimiser.step()
    images = ctx.problem.train.images[:50]  # biases before a norm, which have no effect, move by rounding alone
    mine, theirs = (ctx.problem.network(t.detach(), images) for t in (memory["theta.0"], theta))
    assert torch.allclose(mine, theirs, atol=1e-4)
