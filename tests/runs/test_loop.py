"""The outer loop: its step, its threshold, its way back from divergence, its checkpoints."""

import itertools
from dataclasses import replace

import pytest
import torch

from potstill.errors import PotstillError
from potstill.methods import METHODS, Method
from potstill.runs import loop
from potstill.runs.loop import State
from tests.conftest import tiny


def state(n=4):
    draws = torch.Generator().manual_seed(0)
    learned = (torch.randn(n, 1, 2, 2, generator=draws), torch.randn(n, 3, generator=draws), torch.tensor(0.01))
    zeros = tuple(torch.zeros_like(tensor) for tensor in learned)
    return State(*learned, momenta=zeros, previous=learned, labels=torch.arange(n))


def iterate(monkeypatch, loss, begin=None, **distil):
    """Run the outer loop with a loss of the test's own."""

    def method_loss(*arguments):
        images, logits, step_size, iteration = arguments[4:8]
        unused = 0 * (images.sum() + logits.sum() + step_size)  # autograd wants all three in the graph
        return loss(images, logits, step_size, iteration) + unused, {}

    monkeypatch.setitem(METHODS, "datm", Method(None, method_loss))
    config = tiny(distil={"iterations": 30, **distil})
    return list(loop.iterate(config, None, None, None, begin or state()))


def quadratic(images, logits, step_size, iteration):
    return 1e-3 * (images.square().sum() + logits.square().sum()) + (step_size - 0.02) ** 2


def test_one_step_is_sgd_with_the_published_momenta(monkeypatch):
    begin = state()
    states = [s for s, _ in iterate(monkeypatch, quadratic, begin, iterations=2, lr_images=10.0, lr_logits=3.0)]
    x = begin.images.clone().requires_grad_()
    z = begin.logits.clone().requires_grad_()
    optimiser = torch.optim.SGD(
        [{"params": [x], "lr": 10.0, "momentum": 0.5}, {"params": [z], "lr": 3.0, "momentum": 0.9}]
    )
    for _ in range(2):
        optimiser.zero_grad()
        quadratic(x, z, torch.tensor(0.01), 0).backward()
        optimiser.step()
    assert torch.allclose(states[-1].images, x.detach(), atol=1e-6)
    assert torch.allclose(states[-1].logits, z.detach(), atol=1e-6)


def test_step_size_follows_the_published_step_and_stays_positive(monkeypatch):
    found = iterate(monkeypatch, quadratic, iterations=1, lr_step_size=1e-3)[0][0].step_size
    assert float(found) == pytest.approx(0.01 - 1e-3 * 2 * (0.01 - 0.02), rel=1e-4)
    # trap 8 of the public code: a gradient that would make it negative at once
    states = iterate(monkeypatch, lambda x, z, a, k: 0.1 * a, lr_step_size=10.0)
    assert all(0 < float(s.step_size) <= 0.01 for s, _ in states)
    assert float(states[0][0].step_size) == pytest.approx(0.005)


def test_rates_fall_over_the_cooldown(monkeypatch):
    def slope(images, logits, step_size, iteration):
        return 1e-3 * logits.sum()

    monkeypatch.setattr(loop, "MOMENTUM_LOGITS", 0.0)
    states = [state(), *(s for s, _ in iterate(monkeypatch, slope, iterations=8, cooldown=0.5, lr_logits=100.0))]
    steps = [float((a.logits - b.logits).mean()) for a, b in itertools.pairwise(states)]
    assert steps == pytest.approx([0.1 * part for part in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)], rel=1e-4)


def test_losses_above_the_threshold_are_not_stepped_on(monkeypatch):
    def loss(images, logits, step_size, iteration):
        return (2.0 if iteration % 2 else 0.5) + 1e-6 * images.sum()

    states = iterate(monkeypatch, loss, iterations=4, threshold=1.0)
    moved = [not torch.equal(a.images, b.images) for (a, _), (b, _) in itertools.pairwise(states)]
    assert moved == [False, True, False]
    assert states[-1][0].skipped == 2
    assert states[-1][1]["skipped"] == 2


def test_a_diverging_step_is_undone_and_counted(monkeypatch):
    def loss(images, logits, step_size, iteration):
        return quadratic(images, logits, step_size, iteration) * (float("nan") if iteration == 3 else 1.0)

    states = [s for s, _ in iterate(monkeypatch, loss, iterations=6, lr_images=1.0)]
    assert torch.equal(states[3].images, states[1].images)  # where the third step began
    assert states[-1].rolled_back == 1
    assert float(states[3].momenta[0].abs().sum()) == 0
    assert bool(states[-1].images.isfinite().all())
    assert not torch.equal(states[-1].images, states[3].images)


def test_an_infinite_gradient_of_a_finite_loss_is_undone(monkeypatch):
    def loss(images, logits, step_size, iteration):
        return (images * 0).abs().sqrt().sum() * 0.5 + 0.1

    states = [s for s, _ in iterate(monkeypatch, loss, iterations=3)]
    assert states[-1].rolled_back == 3
    assert torch.equal(states[-1].images, state().images)


def test_endless_divergence_ends_with_a_remedy(monkeypatch):
    with pytest.raises(PotstillError, match="diverged 20 times in a row at iteration 20.* lower --distil.lr-images"):
        iterate(monkeypatch, lambda x, z, a, k: x.sum() * float("nan"))


def test_checkpoint_round_trip_goes_on_bit_for_bit(monkeypatch, tmp_path):
    states = [s for s, _ in iterate(monkeypatch, quadratic)]
    states[11].save(tmp_path / "c.safetensors", {"judged": [1]})
    again, header = loop.load_state(tmp_path / "c.safetensors", torch.device("cpu"))
    assert header["judged"] == [1]
    assert again.iteration == 12
    resumed = [s for s, _ in iterate(monkeypatch, quadratic, again)]
    assert torch.equal(resumed[-1].images, states[-1].images)
    assert torch.equal(resumed[-1].step_size, states[-1].step_size)
    assert len(resumed) == 18


def test_a_rollback_after_resuming_is_the_rollback_without(monkeypatch, tmp_path):
    def loss(images, logits, step_size, iteration):
        return quadratic(images, logits, step_size, iteration) * (float("nan") if iteration == 5 else 1.0)

    states = [s for s, _ in iterate(monkeypatch, loss, lr_images=1.0)]
    states[4].save(tmp_path / "c.safetensors", {})
    again, _ = loop.load_state(tmp_path / "c.safetensors", torch.device("cpu"))
    resumed = [s for s, _ in iterate(monkeypatch, loss, again, lr_images=1.0)]
    assert torch.equal(resumed[-1].images, states[-1].images)


def test_states_are_values(monkeypatch):
    states = [s for s, _ in iterate(monkeypatch, quadratic, iterations=3)]
    assert replace(states[0]) == states[0]
    assert not torch.equal(states[0].images, states[2].images)


def test_the_start_and_a_state_after_a_rollback_can_be_saved(tmp_path):
    """Both share their tensors with the state before, which safetensors refuses to write."""
    shared = torch.ones(2, 1, 4, 4), torch.zeros(2, 3), torch.tensor(0.1)
    state = loop.State(*shared, momenta=loop._zeros(shared), previous=shared, labels=torch.tensor([0, 1]))
    for saved in (state, loop._roll_back(state)):
        saved.save(tmp_path / "checkpoint.safetensors", {})
        read, _ = loop.load_state(tmp_path / "checkpoint.safetensors", torch.device("cpu"))
        assert read.images.equal(state.images)
