"""The transform between stored pixels and what networks see: ZCA or per-channel standardising, with its inverse.

It is fitted on the training images alone, applied to everything, and travels inside every artefact.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.store import once

VERSION = 1  # of the fit; raised by hand whenever a change of the code changes what it gives
EPSILON = 0.1  # added to the eigenvalues; the published value for pixels in [0, 1]
AUTO_VALUES = 4096  # values an image up to which "auto" whitens by ZCA
MAX_VALUES = 4 * AUTO_VALUES  # beyond, the eigenvectors alone need over a gigabyte


@dataclass(frozen=True)
class Transform:
    """x' = (x − mean) · T on flattened pixels x in [0, 1].

    ZCA: T = U (S + 0.1)^(−1/2) Uᵀ with the covariance U S Uᵀ over N − 1; standardising: T = diag(1 / std), one mean
    and deviation a channel.
    """

    kind: Literal["zca", "standardise"]
    mean: Tensor  # zca: (C·H·W,); standardise: (C,)
    scale: Tensor  # zca: (C·H·W,) eigenvalues S; standardise: (C,) standard deviations
    basis: Tensor | None = None  # zca: (C·H·W, C·H·W) eigenvectors U in columns

    def __call__(self, pixels: Tensor) -> Tensor:
        """Whitened float32 images (N, C, H, W) from uint8 pixels, or from floats in [0, 1]."""
        return self._map(as_unit(pixels), inverse=False)

    def invert(self, images: Tensor) -> Tensor:
        """Pixels in about [0, 1] from whitened images; learned images may leave that range."""
        return self._map(images, inverse=True)

    def pixels(self, images: Tensor) -> Tensor:
        """Whitened images in true colours, uint8; what leaves the range of pixels is clipped."""
        return (self.invert(images).clamp(0, 1) * 255).round().to(torch.uint8)

    def _map(self, images: Tensor, *, inverse: bool) -> Tensor:
        mean, scale = self.mean.to(images), self.scale.to(images)
        if self.basis is None:
            mean, scale = mean.view(-1, 1, 1), scale.view(-1, 1, 1)
            return images * scale + mean if inverse else (images - mean) / scale
        flat = images.flatten(1)
        if flat.shape[1] != len(mean):
            raise PotstillError(
                f"images have {flat.shape[1]} values each, the ZCA transform was fitted on {len(mean)}; "
                "resize them to the shape of the training images."
            )
        matrix = self._matrices[inverse].to(images)
        flat = flat @ matrix + mean if inverse else (flat - mean) @ matrix
        return flat.view_as(images)

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        """ZCA's T and its inverse, (C·H·W, C·H·W) each; made once, for they cost more than a batch."""
        assert self.basis is not None
        root = (self.scale + EPSILON).sqrt()
        return (self.basis / root) @ self.basis.T, (self.basis * root) @ self.basis.T

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store."""
        tensors = {"transform.mean": self.mean, "transform.scale": self.scale}
        return tensors if self.basis is None else {**tensors, "transform.basis": self.basis}

    @classmethod
    def from_tensors(cls, kind: Any, tensors: dict[str, Tensor]) -> "Transform":
        """The transform that :meth:`tensors` stored."""
        return cls(kind, tensors["transform.mean"], tensors["transform.scale"], tensors.get("transform.basis"))


def as_unit(pixels: Tensor) -> Tensor:
    """Floats in [0, 1] from uint8 pixels; floats pass."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def fit(
    kind: Literal["auto", "zca", "standardise"], pixels: Tensor, identity: str | None = None
) -> Transform:  # fmt: skip
    """Fit a transform to training pixels (N, C, H, W), uint8 or in [0, 1]; "auto" chooses by the images' size.

    ``identity`` tells these pixels from any others: with it ZCA's eigenvectors, ten seconds' work for CIFAR, are kept
    for the next time.

    Raises:
        PotstillError: the images are too large for ZCA.
    """
    if kind == "auto":
        kind = "zca" if pixels[0].numel() <= AUTO_VALUES else "standardise"
    if kind == "standardise":
        values = as_unit(pixels).transpose(0, 1).flatten(1).double()
        std = values.std(1).clamp_min(1e-3)  # a channel that never changes is only shifted
        return Transform(kind, values.mean(1).float(), std.float())
    flat = as_unit(pixels).flatten(1)
    if flat.shape[1] > MAX_VALUES:
        raise PotstillError(
            f"ZCA of images with {flat.shape[1]} values each needs a matrix of {flat.shape[1] ** 2 * 4 / 1e9:.0f} GB; "
            "use --transform standardise, or --resize to smaller images."
        )
    if identity is None:
        return _zca(flat)
    tensors, _ = once("zca", [VERSION, identity], lambda: (_zca(flat).tensors(), {}))
    return Transform.from_tensors("zca", tensors)


def _zca(flat: Tensor) -> Transform:
    mean = flat.mean(0)
    centred = flat - mean
    covariance = centred.T @ centred / max(len(flat) - 1, 1)
    scale, basis = torch.linalg.eigh(covariance.double())
    return Transform("zca", mean, scale.clamp_min(0).float(), basis.float().contiguous())  # as it is read back
