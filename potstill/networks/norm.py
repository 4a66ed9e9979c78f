"""Instance norm, as PyTorch computes it and as one pass over memory for the compiler."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm(nn.GroupNorm):
    """Affine instance norm, as a group norm of one channel a group."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), each channel of each normalised."""
        return instance_norm(images, self.weight, self.bias, self.eps)


def instance_norm(images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Images (B, C, H, W), each channel of each normalised, then scaled by ``weight`` (C,) and shifted by ``bias``."""
    if torch.compiler.is_compiling():
        return in_one_pass(images, weight, bias, eps)
    return F.group_norm(images, len(weight), weight, bias, eps)


def in_one_pass(images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same by its formula, for the compiler to fuse.

    The variance is E x² − (E x)²: both sums in one pass over memory, and simpler derivatives.  Sums are float32 at
    least; cancellation costs the variance two of its seven digits where a channel's mean is ten times its deviation,
    which is more than bfloat16 ever had and less than a convolution's outputs come near.  The inverse root is written
    as an exponential because the compiler stores those; a root it would compute again at every pixel.
    """
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    weight, bias = weight.to(x.dtype)[:, None, None], bias.to(x.dtype)[:, None, None]
    mean = x.mean((2, 3), keepdim=True)
    variance = ((x * x).mean((2, 3), keepdim=True) - mean * mean).clamp_min(0)
    scale = weight * torch.exp(-0.5 * torch.log(variance + eps))
    return (x * scale + (bias - mean * scale)).to(images.dtype)
