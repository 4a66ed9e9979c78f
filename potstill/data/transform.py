"""The transform between stored pixels and what networks see: ZCA, of pixels or of images brought to one scale, or
per-channel standardising; with its inverse.

It is fitted on the training images alone, applied to everything, and travels inside every artefact.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.process import own_state
from potstill.store import once

log = logging.getLogger(__name__)

VERSION = 1  # of the fit; raised by hand whenever a change of the code changes what it gives
EPSILON = 0.1  # added to the eigenvalues; the published value for pixels in [0, 1]
RELATIVE_EPSILON = 0.1  # zca-image: the same, in units of the eigenvalues' mean (λ)
SMALLEST_NORM = 1e-3  # of an image about its mean, below a change of one grey level in one pixel (3e-3): it is constant
LEAST_MEAN = 1e-12  # of the eigenvalues, where no training image is anything but constant
AUTO_VALUES = 4096  # values an image up to which "auto" whitens by ZCA
MAX_VALUES = 4 * AUTO_VALUES  # beyond, the eigenvectors alone need over a gigabyte
PACKED_ERROR = 1e-5  # root mean square over whitened values that leaving eigenvectors out may cost
INT16 = 2**15 - 1
ROUNDING = 1e-5  # by which floats may leave [0, 1]: what resizing and averaging in float32 add
CHUNK = 10_000  # images whose second moments are summed at once

Kind = Literal["zca", "zca-image", "standardise"]
Choice = Literal["auto", Kind]
KINDS: tuple[Kind, ...] = get_args(Kind)
WHITENING = ("zca", "zca-image")  # kinds with eigenvectors
Levels = tuple[Tensor, Tensor]
"""Of images, the mean over all their values and the L2 norm about it, (N,) each, in pixels of [0, 1]."""


@dataclass(frozen=True, eq=False, repr=False)
class Transform:
    """x' = (x − mean) · T on flattened pixels x in [0, 1].

    ZCA: T = U (S + 0.1)^(−1/2) Uᵀ with the covariance U S Uᵀ over N − 1; standardising: T = diag(1 / std), one mean
    and deviation a channel.  Eigenvectors that are left out count as S = 0: T = U [(S + 0.1)^(−1/2) − 0.1^(−1/2)] Uᵀ
    + 0.1^(−1/2) I.

    zca-image, as RaT-BPTT and AT-BPTT apply it: every image, of training and test alike, is first brought to mean 0
    over all its values and to L2 norm 1, u = (x − x̄) / ‖x − x̄‖; then x' = u T with U S Uᵀ = Σ u uᵀ / N, not centred,
    and λ mean(S) with λ = 0.1 in place of 0.1.  KIP standardises the channels before that, which is left out here: on
    CIFAR-10 the images then have a cosine of 0.9995 to these.  FRePo and RCIG standardise the channels and subtract the
    mean image instead of scaling each one (cosine 0.996; to ours of kind "zca" 0.92).  Since mean(S) is 1 / (C·H·W), a
    whitened value has a mean square of mean(S / (S + λ mean(S))) over the eigenvalues, below 1 whatever the images: a
    root mean square of 0.53 on CIFAR-10, or a norm of 28 an image, where u has 0.018 and 1.
    """

    kind: Kind
    mean: Tensor  # zca: (C·H·W,); zca-image: (), mean brightness of the training images; standardise: (C,)
    scale: Tensor  # zca, zca-image: (r,) eigenvalues S; standardise: (C,) standard deviations
    basis: Tensor | None = None  # zca, zca-image: (C·H·W, r) eigenvectors U in columns, r ≤ C·H·W
    shape: tuple[int, int, int] | None = None  # (C, H, W) of the images it was fitted on, where that is known
    floor: Tensor | None = None  # zca-image: (), λ mean(S)
    norm: Tensor | None = None  # zca-image: (), mean norm of the training images about their means

    @own_state()
    def __call__(self, pixels: Tensor | np.ndarray) -> Tensor:
        """Whitened float32 images (N, C, H, W) from pixels (N, C, H, W).

        Args:
            pixels: whole numbers from 0 to 255 (of any integer type) or floats from 0 to 1, as a tensor or an array.

        Raises:
            PotstillError: another type, shape or order of axes, or values outside these ranges.
        """
        tensor = _as_tensor(pixels)
        self._check_shape(tensor)
        return self._map(as_unit(tensor), inverse=False)

    def __repr__(self) -> str:
        return f"Transform({self.kind}, fitted on {_axes(self.shape)})" if self.shape else f"Transform({self.kind})"

    @own_state()
    def invert(self, images: Tensor, levels: Levels | None = None) -> Tensor:
        """Pixels in about [0, 1] from whitened images; learned images may leave that range.

        zca-image forgets the mean and the norm of an image.  Those of :func:`levels` give the pixels back.  Without
        them each image is shown at the mean brightness and the mean norm of the training images, whatever its
        own scale: a real one differs from its pixels in brightness and contrast alone.  A synthetic one has no such
        pixels, and its scale means little: RaT-BPTT begins with noise of norm 1, and AT-BPTT keeps its images there,
        where real ones of CIFAR-10 have 28; all would be shown as grey.

        Raises:
            PotstillError: images of another size, or levels of a transform that forgets none.
        """
        if levels is not None and self.kind != "zca-image":
            raise PotstillError(f"levels: the transform {self.kind} keeps them in the images; leave them out.")
        return self._map(images, inverse=True, levels=levels)

    def apply(self, values: Tensor) -> Tensor:
        """Whitened images from float pixels (N, C, H, W) that may leave [0, 1], as learned ones do; undoes invert."""
        self._check_shape(values)
        return self._map(values, inverse=False)

    def pixels(self, images: Tensor) -> Tensor:
        """Whitened images in true colours, uint8; what leaves the range of pixels is clipped."""
        return (self.invert(images).clamp(0, 1) * 255).round().to(torch.uint8)

    def _check_shape(self, pixels: Tensor) -> None:
        """Raises PotstillError unless the pixels are (N, C, H, W), of the channels and size the transform can take."""
        found = tuple(pixels.shape)
        expected = _axes(("N", *self.shape)) if self.shape else "(N, C, H, W)"
        if len(found) != 4:
            remedy = "add the axis of the images (pixels[None])" if len(found) == 3 else "reshape them"
            raise PotstillError(f"pixels {_axes(found)}: the transform takes four axes, {expected}; {remedy}.")
        channels = self.shape[0] if self.shape else len(self.mean) if self.basis is None else None
        if channels is not None and found[1] != channels:
            if found[3] == channels:
                raise PotstillError(
                    f"pixels {_axes(found)}: their channels come last, the transform takes {expected}; move them: "
                    "permute(0, 3, 1, 2) of a tensor, transpose(0, 3, 1, 2) of an array."
                )
            raise PotstillError(
                f"pixels {_axes(found)}: {found[1]} channels, the transform was fitted on {channels}; give images "
                "of the same mode, grey or colour."
            )
        values = found[1] * found[2] * found[3]
        size_differs = self.shape is not None and found[1:] != self.shape
        if self.basis is not None and (size_differs or values != len(self.basis)):
            fitted = f"images {_axes(self.shape)}" if self.shape else f"{len(self.basis)}"
            raise PotstillError(
                f"pixels {_axes(found)}: images have {values} values each, the ZCA transform was fitted on {fitted}; "
                "resize them to the shape of the training images."
            )

    def _map(self, images: Tensor, *, inverse: bool, levels: Levels | None = None) -> Tensor:
        if self.basis is None:
            mean, scale = self.mean.to(images).view(-1, 1, 1), self.scale.to(images).view(-1, 1, 1)
            return images * scale + mean if inverse else (images - mean) / scale
        flat = images.flatten(1)
        if flat.shape[1] != len(self.basis):
            raise PotstillError(
                f"images have {flat.shape[1]} values each, the ZCA transform was fitted on {len(self.basis)}; "
                "resize them to the shape of the training images."
            )
        matrix = self._matrices[inverse].to(images)
        if self.kind == "zca-image":
            flat = self._with_levels(flat @ matrix, levels) if inverse else _at_one_scale(flat)[0] @ matrix
        else:
            mean = self.mean.to(images)
            flat = flat @ matrix + mean if inverse else (flat - mean) @ matrix
        return flat.view_as(images)

    def _with_levels(self, flat: Tensor, levels: Levels | None) -> Tensor:
        """Images (N, C·H·W) of norm 1 at the levels given, or any images at those of the training images."""
        if levels is None:
            assert self.norm is not None
            norms = flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)  # of nothing: all grey
            return flat / norms * self.norm.to(flat) + self.mean.to(flat)
        mean, norm = (level.to(flat).view(-1, 1) for level in levels)
        return flat * norm + mean

    @property
    def _floor(self) -> float:
        """What is added to the eigenvalues."""
        return EPSILON if self.floor is None else float(self.floor)

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        """ZCA's T and its inverse, (C·H·W, C·H·W) each; made once, for they cost more than a batch."""
        assert self.basis is not None
        root = (self.scale + self._floor).sqrt()
        if self.basis.shape[1] == len(self.basis):
            return (self.basis / root) @ self.basis.T, (self.basis * root) @ self.basis.T
        floor, one = self._floor**0.5, torch.eye(len(self.basis)).to(self.basis)
        forward = (self.basis * (1 / root - 1 / floor)) @ self.basis.T + one / floor
        return forward, (self.basis * (root - floor)) @ self.basis.T + one * floor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as they are, to store without loss."""
        found = {name: getattr(self, name) for name in ("mean", "scale", "basis", "floor", "norm")}
        return {f"transform.{name}": tensor for name, tensor in found.items() if tensor is not None}

    def packed(self) -> dict[str, Tensor]:
        """The tensors in less room, for artefacts: ZCA's leading eigenvectors, as whole numbers of 16 bits.

        Left out are eigenvectors whose S is so small beside what is added to it that all of them together change a
        whitened value by 1e-5 (root mean square).  On CIFAR-10 1745 of 3072 stay, 10.7 MB instead of 37.7.  Over its
        test images whitened values, whose deviation is 0.26, changed by 1.6e-5 (root mean square), at most by 2.6e-4;
        inverted they differed by at most 8e-5 of the range of pixels.

        zca-image adds sixteen times less beside its eigenvalues: 2769 of 3072 stay, 17.0 MB.  Whitened values, whose
        root mean square is 0.53, changed by 7.3e-5, nearly all of it by rounding, at most by 5.4e-4; inverted they
        differed by at most 4e-5.
        """
        if self.basis is None:
            return self.tensors()
        leading = self.leading()
        assert leading.basis is not None
        unit = leading.basis.abs().amax(0) / INT16  # (r,), what a step of the whole numbers is worth
        steps = (leading.basis / unit).round().to(torch.int16)
        return {**leading.tensors(), "transform.basis": steps, "transform.unit": unit}

    def leading(self, error: float = PACKED_ERROR) -> "Transform":
        """ZCA with only the eigenvectors needed for a root mean square error of whitened values below ``error``."""
        if self.basis is None or self.basis.shape[1] < len(self.basis):  # as it is, or cut already
            return self
        order = self.scale.argsort(descending=True)
        scale = self.scale[order].double()
        floor = self._floor
        lost = (floor**-0.5 - (scale + floor).rsqrt()).square() * scale / len(self.basis)  # mean square, by column
        following = lost.flip(0).cumsum(0).flip(0)  # what leaving this column and all smaller ones out costs
        order = order[: max(int((following > error**2).sum()), 1)]
        return replace(self, scale=self.scale[order], basis=self.basis[:, order].contiguous())

    def whole(self) -> "Transform":
        """The same ZCA with all C·H·W eigenvectors; those that were left out get S = 0."""
        if self.basis is None or self.basis.shape[1] == len(self.basis):
            return self
        r = self.basis.shape[1]
        others = torch.linalg.qr(self.basis.double(), mode="complete").Q[:, r:].to(self.basis)
        scale = torch.cat([self.scale, self.scale.new_zeros(others.shape[1])])
        return replace(self, scale=scale, basis=torch.cat([self.basis, others], 1))

    @classmethod
    def from_tensors(
        cls, kind: Any, tensors: dict[str, Tensor], shape: tuple[int, int, int] | None = None
    ) -> "Transform":  # fmt: skip
        """The transform that :meth:`tensors` or :meth:`packed` stored, fitted on images of ``shape`` (C, H, W)."""
        basis = tensors.get("transform.basis")
        if basis is not None and "transform.unit" in tensors:
            basis = basis.float() * tensors["transform.unit"]
        return cls(
            kind, tensors["transform.mean"], tensors["transform.scale"], basis, shape,
            tensors.get("transform.floor"), tensors.get("transform.norm"),
        )  # fmt: skip


def tensors_of(kind: str) -> tuple[str, ...]:
    """Names of the tensors that a transform of the kind is made of."""
    more = {"zca": ("basis",), "zca-image": ("basis", "floor", "norm"), "standardise": ()}
    return ("mean", "scale", *more[kind])


def levels(pixels: Tensor | np.ndarray) -> Levels:
    """What zca-image forgets of images (N, C, H, W), and :meth:`Transform.invert` takes back: their mean and norm.

    Raises:
        PotstillError: what is no picture, as by :func:`as_unit`.
    """
    return _at_one_scale(as_unit(_as_tensor(pixels)).flatten(1))[1:]


def _at_one_scale(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, D) with mean 0 and norm 1, and the mean and norm (N,) that they had; a constant image becomes 0.

    Norms below 1e-3 count as 1e-3.
    """
    mean = flat.mean(1, keepdim=True)
    centred = flat - mean
    rest = centred.mean(1, keepdim=True)  # of rounding, which would be all there is of a constant image
    centred = centred - rest
    norm = centred.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
    return centred / norm, (mean + rest).flatten(), norm.flatten()


