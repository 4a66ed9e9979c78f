"""What is timed does the same work on both sides."""

from dataclasses import replace

import pytest
import torch

from bench import cases, limits
from potstill.adjoint import engine

BENCH = cases.Bench(torch.device("cpu"), precision="float32")


@pytest.fixture(autouse=True)
def _plainly(monkeypatch):
    """Compiling would take longer than all that is compared here; test_derivatives holds it to the plain path."""
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)


def agree(pair):
    ours, reference = (torch.cat([tensor.flatten() for tensor in action()]) for action in pair)
    assert float((ours - reference).norm() / reference.norm()) < 1e-4


def test_an_iteration_gives_the_gradients_of_the_reference():
    agree(cases.iteration(BENCH, batch=4, steps=3, width=8))


def test_graphs_give_the_gradients_of_the_reference(as_compiled):
    agree(cases.iteration(replace(BENCH, graphs=True), batch=4, steps=3, width=8))


@pytest.mark.parametrize("rho", [0.0, 0.01])
def test_an_expert_step_gives_the_gradient_of_the_reference(rho):
    agree([lambda action=action: [action()] for action in cases.expert_step(BENCH, rho, batch=8)])


def test_five_networks_end_where_the_references_do():
    agree(cases.five_networks(BENCH, epochs=1, batch=2))


def test_every_case_is_named_once():
    groups = (cases.SMALL, cases.FULL, cases.CUDA, cases.REHEARSAL)
    assert len({name for group in groups for name in group}) == sum(map(len, groups))


def test_the_machines_limits_are_positive():
    assert limits.convolutions(torch.device("cpu"), torch.float32, 1) > 0
    assert limits.memory(torch.device("cpu"), 1 << 16) > 0
