"""The student's optimisers against PyTorch's, and their hand-written adjoint against autograd."""

import pytest
import torch

from potstill.adjoint.inner import Adam, Sgd


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("inner", "theirs"), [
    (Sgd(), lambda p: torch.optim.SGD(p, lr=0.05)),
    (Adam(), lambda p: torch.optim.Adam(p, lr=0.05)),
    (Adam(0.5, 0.9, 1e-3), lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.5, 0.9), eps=1e-3)),
])  # fmt: skip
def test_steps_are_pytorchs(inner, theirs):
    ours, parameter = some(7), some(7).requires_grad_()
    optimiser, moments = theirs([parameter]), inner.begin(ours)
    for k in range(12):
        gradient = some(7, seed=k + 1)
        ours, moments = inner.step(ours, 4 * gradient, 4, moments, torch.tensor(0.05, dtype=torch.float64))
        parameter.grad = gradient
        optimiser.step()
        assert torch.allclose(ours, parameter, atol=1e-14)


@pytest.mark.parametrize("taken", [0, 3])
def test_adams_adjoint_is_autograds(taken):
    inner, count = Adam(), 5
    total, alpha = some(7, seed=1).requires_grad_(), torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    first, second = some(7, seed=2).requires_grad_(), some(7, seed=3).square().requires_grad_()
    moments = (first, second, torch.tensor(float(taken), dtype=torch.float64))
    cotangents = [some(7, seed=k) for k in (4, 5, 6)]
    theta = some(7).requires_grad_()
    after, (m, v, _) = inner.step(theta, total, count, moments, alpha)
    value = sum((c * x).sum() for c, x in zip(cotangents, (after, m, v), strict=True))
    on_total, on_alpha, on_first, on_second, on_theta = torch.autograd.grad(value, (total, alpha, first, second, theta))
    with torch.no_grad():
        back = inner.back(cotangents[0], cotangents[1:], total, count, moments, alpha)
    assert torch.allclose(-back.weight * back.direction, on_total, atol=1e-12)
    assert torch.allclose(back.step_size, on_alpha, atol=1e-12)
    assert torch.allclose(back.moments[0], on_first, atol=1e-12)
    assert torch.allclose(back.moments[1], on_second, atol=1e-12)
    assert torch.equal(on_theta, cotangents[0])


def test_a_weight_that_never_moves_has_no_say():
    inner, total = Adam(), torch.zeros(3, dtype=torch.float64).requires_grad_()
    alpha = torch.tensor(0.02, dtype=torch.float64)
    after, moments = inner.step(some(3), total, 1, inner.begin(total.detach()), alpha)
    (gradient,) = torch.autograd.grad(after.sum() + moments[1].sum(), total)
    assert bool(gradient.isfinite().all())
    back = inner.back(torch.ones(3).double(), [torch.zeros(3).double()] * 2, total, 1, inner.begin(total), alpha)
    assert bool(back.direction.isfinite().all())
    assert torch.allclose(-back.weight * back.direction, gradient)