def _as_tensor(pixels: Any) -> Tensor:
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind not in "uifb" or pixels.dtype.itemsize > 8:
            raise PotstillError(f"pixels of type {pixels.dtype}: are no plain numbers; convert them to uint8.")
        native = pixels.astype(pixels.dtype.newbyteorder("="))  # a copy, as torch takes no read-only or flipped arrays
        return torch.from_numpy(native)
    if not isinstance(pixels, Tensor):
        raise PotstillError(
            f"pixels of type {type(pixels).__name__}: the transform takes tensors and NumPy arrays (N, C, H, W); "
            "convert them first."
        )
    return pixels


def as_unit(pixels: Tensor) -> Tensor:
    """Float32 in [0, 1] from whole numbers of 0 to 255, or from floats that lie there already.

    Raises:
        PotstillError: truth values or complex numbers, or values outside these ranges, NaN included.
    """
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if pixels.dtype == torch.bool or pixels.is_complex():
        raise PotstillError(
            f"pixels of type {str(pixels.dtype).removeprefix('torch.')}: are no brightness; give uint8 from 0 to 255 "
            "or floats from 0 to 1."
        )
    whole = not pixels.is_floating_point()
    low, high = (float(value) for value in pixels.detach().aminmax()) if pixels.numel() else (0.0, 0.0)
    if whole and not (low >= 0 and high <= 255):
        raise PotstillError(f"pixels from {low:g} to {high:g}: whole numbers go from 0 to 255; rescale them.")
    if not whole and not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is in no range
        raise PotstillError(
            f"pixels from {low:g} to {high:g}: floats go from 0 to 1; divide them by 255 if they count to 255, clamp "
            "them if resizing overshot, and leave images alone that are transformed already."
        )
    return pixels.float() / 255 if whole else pixels.float()


