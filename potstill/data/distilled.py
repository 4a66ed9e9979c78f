"""The artefact: a synthetic set that carries everything needed to train on it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from potstill import files
from potstill.data import dataset as datasets
from potstill.data import labels
from potstill.data import transform as transforms
from potstill.data.labels import Kind
from potstill.data.transform import Transform
from potstill.errors import PotstillError

FILE = "distilled.safetensors"
KIND = "distilled set"


@dataclass(frozen=True)
class Distilled:
    """A synthetic training set; row i shows an image of class ``labels[i]``."""

    images: Tensor  # (n, C, H, W) float32, whitened, may leave the range of real pixels
    targets: Tensor | None  # (n, K) labels of the kind below; none where it is "hard"
    kind: Kind
    labels: Tensor  # (n,) the class each slot began with
    step_size: float | None  # of SGD, for training on this set: learned, or chosen on validation images; or none
    transform: Transform  # whitens test images as these were whitened
    classes: tuple[str, ...]
    recipe: dict[str, Any]  # network and augmentation that the set was made with, and is trained with by default
    provenance: dict[str, Any]  # how it came to be: configuration, dataset fingerprint, iteration
    rows: Tensor | None = None  # (n,) of the real training images, where they were selected

    def __len__(self) -> int:
        return len(self.images)

    @property
    def soft_labels(self) -> Tensor:
        """Class probabilities (n, K)."""
        return labels.probabilities(self.targets, self.kind, self.labels, len(self.classes))

    @property
    def pixels(self) -> Tensor:
        """The images in true colours, uint8 (n, C, H, W); what leaves the range of pixels is clipped."""
        return self.transform.pixels(self.images)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) and targets (n, K) to train on: raw weights and values as they are, else probabilities."""
        if self.targets is not None and self.kind in ("raw", "values"):
            return self.images, self.targets
        return self.images, self.soft_labels

    def loader(self, batch_size: int = 128, shuffle: bool = True, augment: bool = True) -> "DataLoader[Any]":
        """A DataLoader of (images, soft labels), augmented as in distilling unless told otherwise."""
        collate = _augmenting(self.recipe["augment"]) if augment else None
        return DataLoader(TensorDataset(*self.tensors()), batch_size=batch_size, shuffle=shuffle, collate_fn=collate)

    def save(self, path: str | Path, compact: bool = False) -> None:
        """Write one self-describing file, atomically.

        Args:
            path: the file.
            compact: store images and logits in half precision, and leave ZCA's matrices out (37 MB for 32×32 colour
                images); :func:`load` then fits them again and needs the dataset for that.
        """
        kind = torch.float16 if compact else torch.float32
        tensors = {"images": self.images.to(kind), "labels": self.labels}
        if self.targets is not None:
            tensors["targets"] = self.targets.to(kind)
        if self.rows is not None:
            tensors["rows"] = self.rows
        left_out = compact and self.transform.basis is not None
        header = {
            "labels": self.kind, "step_size": self.step_size, "classes": list(self.classes), "transform": self.transform.kind,
            "recipe": self.recipe, "provenance": self.provenance,
        }  # fmt: skip
        files.save(Path(path), KIND, tensors | ({} if left_out else self.transform.tensors()), header)

    def export(self, path: str | Path) -> None:
        """Write the set for other tools; the ending decides: .png, .npz, .parquet, or a folder of class folders.

        ``.npz`` keeps everything exactly (whitened images, soft labels, transform); the others hold true-colour
        pixels, clipped to 8 bits, and so lose a little.
        """
        _export(self, Path(path))


def load(path: str | Path, dataset: str | Path | None = None) -> Distilled:
    """Read a distilled set, from its file or from the folder of its run.

    Args:
        path: a distilled.safetensors or the folder it lies in.
        dataset: the data it was distilled from, as ``--dataset``; only a compact file with ZCA needs it.

    Raises:
        PotstillError: missing, truncated, or not a distilled set; or compact, without its dataset.

    Example:
        >>> distilled = potstill.load("runs/digits-ipc1")
        >>> images, soft_labels = distilled.tensors()
    """
    path = Path(path)
    tensors, header = files.load(path / FILE if path.is_dir() else path, KIND)
    complete = "transform.mean" in tensors
    transform = Transform.from_tensors(header["transform"], tensors) if complete else _refit(path, header, dataset)
    return Distilled(
        images=tensors["images"].float(),
        targets=tensors[name].float() if (name := "targets" if "targets" in tensors else "logits") in tensors else None,
        kind=header.get("labels", "logits"),
        rows=tensors.get("rows"),
        labels=tensors["labels"],
        step_size=header["step_size"],
        transform=transform,
        classes=tuple(header["classes"]),
        recipe=header["recipe"],
        provenance=header["provenance"],
    )


