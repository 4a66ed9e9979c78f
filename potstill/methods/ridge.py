"""Kernel ridge regression from the synthetic images to the real ones, and how sure learned labels should be."""

import torch
from torch import Tensor

SMALLEST = 1e-12  # weight of the regularisation where all features are 0


def predict(k_ts: Tensor, k_ss: Tensor, values: Tensor, ridge: float) -> Tensor:
    """K_ts (K_ss + λ tr(K_ss)/n · I)⁻¹ y (N, K) in the precision of the kernels; differentiable in all of them.

    Args:
        k_ts: kernel of real by synthetic images (N, n).
        k_ss: kernel of the synthetic images (n, n).
        values: their targets y (n, K).
        ridge: λ, relative to the mean of the diagonal.
    """
    n = len(k_ss)
    weight = ridge * k_ss.diagonal().mean() + SMALLEST
    regular = k_ss + weight * torch.eye(n, dtype=k_ss.dtype, device=k_ss.device)
    return k_ts @ torch.linalg.solve(regular, values.to(k_ss))


def squared_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """½ Σ_k (predicted − truth)², mean over the images."""
    return 0.5 * (predicted - truth).square().sum(1).mean()


def unsureness(values: Tensor, margin: float = 1.0) -> Tensor:
    """− mean min(largest − second largest, margin/K) of labels (n, K): falls as labels name one class.

    The margin is 1 in FRePo's code, ½ in RCIG's.
    """
    first, second = values.topk(2, dim=1).values.T
    return -(first - second).clamp_max(margin / values.shape[1]).mean()
