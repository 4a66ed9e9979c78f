"""The convex inner problem of RCIG: a network to first order at θ, trained on the set by squared error.

Loo et al., "Dataset Distillation with Convexified Implicit Gradients", ICML 2023.  What is learned is f(x) = J(x) δ +
Wᵀh(x): body weights δ, to first order, and a last layer W on the frozen features h.  Given δ, W is a ridge regression;
with it in place the inner loss, published as ½ ‖y − f‖² + l/2 (‖W‖² + ‖δ‖²) over n K, is

    ℓ(δ) = l/(2 n K) [tr(rᵀ M r) + ‖δ‖²],    r = y − Jδ,    M = (h hᵀ + l I)⁻¹,    W = hᵀ M r,

of n images x with targets y (n, K).  Its Hessian is H = l/(n K) (I + JᵀMJ), the same everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.adjoint.inner import Adam
from potstill.networks.flat import FlatNetwork
from potstill.networks.tangent import Tangent, linearise

GROWTHS = (8.0, 1.2)  # by which a step size is searched for, first in large steps
LARGEST = 1e6  # where the search ends
REVIEW, ROSE, FELL = 50, 0.29, 0.7  # runs after which a step size is reviewed, and the fractions that change it
LOWER, RAISE = 0.9, 1.05  # what it is then multiplied by

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A point (P,) → a scalar, and its gradient there (P,)."""


@dataclass(frozen=True)
class InnerProblem:
    """ℓ(δ) of a linearised network on the set, its derivatives, and the last layer that goes with δ."""

    tangent: Tangent
    targets: Tensor  # y (n, K)
    l2: float  # l
    factor: Tensor  # Cholesky factor of h hᵀ + l I (n, n), float64

    @property
    def scale(self) -> float:
        """l / (n K)."""
        return self.l2 / self.targets.numel()

    def solve(self, residual: Tensor) -> Tensor:
        """M r (n, K), float64."""
        return torch.cholesky_solve(residual.double(), self.factor)

    def residual(self, delta: Tensor, differentiable: bool = False) -> Tensor:
        """r = y − Jδ (n, K)."""
        return self.targets - self.tangent.times(delta, differentiable)

    def head(self, delta: Tensor) -> Tensor:
        """W (F, K), float64, differentiable in δ, the images and the targets."""
        return self.tangent.features.double().T @ self.solve(self.residual(delta, True))

    @torch.no_grad()
    def loss(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ(δ) and its gradient (P,)."""
        residual = self.residual(delta)
        solved = self.solve(residual)
        value = 0.5 * self.scale * ((residual * solved).sum() + delta.double().square().sum())
        return value, self.scale * (delta - self.tangent.transposed(solved))

    @torch.no_grad()
    def quadratic(self, v: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """½ vᵀHv − vᵀg and its gradient Hv − g (P,): its least value is at v = H⁻¹ g."""
        product = self.scale * (v + self.tangent.transposed(self.solve(self.tangent.times(v))))
        return (v.double() * (0.5 * product - gradient)).sum(), product - gradient

    def slope_along(self, v: Tensor, delta: Tensor) -> Tensor:
        """⟨v, ∂ℓ/∂δ⟩, differentiable in the images and the targets."""
        along = self.tangent.times(v, True)
        return self.scale * (v @ delta - (along * self.solve(self.residual(delta, True))).sum())


def inner_problem(network: FlatNetwork, theta: Tensor, images: Tensor, targets: Tensor, l2: float) -> InnerProblem:
    """That of a network at ``theta`` (P,), for images (n, C, H, W) and targets (n, K)."""
    tangent = linearise(network, theta, images)
    h = tangent.features.double()
    regular = h @ h.T + l2 * torch.eye(len(h), dtype=h.dtype, device=h.device)
    return InnerProblem(tangent, targets, l2, torch.linalg.cholesky(regular))


def descend(of: Function, like: Tensor, steps: int, step_size: float) -> tuple[Tensor, Tensor]:
    """The point (P,) after steps of Adam from 0 along the gradients of a function, and its values before each step."""
    point, values = torch.zeros_like(like), []
    adam, size = Adam(), torch.tensor(step_size, dtype=like.dtype, device=like.device)
    moments = adam.initial_moments(point)
    for _ in range(steps):
        value, gradient = of(point)
        point, moments = adam.step(point, gradient, 1, moments, size)
        values.append(value)
    return point, torch.stack(values)


def largest_falling(of: Function, like: Tensor, steps: int, smallest: float) -> float:
    """The largest step size, from ``smallest`` up and to within a factor of 1.2, that lowers a function every time."""
    size = smallest
    for growth in GROWTHS:
        while size < LARGEST and falls(descend(of, like, steps, size * growth)[1]):
            size *= growth
    return size


def falls(values: Tensor) -> bool:
    """Whether values (steps,) fall at every step."""
    return bool((values.diff() < 0).all())


def behaviour(values: Tensor) -> Tensor:
    """Whether a run ended above its beginning, whether it fell at every step, and 1 (3,)."""
    return torch.tensor([bool(values[-1] > values[0]), falls(values), True]).long()


def reviewed(sizes: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:
    """Step sizes (m,) and the runs (m, 3) that they had: how many rose, how many fell at every step, and all.

    After 50 runs they follow from them, and counting begins again.
    """
    if int(runs[0, 2]) < REVIEW:
        return sizes, runs
    sizes = sizes.clone()
    for which, (rose, fell, _) in enumerate(runs.tolist()):
        sizes[which] *= LOWER if rose >= ROSE * REVIEW else RAISE if fell >= FELL * REVIEW else 1.0
    return sizes, torch.zeros_like(runs)
