"""How hard images are: each score against its definition, and kept for a store of experts."""

import pytest
import torch
import torch.nn.functional as F

from potstill.methods import scores
from potstill.runs import run
from potstill.runs.api import run_to_completion
from tests.conftest import tiny


@pytest.fixture(scope="module")
def ctx(tmp_path_factory):
    job = run.open_run(tiny("forgetting"), tmp_path_factory.mktemp("run"))
    run_to_completion(run.train_experts(job))
    return job.context(0)


def outputs(ctx, expert, epoch):
    theta, buffers = ctx.experts.snapshot(expert, epoch)
    return ctx.problem.network(theta, ctx.problem.train.images, buffers, training=False)


def test_forgetting_counts_from_right_to_wrong_and_what_was_never_right_is_hardest():
    right = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)
    assert scores.forgetting(right).tolist() == [2.0, 0.0, float("inf"), 1.0]


def test_margins_are_of_the_right_class_over_the_best_other():
    found = scores.margin(torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log(), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([0.5, -0.5])


def test_el2n_and_grand_are_norms_of_gradients(ctx):
    """GraNd of a row is the norm of the gradient in weights and bias of the last layer, by autograd."""
    split, network = ctx.problem.train, ctx.problem.network
    truth = F.one_hot(split.labels, 10).float()
    el2n = torch.stack([(outputs(ctx, e, 2).softmax(1) - truth).norm(dim=1) for e in range(2)]).mean(0)
    assert torch.allclose(scores.hardness(ctx, "el2n", 2), el2n, atol=1e-5)
    found, by_autograd = scores.hardness(ctx, "grand", 2), torch.zeros(3)
    for expert in range(2):
        theta, buffers = ctx.experts.snapshot(expert, 2)
        for row in range(3):
            leaf = theta.clone().requires_grad_()
            loss = F.cross_entropy(
                network(leaf, split.images[row : row + 1], buffers, training=False), split.labels[[row]]
            )
            named = network.unflatten(torch.autograd.grad(loss, leaf)[0])
            last = [named[name] for name in list(named)[-2:]]
            by_autograd[row] += torch.cat([g.flatten() for g in last]).norm() / 2
    assert torch.allclose(found[:3], by_autograd, rtol=1e-4)


def test_aum_sums_margins_over_the_epochs(ctx):
    expected = -sum(scores.margin(outputs(ctx, 0, e), ctx.problem.train.labels) for e in range(1, 5))
    assert torch.allclose(scores.hardness(ctx, "aum", None), expected, atol=1e-5)


def test_a_score_is_computed_once(ctx, monkeypatch):
    first = scores.hardness(ctx, "forgetting", None)
    monkeypatch.setattr(scores, "_outputs", lambda *_: pytest.fail("computed again"))
    assert torch.equal(scores.hardness(ctx, "forgetting", None), first)
