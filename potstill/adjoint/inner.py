"""The inner optimiser as a value: one step of a student, and the adjoint of that step.

Every one of them goes θ′ = θ − α u, where u comes from the batch's gradient g and from moments that are carried along,

    SGD     u = g
    Adam    u = m̂ / (√v̂ + ε),    m̂ = m′ / (1 − β₁ᵗ),              v̂ = v′ / (1 − β₂ᵗ),
                                 m′ = β₁ m + (1 − β₁) g,          v′ = β₂ v + (1 − β₂) g²,

with t the steps taken, this one included (Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015).
Either may follow another vector than g, which a constant map makes of it.  The adjoint goes the other way: from
λ_θ = ∂L/∂θ′ and ∂L/∂(m′, v′) to

    ∂L/∂α −= ⟨u, λ_θ⟩,    λ_m′ −= α λ_θ ∂u/∂m′,    λ_v′ −= α λ_θ ∂u/∂v′,
    λ_g = (1 − β₁) λ_m′ + 2 (1 − β₂) g λ_v′,    λ_m = β₁ λ_m′,    λ_v = β₂ λ_v′,

while λ_θ itself passes on unchanged; what g owes to θ and to the synthetic set is the sweep's part, in ``unroll.py``.
The root of a second moment that is 0 has no derivative: a weight that never had a gradient would give 0 · ∞.  There the
derivative through v counts as 0, as in public code of backpropagation through training (RaT-BPTT, on ``higher``).

Example:
    >>> theta, moments = torch.zeros(3), Adam().initial_moments(torch.zeros(3))
    >>> theta, moments = Adam().step(theta, torch.tensor([2.0, -2.0, 0.0]), 2, moments, torch.tensor(0.1))
    >>> theta  # the first step has the size α, whatever the gradient's
    tensor([-0.1000,  0.1000,  0.0000])
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from potstill.adjoint.curvature import LowRank
from potstill.errors import PotstillError


@dataclass(frozen=True)
class Moments:
    """What an inner optimiser carries from step to step."""

    vectors: tuple[Tensor, ...] = ()  # each (P,): none for SGD, first and second moment for Adam
    count: int = 0  # steps taken

    def detach(self) -> "Moments":
        """The same without the graph that led to them."""
        return Moments(tuple(vector.detach() for vector in self.vectors), self.count)


@dataclass(frozen=True)
class StepAdjoint:
    """The adjoint of one step; the gradient of the batch's summed loss, G = b g, has ∂L/∂G = weight · direction."""

    direction: Tensor  # (P,)
    weight: Tensor  # scalar
    moments: tuple[Tensor, ...]  # ∂L/∂ each vector of the moments before the step
    step_size: Tensor | None  # this step's part of ∂L/∂α; None: it is −⟨g, direction⟩, which the sweep finds anyway


