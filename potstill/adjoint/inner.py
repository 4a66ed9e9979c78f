"""The student's optimiser as a value: a step, and its adjoint.

SGD             θ' = θ − α g
Adam            m' = β₁ m + (1 − β₁) g     v' = β₂ v + (1 − β₂) g²     θ' = θ − α m̂ / (√v̂ + ε)
                m̂ = m' / (1 − β₁ᵗ)         v̂ = v' / (1 − β₂ᵗ)          (Kingma and Ba, ICLR 2015)

with g the mean gradient of a batch.  Adam's moments are part of what a step hands on, so the reverse sweep has a λ for
each of them.  The root of a second moment that is 0 has no derivative: a weight whose gradient was always 0 does not move,
and its λ is taken as 0 rather than 0/0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Moments = tuple[Tensor, ...]
"""What an optimiser hands on from step to step: nothing for SGD; first and second moment (P,) and step count () for Adam."""


class Back(NamedTuple):
    """What the adjoint of a step leaves to the sweep.

    With s = ⟨Σ_b ∇θ ℓ, direction⟩ and its derivatives, the sweep subtracts weight · ∂s/∂x from the gradient of the images,
    weight · ∂s/∂θ from λ, and so on.
    """

    direction: Tensor  # (P,)
    weight: Tensor  # ()
    moments: Moments  # λ of the moments before the step, but for the count
    step_size: Tensor | None  # ∂L/∂α of this step; None: −s / b, as it is for SGD


class Inner(Protocol):
    """A student's optimiser."""

    def begin(self, theta: Tensor) -> Moments:
        """The moments before the first step from ``theta`` (P,)."""

    def step(
        self, theta: Tensor, total: Tensor, count: int, moments: Moments, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """θ (P,) and the moments after a step along the gradient ``total`` (P,), summed over ``count`` images."""

    def back(
        self, adjoint: Tensor, adjoints: Sequence[Tensor], total: Tensor, count: int, moments: Moments, step_size: Tensor
    ) -> Back:  # fmt: skip
        """The adjoint of a step, from λ of what it gave: of θ' (``adjoint``) and of its moments (``adjoints``)."""

    keeps: bool  # whether ``back`` needs the gradient and the moments before the step


@dataclass(frozen=True)
class Sgd:
    """Plain gradient descent."""

    keeps = False

    def begin(self, theta: Tensor) -> Moments:
        """None."""
        return ()

    def step(
        self, theta: Tensor, total: Tensor, count: int, moments: Moments, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """θ − α g."""
        return torch.addcmul(theta, total, step_size / count, value=-1), ()

    def back(
        self, adjoint: Tensor, adjoints: Sequence[Tensor], total: Tensor, count: int, moments: Moments, step_size: Tensor
    ) -> Back:  # fmt: skip
        """λ itself is the direction."""
        return Back(adjoint, step_size / count, (), None)


@dataclass(frozen=True)
class Adam:
    """Adam as :class:`torch.optim.Adam` without weight decay."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    keeps = True

    def begin(self, theta: Tensor) -> Moments:
        """Zeros, and no step taken."""
        return torch.zeros_like(theta), torch.zeros_like(theta), theta.new_zeros(())

    def step(
        self, theta: Tensor, total: Tensor, count: int, moments: Moments, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """The step of the module's docstring."""
        first, second, taken = self._after(total / count, moments)
        mean, root = self._unbiased(first, second, taken)
        return theta - step_size * mean / (root + self.eps), (first, second, taken)

    def _after(self, gradient: Tensor, moments: Moments) -> Moments:
        first, second, taken = moments
        return (
            self.beta1 * first + (1 - self.beta1) * gradient,
            self.beta2 * second + (1 - self.beta2) * gradient.square(),
            taken + 1,
        )

    def _unbiased(self, first: Tensor, second: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """m̂ and √v̂; the root's gradient is 0 where v̂ is."""
        variance = second / (1 - self.beta2**taken)
        dead = variance == 0
        return first / (1 - self.beta1**taken), variance.masked_fill(dead, 1.0).sqrt().masked_fill(dead, 0.0)

    def back(
        self, adjoint: Tensor, adjoints: Sequence[Tensor], total: Tensor, count: int, moments: Moments, step_size: Tensor
    ) -> Back:  # fmt: skip
        """The chain rule through the step, by hand.

        λ_m' and λ_v' gain what θ' says of them; both reach the gradient, and decayed by β the moments before.
        """
        gradient = total / count
        first, second, taken = self._after(gradient, moments)
        mean, root = self._unbiased(first, second, taken)
        below = root + self.eps
        on_first, on_second = adjoints
        on_first = on_first - step_size * adjoint / below / (1 - self.beta1**taken)
        slope = (step_size * adjoint * mean / below.square() / (2 * root)).masked_fill(root == 0, 0.0)
        on_second = on_second + slope / (1 - self.beta2**taken)
        direction = (1 - self.beta1) * on_first + 2 * (1 - self.beta2) * gradient * on_second
        earlier = (self.beta1 * on_first, self.beta2 * on_second)
        return Back(direction, -torch.ones_like(step_size) / count, earlier, -(adjoint * mean / below).sum())