def _refit(path: Path, header: dict[str, Any], dataset: str | Path | None) -> Transform:
    """The transform that a compact file leaves out, fitted again on the training images it was fitted on."""
    if dataset is None:
        raise PotstillError(
            f"{path}: is compact and leaves its {header['transform']} transform out; say where the data lie that it "
            "was distilled from (--dataset, or potstill.load(path, dataset=...))."
        )
    config = header["provenance"]["config"]
    found = datasets.load(
        str(dataset), validation=config["validation"], resize=config["resize"], label_column=config["label_column"]
    )
    if found.fingerprint != header["provenance"]["dataset"]["fingerprint"]:
        raise PotstillError(
            f"{dataset}: is not the data {path} was distilled from (fingerprint {found.fingerprint}, not "
            f"{header['provenance']['dataset']['fingerprint']}); give the original data."
        )
    return transforms.fit(header["transform"], found.train.images, found.fingerprint)


def _augmenting(operations: Any) -> Callable[[list[tuple[Tensor, Tensor]]], tuple[Tensor, Tensor]]:
    """A collate function that augments each batch by one drawn operation, seeded by torch's global generator."""
    from potstill.data import augment

    def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, targets = torch.stack([image for image, _ in rows]), torch.stack([target for _, target in rows])
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        drawing = augment.draw(operations, len(rows), (images.shape[2], images.shape[3]), draws)
        return augment.apply(images, drawing), targets

    return collate


def _export(distilled: Distilled, path: Path) -> None:
    import io

    import numpy as np

    pixels = distilled.pixels.permute(0, 2, 3, 1).numpy()
    if path.suffix == ".png":
        return files.write_bytes(path, png(grid(distilled.pixels, distilled.labels)))
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        transform: dict[str, Any] = {
            name.replace(".", "_"): value.numpy() for name, value in distilled.transform.tensors().items()
        }
        np.savez(
            buffer, images=distilled.images.numpy(), soft_labels=distilled.soft_labels.numpy(), pixels=pixels,
            labels=distilled.labels.numpy(), classes=np.array(distilled.classes), step_size=distilled.step_size,
            **transform,
        )  # fmt: skip
        return files.write_bytes(path, buffer.getvalue())
    encoded = [png(image) for image in distilled.pixels]
    if path.suffix == ".parquet":
        return files.write_bytes(path, _parquet(distilled, encoded))
    if path.suffix:
        raise PotstillError(f"{path}: cannot export to {path.suffix!r}; use .png, .npz, .parquet or a folder.")
    for number, (content, label) in enumerate(zip(encoded, distilled.labels.tolist(), strict=True)):
        name = re.sub(r"[/\\]|^\.+$", "_", distilled.classes[label])  # a class named ".." stays inside the folder
        files.write_bytes(path / name / f"{number:05d}.png", content)
    return files.write_json(path / "soft_labels.json", distilled.soft_labels.tolist())


def _parquet(distilled: Distilled, encoded: list[bytes]) -> bytes:
    import io
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": content, "path": None} for content in encoded], image)
    columns = {
        "image": rows,
        "label": pa.array(distilled.labels.tolist()),
        "soft_label": pa.array(distilled.soft_labels.tolist()),
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(distilled.classes), "_type": "ClassLabel"},
        "soft_label": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"},
    }
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def png(image: Tensor, scale: int = 1) -> bytes:
    """PNG bytes of one uint8 image (C, H, W), grey or colour, each pixel drawn ``scale`` pixels wide."""
    import io

    from PIL import Image

    array = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def grid(pixels: Tensor, labels: Tensor, most: int = 10, gap: int = 2) -> Tensor:
    """One uint8 image of the set, enlarged to be seen: a row a class, ``most`` images at most; single ones abreast."""
    c, h, w = pixels.shape[1:]
    scale = max(1, 64 // h)
    rows = [pixels[labels == label][:most] for label in range(int(labels.max()) + 1)]
    if all(len(row) == 1 for row in rows):
        rows = list(torch.cat(rows).split(most))
    columns = max(len(row) for row in rows)
    canvas = pixels.new_full((c, len(rows) * (h * scale + gap) + gap, columns * (w * scale + gap) + gap), 255)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = gap + i * (h * scale + gap), gap + j * (w * scale + gap)
            canvas[:, y : y + h * scale, x : x + w * scale] = image.repeat_interleave(scale, 1).repeat_interleave(
                scale, 2
            )
    return canvas