def _axes(shape: Any) -> str:
    return f"({', '.join(map(str, shape))})"


def fit(
    kind: Choice, pixels: Tensor, identity: str | None = None
) -> Transform:  # fmt: skip
    """Fit a transform to training pixels (N, C, H, W), uint8 or in [0, 1]; "auto" chooses by the images' size.

    ``identity`` tells these pixels from any others: with it ZCA's eigenvectors, ten seconds' work for CIFAR, are kept
    for the next time.

    Raises:
        PotstillError: the images are too large for ZCA, or are no pixels (N, C, H, W).
    """
    if pixels.ndim != 4:
        raise PotstillError(f"pixels {_axes(pixels.shape)}: a transform is fitted on (N, C, H, W); reshape them.")
    _, c, h, w = pixels.shape
    if kind == "auto":
        kind = "zca" if c * h * w <= AUTO_VALUES else "standardise"
    if kind == "standardise":
        values = as_unit(pixels).transpose(0, 1).flatten(1).double()
        std = values.std(1).clamp_min(1e-3)  # a channel that never changes is only shifted
        return Transform(kind, values.mean(1).float(), std.float(), shape=(c, h, w))
    flat = as_unit(pixels).flatten(1)
    if flat.shape[1] > MAX_VALUES:
        raise PotstillError(
            f"ZCA of images with {flat.shape[1]} values each needs a matrix of {flat.shape[1] ** 2 * 4 / 1e9:.0f} GB; "
            "use --transform standardise, or --resize to smaller images."
        )
    make = _zca if kind == "zca" else _zca_image
    if identity is None:
        return Transform.from_tensors(kind, make(flat), (c, h, w))
    of_kind = [] if kind == "zca" else [kind]  # zca goes unnamed, as in what was kept before there were two kinds
    tensors, _ = once("zca", [VERSION, identity, *of_kind], lambda: (make(flat), {}))
    return Transform.from_tensors(kind, tensors, (c, h, w))


