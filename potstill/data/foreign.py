"""Sets that other code published, as they lie in its files: .pt of MTT, TESLA and DATM, .npz of FRePo and RCIG.

images_best.pt  (n, C, H, W) floats, as networks saw them                            MTT, TESLA, DATM
labels_best.pt  (n,) whole numbers, or (n, K) logits z of the soft labels softmax(z) MTT and TESLA, or DATM
lr_best.pt      one number, the learned step size                                    DATM
step500000.npz  image (n, H, W, C) and label (n, K), values of the squared error     FRePo; RCIG's are of its arrays

What a tensor is follows from its shape, not from the file's name.  No pickle is executed: PyTorch reads .pt files with
``weights_only=True``, which makes tensors and plain containers and refuses all else.
"""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data import transform as transforms
from potstill.data.dataset import Dataset
from potstill.data.labels import Kind
from potstill.data.transform import Transform
from potstill.errors import PotstillError
from potstill.files import fingerprint

Space = Literal["zca", "standardise", "frepo", "pixels"]
"""What the images of a published set were brought to.

zca          kornia's whitening by S + 0.1, fitted on all training images      MTT, TESLA, DATM with --zca
standardise  (x − mean) / std of each channel                                  the same without
frepo        standardised, then whitened by S + 0.1 tr(S) / D                  FRePo, RCIG
pixels       0 to 1                                                            images_zca_*.pt, RCIG's pictures
"""
FREPO_EPSILON = 0.1  # beside the mean eigenvalue; published as zca_reg
NAMES = (("image", "label"), ("images", "labels"), ("x_proto", "y_proto"), ("coreset_images", "coreset_labels"))
ROUNDING = 1e-3  # by which rows of probabilities may miss their sum of 1


@dataclass(frozen=True)
class Foreign:
    """A published set."""

    images: Tensor  # (n, C, H, W) float32, in some :data:`Space`
    targets: Tensor | None  # (n, K) of the kind; none for hard labels
    kind: Kind
    labels: Tensor  # (n,) int64
    step_size: float | None


# --- files ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    """What a .pt or .npz file holds: tensors, arrays by name, or containers of them.

    Raises:
        PotstillError: it is missing, damaged, or holds what only executing a pickle could make.
    """
    if not path.is_file():
        raise PotstillError(f"{path}: there is no such file; check the path.")
    try:
        return _arrays(path) if _is_arrays(path) else _tensors(path)
    except MemoryError:
        raise
    except Exception as error:  # of a dozen kinds, by which byte is damaged
        told = str(error).strip().splitlines() or [type(error).__name__]
        if _is_arrays(path):
            raise PotstillError(f"{path}: not a readable .npz file of arrays ({told[0]}); get it again.") from error
        reason = "it holds more than these" if isinstance(error, pickle.UnpicklingError) else told[0]
        raise PotstillError(
            f"{path}: not a PyTorch file of tensors ({reason}); no pickle is executed here, so save its tensors alone: "
            "torch.save(tensor, path)."
        ) from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _tensors(path: Path) -> Any:
    """Mapped where the format allows it: ten experts of a hundred epochs are over a gigabyte."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _is_arrays(path: Path) -> bool:
    """Whether a file is one of NumPy's, as FRePo writes: channels last, values instead of logits."""
    return path.suffix.lower() == ".npz"


def holds_experts(content: Any) -> bool:
    """Whether a file's content is a replay buffer: experts, of epochs, of parameters."""
    inside = content
    for _ in range(2):
        if not isinstance(inside, list | tuple) or not inside:
            return False
        inside = inside[0]
    return isinstance(inside, list | tuple) and bool(inside) and isinstance(inside[0], Tensor)


# --- sets ----------------------------------------------------------------------------------------------------------


def read_set(contents: Mapping[Path, Any], classes: int) -> Foreign:
    """The set that some files make together.

    Args:
        contents: what :func:`load` gave, by file.
        classes: K, of the dataset.

    Raises:
        PotstillError: images or labels are missing or twice there, or do not fit each other.
    """
    found: dict[str, tuple[Path, Tensor]] = {}
    for path, content in contents.items():
        for role, tensor in _roles(path, content):
            if role in found:
                raise PotstillError(f"{path}: holds {role}, and so does {found[role][0]}; give the files of one set.")
            found[role] = (path, tensor)
    for role in ("images", "labels"):
        if role not in found:
            raise PotstillError(
                f"{', '.join(map(str, contents))}: no {role} among these; a set is images (four axes) and labels (one "
                "a row), and perhaps a step size: give images_best.pt labels_best.pt lr_best.pt."
            )
    (where, images), (beside, labels) = found["images"], found["labels"]
    if len(images) != len(labels):
        raise PotstillError(
            f"{where}: {len(images)} images, but {beside} holds labels of {len(labels)}; give the files of one set."
        )
    targets, kind = _targets(beside, labels, classes, "values" if _is_arrays(beside) else "logits")
    step_size = float(found["lr"][1]) if "lr" in found else None
    if step_size is not None and not step_size > 0:
        raise PotstillError(f"{found['lr'][0]}: a step size of {step_size:g}; it must be above 0: leave the file out.")
    return Foreign(images, targets, kind, _classes_of(labels, classes), step_size)


