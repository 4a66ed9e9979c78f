"""Maps of low rank against dense linear algebra, and steps by them against autograd, in float64."""

import pytest
import torch

from potstill import seeds
from potstill.adjoint.curvature import LowRank, low_rank

P, RANK = 40, 5


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeds.generator(seed, "test"), dtype=torch.float64).to(dtype)


def symmetric(values):
    """A symmetric matrix of these eigenvalues."""
    basis = torch.linalg.qr(normal(len(values), len(values), seed=1)).Q
    return basis @ torch.diag(values) @ basis.T


def decaying(dtype=torch.float64):
    """Eigenvalues of either sign that halve from one to the next."""
    return symmetric(torch.tensor([(-1.0) ** i * 7 * 0.5**i for i in range(P)], dtype=torch.float64)).to(dtype)


def by_svd(matrix, rank):
    """U diag(s / max s) Vᵀ."""
    u, s, vt = torch.linalg.svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank] / s[0]) @ vt[:rank]


def dense(found):
    return found.vectors @ torch.diag(found.values) @ found.vectors.T


def test_it_is_the_truncated_singular_value_decomposition():
    matrix = decaying()
    found = low_rank(lambda v: matrix @ v, normal(P, RANK + 4), RANK)
    assert found.vectors.shape == (P, RANK)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(RANK, dtype=torch.float64), atol=1e-12)
    assert found.values.tolist() == pytest.approx([(-0.5) ** i for i in range(RANK)], abs=1e-4)
    error = torch.linalg.matrix_norm(dense(found) - by_svd(matrix, RANK), 2)
    assert float(error) < 1e-4
    vector = normal(P, seed=2)
    assert torch.allclose(found(vector), dense(found) @ vector)


def test_powers_make_it_more_exact_and_float32_keeps_the_small_directions():
    matrix, random = decaying(), normal(P, RANK + 4)
    errors = [
        float(torch.linalg.matrix_norm(dense(low_rank(lambda v: matrix @ v, random, RANK, powers)) -
                                       by_svd(matrix, RANK), 2)) for powers in (0, 1, 2)
    ]  # fmt: skip
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    steep = symmetric(torch.tensor([1e-3**i for i in range(3)] + [0.0] * (P - 3), dtype=torch.float64)).float()
    found = low_rank(lambda v: steep @ v, normal(P, 5).float(), 2)
    assert found.values.tolist() == pytest.approx([1.0, 1e-3], rel=1e-3), "whose third power is 1e-9"


def test_as_many_columns_as_there_are_give_the_whole_matrix():
    matrix = decaying()[:6, :6]
    found = low_rank(lambda v: matrix @ v, normal(6, 6), 9)
    assert torch.allclose(dense(found), matrix / torch.linalg.matrix_norm(matrix, 2), atol=1e-12)


def test_what_has_no_directions_gives_none():
    assert low_rank(torch.zeros_like, normal(P, 3), 2) is None
    assert low_rank(lambda v: v * torch.nan, normal(P, 3), 2) is None
    assert low_rank(lambda v: v * torch.inf, normal(P, 3), 2) is None


@pytest.fixture
def turn():
    matrix = decaying()
    return low_rank(lambda v: matrix @ v, normal(P, RANK + 4), RANK)


def test_a_rescaled_gradient_is_as_long_as_it_was_and_grows_with_it(turn):
    gradient = normal(P, seed=3)
    found = turn.rescaled(gradient)
    assert float(found.norm()) == pytest.approx(float(gradient.norm()))
    assert float(torch.nn.functional.cosine_similarity(found, turn(gradient), 0)) == pytest.approx(1.0)
    assert torch.allclose(turn.rescaled(7 * gradient), 7 * found)


def test_its_adjoint_is_autograds_and_that_of_finite_differences(turn):
    gradient, of_found = normal(P, seed=3).requires_grad_(), normal(P, seed=4)
    (expected,) = torch.autograd.grad(turn.rescaled(gradient) @ of_found, gradient)
    found = turn.adjoint(gradient.detach(), of_found)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    direction, h = normal(P, seed=5), 1e-6
    ends = [float(turn.rescaled(gradient.detach() + sign * h * direction) @ of_found) for sign in (1, -1)]
    assert float(found @ direction) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-7)


def test_a_gradient_without_a_part_along_it_becomes_none(turn):
    away = torch.zeros(P, dtype=torch.float64)
    along = LowRank(torch.eye(P, dtype=torch.float64)[:, :2], torch.tensor([1.0, -0.5], dtype=torch.float64))
    for given, by in ((away, turn), (torch.eye(P, dtype=torch.float64)[5], along)):
        leaf = given.clone().requires_grad_()
        found = by.rescaled(leaf)
        assert not bool(found.any())
        (expected,) = torch.autograd.grad(found @ normal(P, seed=4), leaf)
        assert torch.equal(by.adjoint(given, normal(P, seed=4)), expected)
        assert not bool(expected.any())
