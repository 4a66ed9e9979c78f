"""KIP against ridge regression in closed form, and what it learns."""

import pytest
import torch

from potstill.methods import METHODS, kip, ntk
from potstill.runs import run
from tests.conftest import tiny


def setting(tmp_path, **own):
    job = run.open_run(tiny("kip", ipc=2, kip={"real_batch": 100, **own}), tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS["kip"].begin(ctx, settings, None)


def test_with_a_linear_network_it_is_ridge_regression_in_the_pixels(tmp_path):
    """Θ₀ = 2 ⟨x, x′⟩ / D + β² is the kernel of the features (x √(2/D), β)."""
    ctx, settings, begun = setting(tmp_path, depth=0, ridge=0.01)
    found = METHODS["kip"].loss(ctx, settings, begun.variables, begun.memory, begun.labels, 0).loss
    rows, split = kip._real_rows(ctx, settings, 0), ctx.problem.train

    def features(images):
        flat = images.flatten(1).double()
        return torch.cat([flat * (2 / 64) ** 0.5, torch.full((len(flat), 1), ntk.BIAS**0.5).double()], 1)

    s, t = features(begun.variables["images"]), features(split.images[rows])
    weight = 0.01 * float((s * s).sum(1).mean())
    solution = torch.linalg.solve(s.T @ s + weight * torch.eye(65).double(), s.T @ begun.variables["values"].double())
    truth = torch.nn.functional.one_hot(split.labels[rows], 10).double() - 0.1
    assert float(found) == pytest.approx(float(0.5 * (t @ solution - truth).square().sum(1).mean()), rel=1e-6)


def test_real_images_are_as_many_of_each_class(tmp_path):
    ctx, settings, _ = setting(tmp_path)
    rows = kip._real_rows(ctx, settings, 3)
    assert ctx.problem.train.labels[rows].bincount().tolist() == [10] * 10


def test_labels_are_learned_or_not(tmp_path):
    _, settings, _ = setting(tmp_path, labels="fixed")
    assert set(METHODS["kip"].learns(settings)) == {"images"}
    assert set(METHODS["kip"].learns(kip.Kip())) == {"images", "values"}
