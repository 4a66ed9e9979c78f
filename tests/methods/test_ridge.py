"""Kernel ridge regression is ridge regression."""

import pytest
import torch

from potstill.methods import ridge


def test_with_a_linear_kernel_it_is_ridge_regression():
    """(XᵀX + c I)⁻¹ Xᵀ y, the closed form in the space of features."""
    draws = torch.Generator().manual_seed(0)
    x, t, y = (torch.randn(*size, generator=draws).double() for size in ((6, 4), (9, 4), (6, 3)))
    found = ridge.predict(t @ x.T, x @ x.T, y, ridge=0.1)
    weight = 0.1 * (x @ x.T).diagonal().mean()
    expected = t @ torch.linalg.solve(x.T @ x + weight * torch.eye(4).double(), x.T @ y)
    assert torch.allclose(found, expected)


def test_errors_and_margins_by_hand():
    predicted, truth = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert float(ridge.squared_error(predicted, truth)) == pytest.approx(1.25)
    values = torch.tensor([[0.5, 0.3, 0.0], [2.0, 0.0, 0.0]])  # margins 0.2, and 2 cut to a third
    assert float(ridge.unsureness(values)) == pytest.approx(-(0.2 + 1 / 3) / 2)