def _zca(flat: Tensor) -> dict[str, Tensor]:
    mean = flat.mean(0)
    centred = flat - mean
    covariance = centred.T @ centred / max(len(flat) - 1, 1)
    scale, basis = _eigenvectors(covariance.double())
    scale, basis = scale.clamp_min(0).float(), basis.float().contiguous()  # as they are read back
    return Transform("zca", mean, scale, basis).tensors()


def _eigenvectors(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), ascending, and eigenvectors (D, D) of a symmetric matrix; where that is long, it is said."""
    if len(moment) > AUTO_VALUES:
        log.info("whitening images of %d values each: eigenvectors take minutes", len(moment))
    values, vectors = torch.linalg.eigh(moment)
    return values, vectors


def _zca_image(flat: Tensor) -> dict[str, Tensor]:
    count, d = flat.shape
    moment, brightness, norms = flat.new_zeros((d, d), dtype=torch.float64), 0.0, 0.0
    for part in flat.split(CHUNK):
        scaled, mean, norm = _at_one_scale(part)
        moment += scaled.T @ scaled
        brightness += float(mean.double().sum())
        norms += float(norm.double().sum())
    scale, basis = _eigenvectors(moment / max(count, 1))
    scale = scale.clamp_min(0)
    floor = RELATIVE_EPSILON * scale.mean().clamp_min(LEAST_MEAN)
    mean, norm = (flat.new_tensor(total / max(count, 1)) for total in (brightness, norms))
    return Transform(
        "zca-image", mean, scale.float(), basis.float().contiguous(), floor=floor.float(), norm=norm
    ).tensors()  # fmt: skip
