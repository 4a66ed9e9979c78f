"""CAFE: its loss term by term, and when its network trains and is replaced."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.methods import METHODS, cafe, matching
from potstill.runs import run
from tests.conftest import tiny


@pytest.fixture
def setting(tmp_path):
    job = run.open_run(tiny("cafe", ipc=2, cafe={"real_batch": 20, "initial": "random"}), tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS["cafe"].begin(ctx, settings, None)


def test_the_loss_is_the_sum_of_its_terms(setting):
    """With depth 2: ReLU 1 weighs 0.1, ReLU 2 weighs 1, the pooled features 2; and 0.01 of the cross-entropy."""
    ctx, settings, begun = setting
    images, labels, network = begun.variables["images"], begun.labels, ctx.problem.network
    theta = ctx.fresh("network", 0)
    parameters, expected = network.unflatten(theta), 0.0
    centres = torch.stack([network.features(theta, images[labels == k]).mean(0) for k in range(10)])
    for k in range(10):
        pair = matching.pair(ctx, images, labels, k, 20, 0)

        def layers(x):
            found = []
            for name, layer in list(network.module.named_children())[:-2]:
                x = cafe_layer(layer, parameters, x, f"{name}.")
                if isinstance(layer, torch.nn.ReLU):
                    found.append(x)
            return [*found, x]

        for weight, r, s in zip((0.1, 1.0, 2.0), layers(pair.real), layers(pair.synthetic), strict=True):
            expected += weight * float((r.flatten(1).mean(0) - s.flatten(1).mean(0)).square().sum())
        outputs = network.features(theta, pair.real) @ centres.T
        expected += 0.01 * float(F.cross_entropy(outputs, torch.full((20,), k), reduction="sum"))
    found = METHODS["cafe"].loss(ctx, settings, begun.variables, begun.memory, labels, 0).loss
    assert float(found) == pytest.approx(expected, rel=1e-4)


def cafe_layer(layer, parameters, x, prefix):
    from potstill.networks import functional

    return functional.apply(layer, parameters, x, True, prefix)


def test_a_network_trains_between_steps_and_gives_way_once_it_has_settled(setting):
    ctx, settings, begun = setting
    images, labels = begun.variables["images"], begun.labels
    theta, seen = cafe._network(ctx, settings, images, labels, begun.memory, 0)
    assert torch.equal(theta, ctx.fresh("network", 0))
    assert len(seen) == 0
    moved, seen = cafe._network(ctx, settings, images, labels, {"network": theta, "accuracies": seen}, 1)
    assert not torch.equal(moved, theta)
    assert len(seen) == 1
    memory = {"network": moved, "accuracies": torch.full((10,), 0.5)}
    fresh, seen = cafe._network(ctx, settings, images, labels, memory, 2)
    assert torch.equal(fresh, ctx.fresh("network", 2))
    assert len(seen) == 0
    still = cafe._network(ctx, replace(settings, settled=0.0), images, labels, memory, 2)[0]
    assert not torch.equal(still, fresh)
