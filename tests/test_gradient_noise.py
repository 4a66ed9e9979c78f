"""recipes/gradient_noise.py: what gradients share, and that only what is drawn makes them differ."""

import pytest
import torch

from potstill.data.augment import DSA
from recipes import gradient_noise


def test_the_mean_cosine_and_its_error():
    one, other = torch.eye(2)
    assert gradient_noise.mean_cosine([one, one, one]) == {"mean": 1.0, "standard_error": 0.0}
    found = gradient_noise.mean_cosine([one, one, other])  # pairs 1, 0, 0; without one of them 0, 0 or 1
    assert found["mean"] == pytest.approx(1 / 3)
    assert found["standard_error"] == pytest.approx(2 / 3)


def test_a_gradient_follows_from_its_draws(monkeypatch):
    for name, value in {"LEAD": 1, "WINDOW": 2, "REAL_BATCH": 5}.items():
        monkeypatch.setattr(gradient_noise, name, value)
    refinement = gradient_noise.Refinement(gradient_noise.ROOT / "records" / "digits-ipc1.safetensors", "digits", "no")
    first = refinement.gradient((0, 0, 0), DSA)
    assert float(first.norm()) == pytest.approx(1)
    assert torch.equal(refinement.gradient((0, 0, 0), DSA), first)
    for numbers in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert float(refinement.gradient(numbers, DSA) @ first) < 0.999
    plain = refinement.gradient((0, 0, 0), ())
    assert torch.equal(refinement.gradient((0, 1, 0), ()), plain)  # nothing is drawn