def _roles(path: Path, content: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a file, each with what it is: "images", "labels" or "lr"."""
    if isinstance(content, Mapping):
        for names in NAMES:
            if set(names) <= set(content):
                images, labels = (torch.as_tensor(content[name]) for name in names)
                if _is_arrays(path) and images.ndim == 4:
                    images = images.permute(0, 3, 1, 2)
                return [*_roles(path, images), *_roles(path, labels)]
        raise PotstillError(
            f"{path}: holds {', '.join(map(str, list(content)[:5]))}; a set's arrays are called "
            f"{' or '.join('/'.join(names) for names in NAMES)}: save them so."
        )
    if isinstance(content, int | float):
        content = torch.tensor(float(content))
    if isinstance(content, Tensor):
        tensor = content.detach()
        if tensor.ndim == 4 and tensor.is_floating_point():
            return [("images", tensor.float().contiguous())]
        if tensor.ndim == 2 or (tensor.ndim == 1 and not tensor.is_floating_point()):
            return [("labels", tensor)]
        if tensor.numel() == 1:
            return [("lr", tensor.reshape(()))]
        raise PotstillError(
            f"{path}: a tensor {tuple(tensor.shape)} of {tensor.dtype}, which is no images (n, C, H, W), labels (n,) "
            "or (n, K), or step size; give the files of a set."
        )
    raise PotstillError(f"{path}: holds a {type(content).__name__}, not the tensors of a set; give its files.")


def _targets(path: Path, labels: Tensor, classes: int, learned: Kind) -> tuple[Tensor | None, Kind]:
    """Targets of labels as they were written, and their kind; numbers that are no probabilities are ``learned``."""
    if labels.ndim == 1:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise PotstillError(
                f"{path}: labels from {low} to {high}, but the dataset has {classes} classes; give its."
            )
        return None, "hard"
    if labels.shape[1] != classes:
        raise PotstillError(
            f"{path}: labels of {labels.shape[1]} classes, but the dataset has {classes}; give the dataset it was "
            "distilled from."
        )
    rows = labels.float()
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < ROUNDING).all()):
        return rows, "raw"  # probabilities
    return rows, learned


def _classes_of(labels: Tensor, classes: int) -> Tensor:
    """The class of each image: published sets lie in the order of their classes, whatever their labels have learned."""
    if labels.ndim == 1:
        return labels.long()
    largest = labels.argmax(1)
    if len(labels) % classes == 0:
        in_order = torch.arange(classes).repeat_interleave(len(labels) // classes)
        if float((in_order == largest).float().mean()) > 0.5:
            return in_order
    return largest


# --- spaces --------------------------------------------------------------------------------------------------------


def placed(
    found: Foreign, space: Space, dataset: Dataset, own: Transform, mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> tuple[Tensor, Transform]:  # fmt: skip
    """Images (n, C, H, W) as networks see them, and the transform that brings test images to the same space.

    Images of ``zca`` and ``standardise`` stay as they are, with the transform that the authors fitted: on all training
    images, those kept aside here included.  Those of ``frepo`` go back to pixels by the inverse of its whitening, and
    with those of ``pixels`` through our own transform: the pictures are the authors', the whitening is not.

    Args:
        found: the set.
        space: what its images were brought to.
        dataset: that it was distilled from.
        own: our transform of the dataset.
        mean: of each channel, where the authors took other numbers than those of the training images.
        std: likewise.

    Raises:
        PotstillError: the images are not of the dataset's shape.
    """
    if tuple(found.images.shape[1:]) != dataset.shape:
        raise PotstillError(
            f"images {tuple(found.images.shape[1:])}: those of {dataset.name} are {dataset.shape}; give the dataset "
            "the set was distilled from, or --resize it."
        )
    if len(mean) != len(std) or len(mean) not in (0, dataset.shape[0]):
        raise PotstillError(
            f"mean {' '.join(map(str, mean))}, std {' '.join(map(str, std))}: give as many of each as the "
            f"{dataset.shape[0]} channels, or neither."
        )
    training = torch.cat([dataset.train.images, dataset.val.images])
    if space == "zca":
        identity = fingerprint(dataset.fingerprint, "with the validation images")
        return found.images, transforms.fit("zca", training, identity)
    if space == "pixels":
        return own.apply(found.images), own
    fitted = transforms.fit("standardise", training)
    if mean:
        fitted = Transform("standardise", torch.tensor(mean), torch.tensor(std), shape=dataset.shape)
    if space == "standardise":
        return found.images, fitted
    return own.apply(fitted.invert(frepo_inverse(found.images, fitted(training)))), own


def frepo_inverse(images: Tensor, training: Tensor) -> Tensor:
    """Standardised images (n, C, H, W) from those that FRePo's code whitened.

    x' = (x − m) U (S + ε)^(−1/2) Uᵀ with the covariance U S Uᵀ over N of standardised training images, their mean m and
    ε = 0.1 tr(S) / D (Zhou et al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022).  The order of
    the axes bears on nothing, for U follows it.

    Args:
        images: whitened.
        training: (N, C, H, W) standardised.

    Raises:
        PotstillError: N < D, where their code counts eigenvalues past the N largest as 1, and which these are among
            those of 0 is chance.
    """
    flat = training.flatten(1)
    if len(flat) < flat.shape[1]:
        raise PotstillError(
            f"space frepo: its whitening of {len(flat)} training images with {flat.shape[1]} values each is not "
            "determined by them; bring the images to pixels by the authors' code and import these: --space pixels."
        )
    mean = flat.mean(0)
    centred = flat - mean
    scale, basis = torch.linalg.eigh((centred.T @ centred / len(flat)).double())
    roots = (scale + FREPO_EPSILON * scale.mean()).clamp_min(0).sqrt()
    matrix = ((basis * roots) @ basis.T).float()
    return (images.flatten(1) @ matrix + mean).view_as(images)
