"""The neural tangent kernel of an infinitely wide fully connected network with ReLU, in closed form.

Jacot et al., NeurIPS 2018.  With weights of variance 2/fan-in and biases of variance β², layer by layer:

    K₀(x, x′) = 2 ⟨x, x′⟩ / D + β²,                       Θ₀ = K₀
    K_l = κ₁(c) √(K_{l−1}(x,x) K_{l−1}(x′,x′)) + β²,      Θ_l = K_l + κ₀(c) Θ_{l−1},      c the cosine in K_{l−1}
    κ₀(c) = (π − arccos c) / π,    κ₁(c) = (√(1 − c²) + (π − arccos c) c) / π            (Cho and Saul, NeurIPS 2009)

κ₁ has the derivative κ₀, also at c = 1, where √(1 − c²) has none; that of κ₀, 1 / (π √(1 − c²)), is held finite there:
an image is parallel to itself wherever it moves.
"""

import math
from typing import Any

import torch
from torch import Tensor

BIAS = 0.1**2  # β², as in the authors' notebook
NEAR = 1e-9  # below 1 from which on a cosine is taken for 1


class _Kappa0(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        ctx.save_for_backward(c)
        return 1 - torch.arccos(c) / math.pi

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (c,) = ctx.saved_tensors
        root = (1 - c.square()).clamp_min(NEAR).sqrt()
        return slope * torch.where(c < 1 - NEAR, 1 / (math.pi * root), torch.zeros_like(c))


class _Kappa1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        angle = torch.arccos(c)
        ctx.save_for_backward(angle)
        return (angle.sin() + (math.pi - angle) * c) / math.pi

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (angle,) = ctx.saved_tensors
        return slope * (1 - angle / math.pi)


def fully_connected(x: Tensor, y: Tensor, depth: int) -> Tensor:
    """Θ (n, m) of images x (n, ...) and y (m, ...) with so many hidden layers; once differentiable in both."""
    x, y = x.flatten(1), y.flatten(1)
    scale = 2 / x.shape[1]
    cross, of_x, of_y = scale * x @ y.T + BIAS, scale * x.square().sum(1) + BIAS, scale * y.square().sum(1) + BIAS
    tangent = cross
    for _ in range(depth):
        norms = (of_x[:, None] * of_y).sqrt()
        cosine = (cross / norms).clamp(-1, 1)
        cross = _Kappa1.apply(cosine) * norms + BIAS
        tangent = cross + _Kappa0.apply(cosine) * tangent
        of_x, of_y = of_x + BIAS, of_y + BIAS  # κ₁(1) = 1
    return tangent
