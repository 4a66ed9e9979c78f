"""The artefact: a synthetic set that carries everything needed to train on it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from potstill import files
from potstill.data import augment, export, hub, notebook
from potstill.data import dataset as datasets
from potstill.data import labels as kinds
from potstill.data import transform as transforms
from potstill.data.augment import Operation
from potstill.data.dataset import Dataset
from potstill.data.export import Content, Format
from potstill.data.labels import Kind, TargetKind
from potstill.data.pictures import grid, png
from potstill.data.transform import Transform
from potstill.errors import PotstillError
from potstill.process import own_state

__all__ = ["FILE", "KIND", "Distilled", "check", "decode", "grid", "load", "png", "upgrade"]

FILE = "distilled.safetensors"
KIND = "distilled set"
PADDING = 0.5  # of slots that tiles do not divide, as in the published code of IDC


@dataclass(frozen=True, eq=False, repr=False)
class Distilled:
    """A synthetic training set of n slots; slot i shows one image, or several, of class ``labels[i]``.

    Example:
        >>> distilled = potstill.load("runs/digits-ipc1")
        >>> for batch, soft_labels in distilled.loader(batch_size=4):
        ...     assert batch.shape[1:] == (1, 8, 8) and soft_labels.shape[1] == 10
        >>> distilled.export("a-folder")
    """

    images: Tensor  # (n, C, H, W) float32, transformed, may leave the range of real pixels
    targets: Tensor | None  # (n, K) float32 of the kind below; none for hard labels
    kind: Kind  # what the targets are
    labels: Tensor  # (n,) int64, the class of each slot
    step_size: float | None  # of SGD, for training on this set: learned, or chosen on validation images; or none
    transform: Transform  # brings test images to the space of these
    classes: tuple[str, ...]  # K names
    recipe: dict[str, Any]  # network and augmentation that the set was made with, and is trained with by default
    provenance: dict[str, Any]  # how it came to be: configuration, dataset fingerprint, iteration
    rows: Tensor | None = None  # (n,) int64, of the training split: where the images are selected real ones
    pictures: int = 1  # f: a slot decodes to f × f images, see :func:`decode`

    def __len__(self) -> int:
        """Slots, which is what a set is charged for; training sees pictures² times as many images."""
        return len(self.images)

    def __repr__(self) -> str:
        _, c, h, w = self.images.shape
        several = f", {self.pictures}×{self.pictures} pictures each" if self.pictures > 1 else ""
        step_size = "no step size" if self.step_size is None else f"step size {self.step_size:.4g}"
        return (
            f"Distilled({len(self)} images of {w}×{h}{' in colour' if c == 3 else f', {c} channels' if c > 1 else ''}"
            f"{several}, {len(self.classes)} classes, labels: {self.kind}, {step_size}, {self.transform.kind})"
        )

    @own_state()
    def _repr_html_(self) -> str | None:
        """For notebooks: the images by class, their labels, and figures; None where Pillow is missing."""
        try:
            return notebook.as_html(
                repr(self), self.provenance, self.classes, self.pixels, self.labels, self.soft_labels
            )
        except ImportError:
            return None

    @property
    def logits(self) -> Tensor:
        """Label logits (n, K): the learned ones, or as many as labels of another kind amount to."""
        return kinds.convert(self.targets, self.kind, self.labels, len(self.classes), "logits")

    @property
    @own_state()
    def soft_labels(self) -> Tensor:
        """Class probabilities (n, K) of the slots."""
        return kinds.probabilities(self.targets, self.kind, self.labels, len(self.classes))

    @property
    def pixels(self) -> Tensor:
        """The slots in true colours, uint8 (n, C, H, W); what leaves the range of pixels is clipped."""
        return self.transform.pixels(self.images)

    def decoded(self) -> Tensor:
        """The images that networks train on (n · pictures², C, H, W), those of a slot in a row."""
        return decode(self.images, self.pictures)

    @own_state()
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and their targets (N, K), ready to train on; N = n · pictures².

        The targets are probabilities (of learned logits, or one-hot of hard labels), or raw weights or values as they
        are; :attr:`target_kind` says which.
        """
        targets = self.targets if self.target_kind != "probabilities" else None
        return self.decoded(), self._by_picture(self.soft_labels if targets is None else targets)

    @property
    def target_kind(self) -> TargetKind:
        """The loss that networks train with on :meth:`tensors`."""
        return self.kind if self.kind == "raw" or self.kind == "values" else "probabilities"

    def _by_picture(self, of_slots: Tensor) -> Tensor:
        return of_slots.repeat_interleave(self.pictures**2, 0)

    def loader(
        self, batch_size: int = 128, shuffle: bool = True, augment: bool = True, **options: Any
    ) -> "DataLoader[Any]":  # fmt: skip
        """A DataLoader of what :meth:`tensors` gives, augmented as in distilling unless told otherwise.

        ``options`` go to the DataLoader: ``num_workers=2, multiprocessing_context="spawn"`` works too.
        """
        collate = Augmenting(tuple(self.recipe["augment"])) if augment else None
        rows = TensorDataset(*self.tensors())
        return DataLoader(rows, batch_size=batch_size, shuffle=shuffle, collate_fn=collate, **options)

    @own_state()
    def save(self, path: str | Path, compact: bool = False) -> None:
        """Write one self-describing file, atomically.

        ZCA's eigenvectors are rounded to 16 bits and those without effect left out: whitened images then differ by a
        root mean square of 2e-5, of zca-image 7e-5 (see :meth:`potstill.data.transform.Transform.packed`).

        Args:
            path: the file.
            compact: store images and targets in half precision, and leave ZCA's matrices out (11 or 17 MB for 32×32
                colour images); :func:`load` then fits them again and needs the dataset for that.

        Raises:
            PotstillError: the set is not one that :func:`check` accepts, NaN above all; nothing is written.
        """
        precision = torch.float16 if compact else torch.float32
        tensors = {"images": self.images.to(precision), "labels": self.labels}
        if self.targets is not None:
            tensors[self.kind] = self.targets.to(precision)
        if self.rows is not None:
            tensors["rows"] = self.rows
        if not compact or self.transform.basis is None:
            tensors |= self.transform.packed()
        header = {
            "step_size": self.step_size, "classes": list(self.classes), "transform": self.transform.kind,
            "labels": self.kind, "pictures": self.pictures, "recipe": self.recipe, "provenance": self.provenance,
        }  # fmt: skip
        check(tensors, header)
        files.write_tensors(Path(path), KIND, tensors, header)

    @own_state()
    def export(self, path: str | Path, rescale: bool = False, to: Format | None = None) -> None:
        """Write the set for other tools; the ending decides: .png, .npz, .parquet, .tar, or a folder of class folders.

        ``.npz`` keeps everything exactly (transformed images, labels, transform).  ``to="pt"`` writes images.pt,
        labels.pt and lr.pt into a folder, as DATM's evaluation and DD-Ranking read them.  The others hold pictures of
        8 bits in true colours, ``.tar`` as WebDataset: learned values outside of that range are clipped, which costs
        accuracy, and a log line says how many.  With ``rescale`` pictures hold the whole range of values instead, in
        other colours; the scale stands beside them.  A folder's ``soft_labels.json`` names its classes and files.

        Raises:
            PotstillError: another ending, or a folder that holds other files.
        """
        export.write(self.content(rescale), Path(path), to)

    @own_state()
    def content(self, rescale: bool = False) -> Content:
        """What an export holds, on the CPU: the images that networks train on, and their labels."""
        of_slots = (self.soft_labels, self.labels)
        soft_labels, labels = (self._by_picture(tensor.cpu()) for tensor in of_slots)
        targets = None if self.targets is None else self._by_picture(self.targets.cpu())
        return Content(
            self.decoded().cpu(),
            targets,
            self.kind,
            soft_labels,
            labels,
            self.classes,
            self.step_size,
            self.transform,
            rescale,
        )


