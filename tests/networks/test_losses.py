"""The losses of each kind of labels against their plain formulas."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from potstill import seeds
from potstill.networks import flat, losses
from potstill.networks.architectures import NetworkConfig
from potstill.networks.losses import LabelKind, loss_for

SHAPE, CLASSES = (3, 8, 8), 4


def labels_of(kind, batch, classes):
    """Labels (b, K) of a kind, float64."""
    z = torch.randn(batch, classes, generator=seeds.generator(0, kind)).double()
    if kind == "hard":
        return F.one_hot(z.argmax(1), classes).double()
    return {"probabilities": z.softmax(1), "raw": z.abs()}.get(kind, z)


FORMULAS = {  # of one image's outputs and labels
    "logits": lambda out, z: (
        -sum(z.exp()[k] / z.exp().sum() * (out[k] - out.exp().sum().log()) for k in range(CLASSES))
    ),
    "hard": lambda out, p: out.exp().sum().log() - out[p.argmax()],
    "probabilities": lambda out, p: -sum(p[k] * (out[k] - out.exp().sum().log()) for k in range(CLASSES)),
    "raw": lambda out, y: -sum(y[k] * (out[k] - out.exp().sum().log()) for k in range(CLASSES)),
    "values": lambda out, v: sum((out[k] - v[k]) ** 2 / 2 for k in range(CLASSES)),
}


@pytest.mark.parametrize("kind", get_args(LabelKind))
def test_is_the_formula_summed_over_the_batch(kind):
    network = flat.flat_network(NetworkConfig(width=4, depth=2), SHAPE, CLASSES)
    theta, images = network.fresh(0).double(), torch.randn(3, *SHAPE, generator=seeds.generator(0, "x")).double()
    labels = labels_of(kind, 3, CLASSES)
    outputs = network(theta, images)
    expected = sum(FORMULAS[kind](out, row) for out, row in zip(outputs, labels, strict=True))
    assert float(loss_for(network, kind)(theta, images, labels)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("kind", get_args(LabelKind))
def test_first_and_second_derivatives_in_outputs_and_labels(kind):
    loss = loss_for(flat.flat_network(NetworkConfig(width=4, depth=2), SHAPE, CLASSES), kind)
    outputs = torch.randn(2, CLASSES, generator=seeds.generator(0, "out")).double().requires_grad_()
    labels = labels_of(kind, 2, CLASSES).requires_grad_()
    assert torch.autograd.gradcheck(loss.of_outputs, (outputs, labels))
    assert torch.autograd.gradgradcheck(loss.of_outputs, (outputs, labels))


def test_raw_weights_are_not_normalised():
    network = flat.flat_network(NetworkConfig(width=4, depth=2), SHAPE, CLASSES)
    outputs, weights = torch.randn(2, CLASSES), torch.rand(2, CLASSES)
    once, twice = (loss_for(network, "raw").of_outputs(outputs, n * weights) for n in (1, 2))
    assert torch.allclose(twice, 2 * once)


def test_soft_cross_entropy_with_one_hot_rows_is_the_hard_one():
    outputs, labels = torch.randn(6, 10), torch.randint(10, (6,))
    found = losses.soft_cross_entropy(outputs, F.one_hot(labels, 10).float())
    assert torch.allclose(found, F.cross_entropy(outputs, labels, reduction="sum"))
