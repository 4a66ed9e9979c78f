"""The convex inner problem against ridge regression written out, its derivatives against autograd, Adam's steps."""

import pytest
import torch

from potstill.methods import convex
from potstill.networks.architectures import NetworkConfig
from potstill.networks.flat import flat_network
from potstill.networks.tangent import smoothed

L2 = 0.3


def setting(n=5):
    """A network, θ, images and targets of a problem with two directions (P,), all float64."""
    network = smoothed(flat_network(NetworkConfig(width=3, depth=1), (1, 4, 4), 3), 5.0)
    draws = torch.Generator().manual_seed(0)
    images, targets = torch.randn(n, 1, 4, 4, generator=draws).double(), torch.randn(n, 3, generator=draws).double()
    theta = network.fresh(0).double()
    directions = 0.1 * torch.randn(2, len(theta), generator=draws).double()
    return network, theta, images, targets, directions


def obvious(network, theta, images, targets, delta):
    """½ [‖y − Jδ − hW‖² + l (‖W‖² + ‖δ‖²)] / (n K) at the best W, and W."""
    free = convex.linearise(network, theta, images).free
    jacobian = torch.func.jacrev(lambda at: network(at, images))(theta) * free
    h, residual = network.features(theta, images), targets - jacobian @ delta
    best = torch.linalg.solve(h.T @ h + L2 * torch.eye(h.shape[1]).double(), h.T @ residual)
    error = residual - h @ best
    return 0.5 * (error.square().sum() + L2 * (best.square().sum() + delta @ delta)) / targets.numel(), best


def test_the_loss_is_that_of_the_best_last_layer():
    network, theta, images, targets, (delta, _) = setting()
    problem = convex.inner_problem(network, theta, images, targets, L2)
    delta = delta * problem.tangent.free
    expected, best = obvious(network, theta, images, targets, delta)
    value, gradient = problem.loss(delta)
    assert float(value) == pytest.approx(float(expected), rel=1e-10)
    assert torch.allclose(problem.head(delta), best)
    at = delta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(obvious(network, theta, images, targets, at)[0], at)
    assert torch.allclose(gradient, slope, atol=1e-12)


def test_the_quadratic_has_the_hessian_of_the_loss():
    network, theta, images, targets, (v, g) = setting()
    problem = convex.inner_problem(network, theta, images, targets, L2)
    zero = torch.zeros_like(theta)
    hessian = torch.autograd.functional.hessian(lambda at: obvious(network, theta, images, targets, at)[0], zero)
    value, gradient = problem.quadratic(v, g)
    assert torch.allclose(gradient, hessian @ v - g, atol=1e-10)
    assert float(value) == pytest.approx(float(0.5 * v @ hessian @ v - v @ g), rel=1e-8)
    assert float(problem.slope_along(v, zero).detach()) == pytest.approx(float(problem.loss(zero)[1] @ v), rel=1e-8)


def test_steps_are_those_of_pytorchs_adam():
    scale = torch.tensor([1.0, 10.0, 0.1]).double()
    of = lambda x: (0.5 * (scale * (x - 1).square()).sum(), scale * (x - 1))  # noqa: E731
    found, values = convex.descend(of, scale, 7, 0.1)
    leaf = torch.zeros(3).double().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=0.1)
    for value in values:
        loss = of(leaf)[0]
        assert float(value) == pytest.approx(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.allclose(found, leaf.detach())


def test_the_largest_step_size_that_falls_is_found():
    like = torch.zeros(4).double()
    of = lambda x: ((x - 1).square().sum(), 2 * (x - 1))  # noqa: E731
    size = convex.largest_falling(of, like, 20, 1e-5)
    assert convex.falls(convex.descend(of, like, 20, size)[1])
    assert not convex.falls(convex.descend(of, like, 20, 1.2 * size)[1])
    rises = lambda x: (x.sum(), -torch.ones_like(x))  # noqa: E731
    assert convex.largest_falling(rises, like, 5, 1e-5) == 1e-5


def test_step_sizes_are_reviewed_after_fifty_runs():
    sizes, runs = torch.tensor([1.0, 2.0]).double(), torch.zeros(2, 3, dtype=torch.int64)
    rising, falling, neither = (torch.tensor(v) for v in ([1.0, 0.0, 2.0], [2.0, 1.0, 0.0], [2.0, 0.0, 1.0]))
    for number in range(50):
        assert sizes.tolist() == [1.0, 2.0]
        assert int(runs[0, 2]) == number
        first, second = rising if number < 15 else neither, falling if number < 35 else neither
        sizes, runs = convex.reviewed(sizes, runs + torch.stack([convex.behaviour(first), convex.behaviour(second)]))
    assert sizes.tolist() == pytest.approx([0.9, 2.1])
    assert int(runs.sum()) == 0
    assert torch.equal(convex.reviewed(sizes, torch.tensor([[14, 34, 50]] * 2))[0], sizes)