@dataclass(frozen=True)
class Sgd:
    """θ′ = θ − α g, without momentum."""

    vectors: ClassVar[int] = 0  # of its moments
    keeps_gradient: ClassVar[bool] = False  # whether :meth:`adjoint` needs the gradient of the step

    def initial_moments(self, theta: Tensor) -> Moments:
        """None, and no steps taken."""
        return Moments()

    def step(
        self, theta: Tensor, gradient: Tensor, size: int, moments: Moments, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """θ′ (P,) and the moments after the step; differentiable by autograd.

        Args:
            theta: (P,).
            gradient: of the batch's *summed* loss (P,).
            size: images in the batch.
            moments: those that the steps before left.
            step_size: scalar tensor α.
        """
        return torch.addcmul(theta, gradient, step_size / size, value=-1), Moments((), moments.count + 1)

    def adjoint(
        self, theta_adjoint: Tensor, moment_adjoints: tuple[Tensor, ...], gradient: Tensor | None, size: int,
        moments: Moments, step_size: Tensor,
    ) -> StepAdjoint:  # fmt: skip
        """The adjoint of a step.

        Args:
            theta_adjoint: λ_θ = ∂L/∂θ′ (P,).
            moment_adjoints: ∂L/∂ each vector of ``moments``, as far as later steps use it.
            gradient: what the step was given, where :attr:`keeps_gradient`.
            size: images in the batch.
            moments: those *after* the step.
            step_size: scalar tensor α.
        """
        return StepAdjoint(theta_adjoint, -(step_size / size), (), None)


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction and without weight decay, step for step that of ``torch.optim.Adam``.

    Where √v̂ is not far above ``eps`` a step is steep in the gradient, by up to α / ``eps``: weights whose gradient is
    rounding noise (a bias before instance norm) have large λ_g, which the sweep then multiplies by nearly nothing.

    Raises:
        PotstillError: a decay rate is outside [0, 1), or eps is not positive.
    """

    beta1: float = 0.9  # decay of the first moment a step
    beta2: float = 0.999  # decay of the second
    eps: float = 1e-8  # added to the root of the second moment

    vectors: ClassVar[int] = 2
    keeps_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise PotstillError(f"{name} {getattr(self, name)}: a decay rate lies in [0, 1); 0 keeps no memory.")
        if not self.eps > 0:
            raise PotstillError(f"eps {self.eps}: weights without a gradient would divide 0 by 0; choose eps > 0.")

    def initial_moments(self, theta: Tensor) -> Moments:
        """Zeros (P,), and no steps taken."""
        return Moments((torch.zeros_like(theta), torch.zeros_like(theta)))

    def step(
        self, theta: Tensor, gradient: Tensor, size: int, moments: Moments, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """θ′ (P,) and the moments after the step; arguments as of :meth:`Sgd.step`."""
        (first, second), gradient = moments.vectors, gradient / size
        first = torch.lerp(first, gradient, 1 - self.beta1)
        second = torch.addcmul(self.beta2 * second, gradient, gradient, value=1 - self.beta2)
        moments = Moments((first, second), moments.count + 1)
        return torch.addcmul(theta, self._update(moments)[0], step_size, value=-1), moments

    def adjoint(
        self, theta_adjoint: Tensor, moment_adjoints: tuple[Tensor, ...], gradient: Tensor | None, size: int,
        moments: Moments, step_size: Tensor,
    ) -> StepAdjoint:  # fmt: skip
        """The adjoint of a step; arguments as of :meth:`Sgd.adjoint`."""
        assert gradient is not None
        update, denominator, root = self._update(moments)
        first_correction, second_correction = self._corrections(moments.count)
        of_update = -step_size * theta_adjoint
        of_first = moment_adjoints[0] + of_update / (first_correction * denominator)
        slope = update / (-2 * second_correction**0.5 * denominator * root)  # ∂u/∂v′
        of_second = moment_adjoints[1] + of_update * slope.masked_fill(root == 0, 0.0)
        direction = (1 - self.beta1) * of_first + (2 * (1 - self.beta2) / size) * gradient * of_second
        return StepAdjoint(
            direction, torch.full_like(step_size, 1 / size), (self.beta1 * of_first, self.beta2 * of_second),
            -(update @ theta_adjoint),
        )  # fmt: skip

    def _update(self, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """u, its denominator √v̂ + ε, and √v′, whose derivative is 0 where it is 0."""
        first, second = moments.vectors
        first_correction, second_correction = self._corrections(moments.count)
        zero = second == 0
        root = second.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
        denominator = root / second_correction**0.5 + self.eps
        return first / (first_correction * denominator), denominator, root

    def _corrections(self, count: int) -> tuple[float, float]:
        """1 − β₁ᵗ and 1 − β₂ᵗ, for moments that began with 0."""
        return 1 - self.beta1**count, 1 - self.beta2**count


@dataclass(frozen=True, eq=False)
class Preconditioned:
    """Another optimiser's steps by gradients that a constant map has turned (``curvature.py``), as long as they were.

    The map is linear up to the length it restores, so the sum of a batch's gradients may take the mean's place.
    """

    inner: Sgd | Adam
    turn: LowRank

    keeps_gradient: ClassVar[bool] = True

    @property
    def vectors(self) -> int:
        """Of its moments."""
        return self.inner.vectors

    def initial_moments(self, theta: Tensor) -> Moments:
        """Those of the other optimiser."""
        return self.inner.initial_moments(theta)

    def step(
        self, theta: Tensor, gradient: Tensor, size: int, moments: Moments, step_size: Tensor
    ) -> tuple[Tensor, Moments]:  # fmt: skip
        """θ′ (P,) and the moments after the step; arguments as of :meth:`Sgd.step`."""
        return self.inner.step(theta, self.turn.rescaled(gradient), size, moments, step_size)

    def adjoint(
        self, theta_adjoint: Tensor, moment_adjoints: tuple[Tensor, ...], gradient: Tensor | None, size: int,
        moments: Moments, step_size: Tensor,
    ) -> StepAdjoint:  # fmt: skip
        """The adjoint of a step; arguments as of :meth:`Sgd.adjoint`.

        Where the step size's part is left to the sweep it is right: ⟨g, ∂ĝ/∂gᵀ λ⟩ = ⟨ĝ, λ⟩, as ĝ(t g) = t ĝ(g).
        """
        assert gradient is not None
        turned = self.turn.rescaled(gradient)
        through = self.inner.adjoint(theta_adjoint, moment_adjoints, turned, size, moments, step_size)
        return replace(through, direction=self.turn.adjoint(gradient, through.direction))


Inner = Sgd | Adam | Preconditioned

SGD = Sgd()
