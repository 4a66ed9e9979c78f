"""Distribution matching, against its definition."""

from dataclasses import replace

import pytest
import torch

from potstill.adjoint import engine
from potstill.cli import main
from potstill.data import augment
from potstill.methods import METHODS, distribution
from potstill.runs import run
from tests.conftest import tiny


def setting(tmp_path, **changes):
    asked = tiny("dm", ipc=3, dm={"real_batch": 20}, **changes)
    ctx, own = run.open_run(asked, tmp_path).context(0), asked.stages[0]
    return ctx, own, distribution.begin(ctx, own, None)


def test_the_loss_is_the_squared_distance_of_mean_features(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "at_once", lambda *network: 7)  # real images pass by parts
    ctx, own, begun = setting(tmp_path, augment=())
    own = replace(own, real_batch=10_000)  # all images of a class, so that nothing depends on the draw
    found = distribution.mean_feature_loss(ctx, own, begun.variables, {}, begun.labels, 7)
    theta, train = ctx.fresh("network", 7), ctx.problem.train
    expected = 0.0
    for label in range(10):
        real = ctx.problem.network.features(theta, train.images[train.labels == label]).mean(0)
        synthetic = ctx.problem.network.features(theta, begun.variables["images"][begun.labels == label]).mean(0)
        expected += float((real - synthetic).square().sum())
    assert float(found.loss) == pytest.approx(expected, rel=1e-4)


def test_real_and_synthetic_images_are_augmented_alike(tmp_path, monkeypatch):
    ctx, own, begun = setting(tmp_path)
    seen, apply = [], augment.apply
    monkeypatch.setattr(augment, "apply", lambda images, drawing: (seen.append(drawing), apply(images, drawing))[1])
    distribution.mean_feature_loss(ctx, own, begun.variables, {}, begun.labels, 0)
    assert len(seen) == 20
    for real, synthetic in zip(seen[::2], seen[1::2], strict=True):
        assert real.operation == synthetic.operation
        assert torch.equal(real.parameters[:3], synthetic.parameters)


def test_it_asks_for_no_experts_and_another_network_each_time(tmp_path):
    ctx, own, begun = setting(tmp_path)
    assert METHODS["dm"].needs(own) is None
    losses = {
        float(distribution.mean_feature_loss(ctx, own, begun.variables, {}, begun.labels, k).loss) for k in (0, 1)
    }
    assert len(losses) == 2


def test_its_flags_are_its_own(capsys):
    assert main.main(["run", "--method", "herding", "--dm.iterations", "3"]) == 1
    assert "--dm.iterations: is a setting of dm, which is not among --method herding" in capsys.readouterr().err
    assert main.main(["run", "--method", "dm", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--dm.real-batch" in out
    assert "--datm." not in out