@dataclass(frozen=True)
class Augmenting:
    """Collates rows into a batch and augments it by one drawn operation, seeded by torch's global generator."""

    operations: tuple[Operation, ...]

    @own_state()
    def __call__(self, rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Images (b, C, H, W) and their targets (b, ...)."""
        images, targets = torch.stack([image for image, _ in rows]), torch.stack([target for _, target in rows])
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        drawing = augment.draw(self.operations, len(rows), (images.shape[2], images.shape[3]), draws)
        return augment.apply(images, drawing), targets


def decode(images: Tensor, pictures: int) -> Tensor:
    """The f × f pictures that lie side by side in each slot, enlarged to its size; differentiable.

    (n, C, H, W) → (n · f², C, H, W) by bilinear interpolation, slot after slot, and in a slot row after row of tiles.
    Where f does not divide the size, the slot is padded below and at the right.  Kim et al., "Dataset Condensation via
    Efficient Synthetic-Data Parameterization" (IDC), ICML 2022; IDM and NCFM do the same.
    """
    if pictures == 1:
        return images
    n, c, h, w = images.shape
    height, width = math.ceil(h / pictures), math.ceil(w / pictures)
    padded = F.pad(images, (0, width * pictures - w, 0, height * pictures - h), value=PADDING)
    tiles = padded.view(n, c, pictures, height, pictures, width).permute(0, 2, 4, 1, 3, 5)
    return F.interpolate(tiles.reshape(-1, c, height, width), (h, w), mode="bilinear")


@own_state()
def load(path: str | Path, dataset: Any = None) -> Distilled:
    """Read a distilled set, from its file or from the folder of its run.

    Args:
        path: a distilled.safetensors, the folder it lies in, or hf://user/name (@revision) on the Hugging Face Hub.
        dataset: the data it was distilled from, as in ``potstill.distill``; only a compact file with ZCA needs it.

    Raises:
        PotstillError: missing, truncated, or not a distilled set; or compact, without its dataset.

    Example:
        >>> distilled = potstill.load("runs/digits-ipc1")
        >>> images, soft_labels = distilled.tensors()
    """
    path = hub.fetch(path, FILE) if hub.is_remote(path) else Path(path)
    tensors, header = files.read_tensors(path / FILE if path.is_dir() else path, KIND, upgrade=upgrade, check=check)
    _, c, h, w = tensors["images"].shape
    if "transform.mean" in tensors:
        transform = Transform.from_tensors(header["transform"], tensors, (c, h, w))
    else:
        transform = _refit(path, header, dataset)
    kind = header["labels"]
    return Distilled(
        images=tensors["images"].float(),
        targets=None if kind == "hard" else tensors[kind].float(),
        kind=kind,
        labels=tensors["labels"],
        step_size=header["step_size"],
        transform=transform,
        classes=tuple(header["classes"]),
        recipe=header["recipe"],
        provenance=header["provenance"],
        rows=tensors.get("rows"),
        pictures=header["pictures"],
    )


def upgrade(stored: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The header of a file of any earlier format as today's has it.

    0.1.0 (format 1) knew logits alone, one picture a slot; no two formats so far mean different things by the same
    header.
    """
    return {"labels": "logits", "pictures": 1, **stored}


def check(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Whether the contents of a file make a set: shapes that fit each other, finite values, labels within the classes.

    Raises:
        PotstillError: the first thing that is wrong, in a sentence.
    """
    for fault in _faults(tensors, header):
        raise PotstillError(fault)


def _faults(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Iterator[str]:
    """Sentences of value, reason, remedy; each may rely on those before it not having come."""
    for name in ("classes", "step_size", "transform", "recipe", "provenance"):
        if name not in header:
            yield f"header without {name!r}: is not that of a set; copy the file again or make it anew."
    kind, classes = header["labels"], len(header["classes"])
    if kind not in kinds.KINDS:
        yield f"labels {kind!r}: not a kind of labels; expected one of {', '.join(kinds.KINDS)}."
    needed = ("images", "labels") if kind == "hard" else ("images", "labels", kind)
    for name in needed:
        if name not in tensors:
            yield f"tensor {name!r}: is missing from the set; copy the file again or make it anew."
    images, labels = tensors["images"], tensors["labels"]
    if images.ndim != 4 or 0 in images.shape:
        yield f"images {_shape(images)}: a set holds at least one image, as (n, C, H, W); make it anew."
    yield from _faults_of_targets(tensors, kind, len(images), classes)
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        yield f"labels from {int(labels.min())} to {int(labels.max())}: there are {classes} classes, counted from 0."
    if "rows" in tensors and int(tensors["rows"].min()) < 0:
        yield f"rows down to {int(tensors['rows'].min())}: rows of the training split count from 0."
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            yield (
                f"{name}: {count} of {tensor.numel()} values are NaN or infinite; distil again with smaller steps"
                f"{', or save it without compact' if tensor.dtype == torch.float16 else ''}."
            )
    pictures, step_size, (_, c, h, w) = header["pictures"], header["step_size"], images.shape
    if not isinstance(pictures, int) or not 1 <= pictures <= min(h, w):
        yield f"pictures {pictures!r}: a slot of {w}×{h} pixels holds 1 to {min(h, w)} pictures a side."
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        yield f"step size {step_size}: must be above 0 and finite; leave it out (None) where none was learned."
    yield from _faults_of_transform(tensors, header["transform"], (c, h, w))


def _faults_of_targets(tensors: Mapping[str, Tensor], kind: Kind, n: int, classes: int) -> Iterator[str]:
    for name in ("labels", "rows"):
        if name in tensors and (tensors[name].shape != (n,) or tensors[name].is_floating_point()):
            tensor = tensors[name]
            yield f"{name} {_shape(tensor)} of {tensor.dtype}: {n} images need {n} whole numbers, one each."
    if kind == "hard":
        return
    if tensors[kind].shape != (n, classes):
        yield f"{kind} {_shape(tensors[kind])}: {n} images of {classes} classes need ({n}, {classes})."
    if kind == "raw" and bool((tensors[kind] < 0).any()):
        yield f"raw labels down to {float(tensors[kind].min()):g}: weights are not negative; clamp them at 0."


def _faults_of_transform(tensors: Mapping[str, Tensor], kind: str, shape: tuple[int, int, int]) -> Iterator[str]:
    if kind not in transforms.KINDS:
        yield f"transform {kind!r}: is not known to this version; expected one of {', '.join(transforms.KINDS)}."
    if "transform.mean" not in tensors:  # compact: it is fitted again
        return
    whitening = kind in transforms.WHITENING
    values = math.prod(shape) if whitening else shape[0]
    basis = tensors.get("transform.basis")
    packed = "transform.unit" in tensors or (basis is not None and not basis.is_floating_point())
    names = [*transforms.tensors_of(kind), *(["unit"] if packed else [])]
    for name in names:
        if f"transform.{name}" not in tensors:
            yield f"tensor 'transform.{name}': is missing from the set; copy the file again or make it anew."
    scale = tensors["transform.scale"]
    r = scale.numel() if whitening else values
    mean = () if kind == "zca-image" else (values,)
    expected = {"mean": mean, "scale": (r,), "basis": (values, r), "unit": (r,), "floor": (), "norm": ()}
    for name in names:
        if (tensor := tensors[f"transform.{name}"]).shape != expected[name]:
            yield f"transform.{name} {_shape(tensor)}: images {shape} need {expected[name]}; make the set anew."
    if not 1 <= r <= values:
        yield f"transform.scale {_shape(scale)}: images of {values} values have 1 to {values} eigenvectors."
    if "floor" in names and not float(tensors["transform.floor"]) > 0:
        yield f"transform.floor {float(tensors['transform.floor']):g}: must be above 0; make the set anew."


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _refit(path: Path, header: dict[str, Any], dataset: Any) -> Transform:
    """The transform that a compact file leaves out, fitted again on the training images it was fitted on."""
    if dataset is None:
        raise PotstillError(
            f"{path}: is compact and leaves its {header['transform']} transform out; say where the data lie that it "
            "was distilled from (--dataset, or potstill.load(path, dataset=...))."
        )
    config = header["provenance"]["config"]
    reading = {name: config[name] for name in datasets.OPTIONS if name in config}
    found = dataset if isinstance(dataset, Dataset) else datasets.load(dataset, **reading)
    if found.fingerprint != header["provenance"]["dataset"]["fingerprint"]:
        raise PotstillError(
            f"{found.name}: is not the data {path} was distilled from (fingerprint {found.fingerprint}, not "
            f"{header['provenance']['dataset']['fingerprint']}); give the original data."
        )
    return transforms.fit(header["transform"], found.train.images, found.fingerprint)
