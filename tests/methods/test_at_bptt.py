"""AT-BPTT: its policy and its lengths by hand, its norms against a plain training, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.data import augment
from potstill.errors import PotstillError
from potstill.methods import METHODS, at_bptt, bptt, outer
from potstill.methods.at_bptt import POLICY, RANGE, AtBptt
from potstill.methods.outer import Rule
from potstill.methods.trajectory import draw_steps
from potstill.runs import run, settings
from tests.conftest import tiny


def test_the_policy_seeks_steep_steps_at_first_and_flat_ones_later():
    own, norms = AtBptt(unroll=4, window=2, radius=1), torch.tensor([4.0, 3.0, 2.0, 1.0])
    memory = {POLICY: torch.full((4,), 0.25), RANGE: torch.tensor([math.inf, -math.inf])}
    first, after = at_bptt.policy_of(own, memory, norms)
    standard = (norms - 2.5) / norms.std()
    assert torch.allclose(first, standard.softmax(0))
    assert torch.allclose(after[POLICY], 0.95 * 0.25 + 0.05 * first)
    assert after[RANGE].tolist() == [2.5, 2.5]
    later, _ = at_bptt.policy_of(own, {POLICY: memory[POLICY], RANGE: torch.tensor([2.5, 7.5])}, norms)
    assert torch.allclose(later, (-standard).softmax(0)), "the mean norm is the least so far: flat steps"


def test_the_window_is_longer_where_the_norm_changes_more():
    own, norms = AtBptt(unroll=8, window=4, radius=2), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    lengths = [at_bptt.length_of(own, norms, end) for end in range(8)]
    assert lengths[:2] == [1, 2], "no more than the steps there are"
    assert lengths[4:7] == [4, 6, 4]
    assert at_bptt.standardised(torch.ones(3)).tolist() == [0, 0, 0]


def test_norms_and_states_are_those_of_a_training_by_adam(tmp_path, monkeypatch):
    job = run.open_run(tiny("at-bptt", ipc=1, at_bptt={"unroll": 4, "window": 2, "radius": 1}), tmp_path)
    ctx, own = job.context(0), job.settings.stages[0]
    begun = METHODS["at-bptt"].begin(ctx, own, None)
    images, raw = begun.variables["images"], begun.variables["raw"]
    steps = draw_steps(ctx, 10, 4, 10, ctx.draws("student", 0))
    found, kept = at_bptt.trained(ctx, own, ctx.fresh("n", 0), images, raw, torch.tensor(1e-3), steps)
    theta = ctx.fresh("n", 0).clone().requires_grad_()
    optimiser, norms = torch.optim.Adam([theta], lr=1e-3), []
    for number, step in enumerate(steps):
        assert torch.allclose(kept[number][0], theta, atol=2e-3 * number)  # Adam steps fully where slopes are rounding
        assert float((kept[number][0] - theta).detach().abs().median()) < 1e-6
        optimiser.zero_grad()
        outputs = ctx.problem.network(theta, augment.apply(images[step.rows], step.drawing))
        (-(raw[step.rows] * F.log_softmax(outputs, 1)).sum() / len(step.rows)).backward()
        norms.append(float(theta.grad.norm()))
        optimiser.step()
    assert found.tolist() == pytest.approx(norms, rel=1e-3)
    monkeypatch.setattr(at_bptt, "KEPT", 2)
    assert list(at_bptt.trained(ctx, own, ctx.fresh("n", 0), images, raw, torch.tensor(1e-3), steps)[1]) == [0, 2]


def test_images_keep_their_norm_of_one():
    own = AtBptt(lr_images=0.1, lr_labels=0.1)
    assert at_bptt.learns(own)["images"].norm == 1.0
    assert at_bptt.learns(replace(own, initial="random"))["images"].norm is None
    x = torch.randn(3, 2, 2)
    moved, _ = outer.step(Rule(0.5, norm=1.0), x, outer.initial(Rule(0.5, norm=1.0), x), torch.randn(3, 2, 2))
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(("own", "sentence"), [
    ({"pool": 2, "inner": "sgd"}, "the policy places the window"), ({"radius": 16}, "radius 16: leaves no step"),
    ({"window": 40}, "window 40: is among the 32 steps"),
])  # fmt: skip
def test_what_contradicts_it_is_refused(own, sentence):
    with pytest.raises(PotstillError, match=sentence):
        settings.check(tiny("at-bptt", at_bptt=own))


def test_it_measures_its_rates_as_its_family_does():
    assert METHODS["at-bptt"].measured == bptt.MEASURED


def test_a_training_that_leads_astray_is_undone(tmp_path):
    own = {"unroll": 4, "window": 2, "radius": 1, "inner": "sgd", "inner_step_size": 1e20}
    job = run.open_run(tiny("at-bptt", ipc=1, at_bptt=own), tmp_path)
    ctx, settled = job.context(0), job.settings.stages[0]
    begun = METHODS["at-bptt"].begin(ctx, settled, None)
    found = METHODS["at-bptt"].loss(ctx, settled, begun.variables, begun.memory, begun.labels, 0)
    assert bool(found.loss.isnan())
    assert torch.equal(found.memory[POLICY], begun.memory[POLICY])


def test_a_set_that_is_refined_keeps_its_norms():
    assert not settings.configure("digits", 1, changes={"method": ("random", "at-bptt")}).stages[1].project
