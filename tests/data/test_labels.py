"""Each kind of labels amounts to probabilities, and kinds turn into one another."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from potstill.data import labels as kinds
from potstill.networks.losses import OF_OUTPUTS, LabelKind

LABELS = torch.tensor([2, 0, 1, 1])
ONE_HOT = F.one_hot(LABELS, 3).float()
TARGETS = {
    "logits": torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-5.0, 9.0, 1.0]]),
    "values": torch.tensor([[-0.2, 0.0, 0.6], [0.7, -0.3, -0.4], [0.1, 0.1, 0.1], [-3.0, 2.0, 0.0]]),
    "raw": torch.tensor([[0.2, 0.0, 1.8], [3.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0]]),
    "hard": None,
}


def test_the_kinds_are_those_of_the_losses():
    assert set(kinds.KINDS) == set(TARGETS)
    assert {*kinds.KINDS, "probabilities"} == set(OF_OUTPUTS) == set(LabelKind.__args__)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_probabilities_are_not_negative_and_sum_to_1(kind):
    found = kinds.probabilities(TARGETS[kind], kind, LABELS, 3)
    assert found.shape == (4, 3)
    assert bool((found >= 0).all())
    assert torch.allclose(found.sum(1), torch.ones(4))


def test_probabilities_by_kind():
    assert torch.allclose(kinds.probabilities(TARGETS["logits"], "logits", LABELS, 3), TARGETS["logits"].softmax(1))
    raw = kinds.probabilities(TARGETS["raw"], "raw", LABELS, 3)
    assert torch.allclose(raw[:2], torch.tensor([[0.1, 0.0, 0.9], [0.75, 0.125, 0.125]]))
    assert torch.equal(raw[2], ONE_HOT[2])  # without any weight, the class of the slot
    assert torch.equal(kinds.probabilities(None, "hard", LABELS, 3), ONE_HOT)


def test_probabilities_of_values_are_the_nearest():
    """Against a fine grid over the simplex; a constant added to the values changes nothing."""
    step = 0.02
    first, second = torch.meshgrid(torch.arange(0, 1 + step, step), torch.arange(0, 1 + step, step), indexing="ij")
    simplex = torch.stack([first, second, 1 - first - second], 2).view(-1, 3)
    simplex = simplex[simplex[:, 2] > -1e-6]
    found = kinds.probabilities(TARGETS["values"], "values", LABELS, 3)
    for row, values in zip(found, TARGETS["values"], strict=True):
        assert float((row - values).square().sum()) <= float((simplex - values).square().sum(1).min()) + 1e-6
    assert torch.allclose(kinds.probabilities(TARGETS["values"] + 7, "values", LABELS, 3), found, atol=1e-5)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_hard_labels_survive_every_kind(kind):
    targets = kinds.from_hard(LABELS, 3, kind)
    assert torch.allclose(kinds.probabilities(targets, kind, LABELS, 3), ONE_HOT, atol=1e-7)
    assert torch.equal(kinds.convert(targets, kind, LABELS, 3, "hard"), ONE_HOT)
    assert torch.equal(kinds.convert(None, "hard", LABELS, 3, kind), targets)


@pytest.mark.parametrize(("kind", "wanted"), list(itertools.permutations(("logits", "values", "raw"), 2)))
def test_converted_labels_amount_to_the_same_probabilities(kind, wanted):
    found = kinds.convert(TARGETS[kind], kind, LABELS, 3, wanted)
    assert bool(found.isfinite().all())
    before = kinds.probabilities(TARGETS[kind], kind, LABELS, 3)
    assert torch.allclose(kinds.probabilities(found, wanted, LABELS, 3), before, atol=1e-6)


def test_of_the_same_kind_they_stay_as_they_are():
    for kind in ("logits", "values", "raw"):
        assert kinds.convert(TARGETS[kind], kind, LABELS, 3, kind) is TARGETS[kind]
