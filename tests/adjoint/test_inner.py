"""Steps against ``torch.optim``, and their adjoints against autograd, in float64."""

import pytest
import torch

from potstill import seeds
from potstill.adjoint.curvature import LowRank
from potstill.adjoint.inner import Adam, Moments, Preconditioned, Sgd
from potstill.errors import PotstillError

P, SIZE, ALPHA = 7, 3, torch.tensor(0.1, dtype=torch.float64)


def draw(count, seed=0):
    return torch.randn(count, P, generator=seeds.generator(seed, "test")).double()


TURN = LowRank(torch.linalg.qr(draw(3, 7).T).Q, torch.tensor([1.0, -0.6, 0.2], dtype=torch.float64))
PLAIN = [Sgd(), Adam(), Adam(0.5, 0.9, 1e-3), Adam(0.0, 0.0)]
OPTIMISERS = [*PLAIN, Preconditioned(Sgd(), TURN), Preconditioned(Adam(), TURN)]


def adjoint_and_autograd(inner, gradient, moments):
    """∂/∂ (θ, G, moments, α) of ⟨λ_θ, θ′⟩ + Σ ⟨λ_m, m′⟩, by the adjoint and by autograd."""
    theta, of_theta, *of_moments = draw(2 + inner.vectors, 1)
    leaves = [tensor.clone().requires_grad_() for tensor in (theta, gradient, ALPHA, *moments.vectors)]
    after, later = inner.step(leaves[0], leaves[1], SIZE, Moments(tuple(leaves[3:]), moments.count), leaves[2])
    value = (after @ of_theta) + sum(a @ b for a, b in zip(later.vectors, of_moments, strict=True))
    found = inner.adjoint(of_theta, tuple(of_moments), gradient, SIZE, later.detach(), ALPHA)
    of_step_size = found.step_size if found.step_size is not None else -(gradient @ found.direction) / SIZE
    expected = torch.autograd.grad(value, leaves)
    return (of_theta, found.weight * found.direction, of_step_size, *found.moments), expected


@pytest.mark.parametrize(
    ("inner", "theirs"),
    [
        (Sgd(), lambda theta: torch.optim.SGD([theta], 0.1)),
        (Adam(), lambda theta: torch.optim.Adam([theta], 0.1)),
        (Adam(0.5, 0.9, 1e-3), lambda theta: torch.optim.Adam([theta], 0.1, (0.5, 0.9), 1e-3)),
    ],
)
def test_steps_are_those_of_torch(inner, theirs):
    theta, *gradients = draw(10)
    expected = theta.clone().requires_grad_()
    optimiser, moments = theirs(expected), inner.initial_moments(theta)
    for gradient in gradients:
        gradient[0] = 0.0  # a dead weight
        expected.grad = gradient
        optimiser.step()
        theta, moments = inner.step(theta, SIZE * gradient, SIZE, moments, ALPHA)
        assert torch.allclose(theta, expected, rtol=1e-13, atol=1e-15)
    assert moments.count == len(gradients)


@pytest.mark.parametrize("steps_before", [0, 4])
@pytest.mark.parametrize("inner", OPTIMISERS)
def test_the_adjoint_of_a_step_is_autograds(inner, steps_before):
    gradient, *before = draw(1 + inner.vectors)
    vectors = tuple(vector.square() for vector in before) if steps_before else inner.initial_moments(gradient).vectors
    for found, expected in zip(*adjoint_and_autograd(inner, gradient, Moments(vectors, steps_before)), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", PLAIN)
def test_weights_that_never_had_a_gradient_stay_and_give_finite_adjoints(inner):
    gradient = draw(1)[0]
    gradient[:2] = 0.0
    theta, moments = inner.step(gradient, gradient, SIZE, inner.initial_moments(gradient), ALPHA)
    assert torch.equal(theta[:2], gradient[:2])
    for found, expected in zip(*adjoint_and_autograd(inner, gradient, moments), strict=True):
        assert found.isfinite().all()
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", [Sgd(), Adam()])
def test_a_preconditioned_step_is_the_others_by_another_gradient_as_long(inner):
    gradient, theta = draw(2)
    first = Preconditioned(inner, TURN).step(theta, gradient, SIZE, inner.initial_moments(theta), ALPHA)
    mapped = TURN.vectors @ (TURN.values * (TURN.vectors.T @ gradient))
    other = inner.step(
        theta, mapped * gradient.norm() / mapped.norm(), SIZE, inner.initial_moments(theta), ALPHA
    )  # fmt: skip
    assert torch.allclose(first[0], other[0], rtol=1e-12)
    assert first[1].count == 1
    assert all(torch.allclose(a, b) for a, b in zip(first[1].vectors, other[1].vectors, strict=True))


def test_adam_masks_the_derivative_through_the_root_alone():
    """A dead weight's λ_g is that of the first moment, (1 − β₁) α λ / ((1 − β₁) ε)."""
    inner, zero = Adam(), torch.zeros(1).double()
    _, moments = inner.step(zero, zero, 1, inner.initial_moments(zero), ALPHA)
    found = inner.adjoint(zero + 2.0, (zero, zero), zero, 1, moments, ALPHA)
    assert float(found.direction) == pytest.approx(-0.1 * 2.0 / inner.eps)


def test_what_adam_cannot_be_is_refused():
    with pytest.raises(PotstillError, match="beta2 1: a decay rate lies in"):
        Adam(beta2=1)
    with pytest.raises(PotstillError, match="eps 0: weights without a gradient"):
        Adam(eps=0)
