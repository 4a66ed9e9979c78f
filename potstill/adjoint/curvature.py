"""A few directions in which a loss is most curved, and steps along them alone.

A symmetric matrix H (P, P), known by its products with vectors, is replaced by the r of its eigenvalues s that are
largest in size, found by a randomised range finder with power iterations (Halko, Martinsson and Tropp, "Finding
Structure with Randomness", SIAM Review 2011): with k ≥ r random columns Ω,

    Q = orth(Hᵖ⁺¹ Ω),    Qᵀ H Q = E diag(s) Eᵀ,    W = Q E,    A = W diag(s / max |s|) Wᵀ.

For a symmetric matrix that is its truncated singular value decomposition U diag(σ / max σ) Vᵀ, with the sign of an
eigenvalue in U or in V there.  AT-BPTT++ replaces a gradient g by y = A g, rescaled to the length of g,

    ĝ = y ‖g‖ / ‖y‖,    so that λ_g = λ·y / (‖y‖ ‖g‖) g + A (‖g‖ / ‖y‖ λ − ‖g‖ λ·y / ‖y‖³ y)    for λ = ∂L/∂ĝ

where A is held constant; it is symmetric, so that it is its own adjoint.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

POWERS = 2  # p, published


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix A = W diag(a) Wᵀ (P, P)."""

    vectors: Tensor  # W (P, r), orthonormal columns
    values: Tensor  # a (r,), the largest in size first, which is 1 or −1

    def __call__(self, vector: Tensor) -> Tensor:
        """A v (P,)."""
        return self.vectors @ (self.values * (self.vectors.T @ vector))

    def rescaled(self, gradient: Tensor) -> Tensor:
        """ĝ (P,), as long as ``gradient``; 0 where that has no part along W.  Differentiable by autograd."""
        mapped = self(gradient)
        return _ratio(gradient.norm(), mapped.norm()) * mapped

    def adjoint(self, gradient: Tensor, of_rescaled: Tensor) -> Tensor:
        """∂L/∂g (P,) from ∂L/∂ĝ (P,), for a constant A."""
        mapped = self(gradient)
        given, found = gradient.norm(), mapped.norm()
        along = _ratio(of_rescaled @ mapped, found)  # the part of λ along y / ‖y‖
        turned = _ratio(given, found) * (of_rescaled - _ratio(along, found) * mapped)
        return _ratio(along, given) * gradient + self(turned)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """Their quotient, 0 where the divisor is 0."""
    zero = other == 0
    return (one / other.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def low_rank(
    product: Callable[[Tensor], Tensor], random: Tensor, rank: int, powers: int = POWERS
) -> LowRank | None:  # fmt: skip
    """A of a symmetric matrix from ``powers`` + 2 products with k vectors; None where it is 0 or not finite.

    Between the powers the columns are made orthonormal again, for in float32 they would soon all be the first
    eigenvector.

    Args:
        product: v (P,) → H v (P,).
        random: Ω (P, k), k ≥ rank; columns beyond the rank make it more exact.
        rank: r, at most.
        powers: p.
    """
    basis = random
    for _ in range(powers + 1):
        basis = torch.linalg.qr(_columns(product, basis)).Q
    small = basis.T @ _columns(product, basis)
    if not bool(small.isfinite().all()) or not bool(small.any()):
        return None
    values, turn = torch.linalg.eigh((small + small.T) / 2)
    largest = values.abs().argsort(descending=True)[:rank]
    values = values[largest]
    return LowRank(basis @ turn[:, largest], values / values[0].abs())


def _columns(product: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    return torch.stack([product(column.contiguous()) for column in matrix.unbind(1)], 1)
