"""A synthetic set for other tools: arrays, tensors, Parquet, WebDataset shards, a folder of class folders, one picture.

Only ``.npz`` and the tensors of ``pt`` are exact.  Pictures hold whole numbers from 0 to 255 in true colours, and
learned images leave that range: of a set of CIFAR-10 whitened by ZCA 77 % of the values were clipped, and networks came
to 23 instead of 48 %.  Rescaled pictures hold the whole range, rounded to one of 256 values.  Of the transform
zca-image, pictures have the mean brightness and contrast of the training images, see
:meth:`potstill.data.transform.Transform.invert`.
"""

import io
import json
import logging
import re
import tarfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill import files
from potstill.data import labels as kinds
from potstill.data.labels import Kind
from potstill.data.pictures import grid, png
from potstill.data.transform import Transform
from potstill.errors import PotstillError

log = logging.getLogger(__name__)

Format = Literal["npz", "pt", "parquet", "webdataset", "png", "folder"]
ENDINGS: dict[str, Format] = {
    ".npz": "npz", ".parquet": "parquet", ".tar": "webdataset", ".png": "png", "": "folder",
}  # fmt: skip
SHARD = 10_000  # images of a WebDataset shard
SOFT_LABELS = "soft_labels.json"
WORTH_SAYING = 0.005  # fraction of clipped values from which on a log line says so
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f]|^\.*$")  # no separators in a folder's name, and none such as ".."


@dataclass(frozen=True, eq=False)
class Content:
    """What is exported: N images as networks train on them."""

    images: Tensor  # (N, C, H, W) float32, transformed
    targets: Tensor | None  # (N, K) of the kind, or none for hard labels
    kind: Kind
    soft_labels: Tensor  # (N, K) probabilities
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...]
    step_size: float | None
    transform: Transform
    rescale: bool = False  # pictures hold the whole range of values, and say what it is

    @cached_property
    def values(self) -> Tensor:
        """True colours (N, C, H, W) float32, where pictures hold 0 to 1."""
        return self.transform.invert(self.images)

    @property
    def scale(self) -> tuple[float, float]:
        """What the pictures' 0 and 255 stand for."""
        return (float(self.values.min()), float(self.values.max())) if self.rescale else (0.0, 1.0)

    @property
    def pixels(self) -> Tensor:
        """Pictures (N, C, H, W) uint8: true colours, clipped, or rescaled so that nothing is."""
        if not self.rescale:
            return self.transform.pixels(self.images)
        low, high = self.scale
        return ((self.values - low) * (255 / max(high - low, 1e-12))).round().clamp(0, 255).to(torch.uint8)

    @property
    def clipped(self) -> float:
        """Fraction of values that lie outside of what the pictures can hold, by more than rounding."""
        low, high = self.scale
        margin = (high - low) / 510
        return float(((self.values < low - margin) | (self.values > high + margin)).float().mean())


def write(content: Content, path: Path, to: Format | None = None) -> None:
    """Write in a format, by default in the one that the ending says, in upper or lower case; without one, a folder.

    Raises:
        PotstillError: an ending that is not known; a folder that holds other files.
    """
    match to or _format_of(path):
        case "png":
            files.write_bytes(path, png(grid(content.pixels, content.labels)))
        case "npz":
            files.write_bytes(path, _arrays(content))
        case "pt":
            _tensors(content, path)
        case "parquet":
            files.write_bytes(path, parquet(content))
            _say_what_was_clipped(content, path)
        case "webdataset":
            _shards(content, path)
            _say_what_was_clipped(content, path)
        case "folder":
            _folder(content, path)
            _say_what_was_clipped(content, path)


def _format_of(path: Path) -> Format:
    """The format that a path's ending says."""
    ending = "" if path.is_dir() else path.suffix.lower()
    if ending == ".pt":
        raise PotstillError(f"{path}: the published code reads three .pt files; give a folder and --to pt.")
    if ending not in ENDINGS:
        known = ", ".join(filter(None, ENDINGS))
        raise PotstillError(f"{path}: cannot export to {path.suffix!r}; use {known}, a folder, or say it by --to.")
    return ENDINGS[ending]


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder name for each class, its own where it can be one, and no two alike (not even on disks blind to case)."""
    clean = [_FORBIDDEN.sub("_", name) for name in classes]
    taken, names = {SOFT_LABELS}, list(clean)
    for k in sorted(range(len(classes)), key=lambda k: clean[k] != classes[k]):  # whose name fits keeps it
        number = 1
        while (key := unicodedata.normalize("NFC", names[k]).casefold()) in taken:
            number += 1
            names[k] = f"{clean[k]}-{number}"
        taken.add(key)
    return names


def _say_what_was_clipped(content: Content, path: Path) -> None:
    if (fraction := content.clipped) > WORTH_SAYING:
        log.warning(
            "%s: %.0f %% of the values leave the range of pictures and are clipped, so networks learn less from it; "
            "--rescale keeps them (in other colours), and .npz all of it exactly", path, 100 * fraction,
        )  # fmt: skip


def _folder(content: Content, path: Path) -> None:
    """Class folders of PNG files, and beside them the soft labels with the names of their columns and rows.

    ``soft_labels.json`` is {"classes": [K names], "folders": [K folder names], "scale": [low, high], "rows": {file
    name: [K probabilities]}}.  Its columns follow "classes", whatever order another tool sorts the folders in.  Values
    of 0 and 255 in a picture stand for low and high: 0 and 1, unless they were rescaled.
    """
    folders = folder_names(content.classes)
    names = [f"{folders[label]}/{number:05d}.png" for number, label in enumerate(content.labels.tolist())]
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    if others := sorted(there - set(names) - {SOFT_LABELS}):
        raise PotstillError(
            f"{path}: holds {len(others)} other files ({others[0]}, ...), which would mix with the set; export to a "
            "new folder, or empty this one."
        )
    for name, image in zip(names, content.pixels, strict=True):
        files.write_bytes(path / name, png(image))
    rows = dict(zip(names, content.soft_labels.tolist(), strict=True))
    told = {"classes": list(content.classes), "folders": folders, "scale": list(content.scale), "rows": rows}
    files.write_json(path / SOFT_LABELS, told)


def _arrays(content: Content) -> bytes:
    """All of it in NumPy arrays, which need nothing of ours.

    ``transform_kind`` zca: x' = (x − mean) U (S + 0.1)^(−1/2) Uᵀ, with U ``transform_basis`` and S ``transform_scale``.
    zca-image: x' = u U (S + floor)^(−1/2) Uᵀ, where u is an image less its own mean over all values, divided by its
    own norm; ``transform_mean`` and ``transform_norm`` are those that pictures are shown at.
    """
    optional: dict[str, Any] = {
        "targets": None if content.targets is None else content.targets.numpy(), "step_size": content.step_size,
    }  # fmt: skip
    transform: dict[str, Any] = {
        name.replace(".", "_"): value.numpy() for name, value in content.transform.whole().tensors().items()
    } | {"transform_kind": np.array(content.transform.kind)}
    buffer = io.BytesIO()
    np.savez(
        buffer, images=content.images.numpy(), soft_labels=content.soft_labels.numpy(), kind=np.array(content.kind),
        pixels=content.transform.pixels(content.images).permute(0, 2, 3, 1).numpy(), labels=content.labels.numpy(),
        classes=np.array(content.classes), **{k: v for k, v in optional.items() if v is not None}, **transform,
    )  # fmt: skip
    return buffer.getvalue()


def parquet(content: Content) -> bytes:
    """A table in the Hugging Face convention: image (PNG bytes), label, soft_label; its metadata hold the scale."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array([{"bytes": png(picture), "path": None} for picture in content.pixels], image),
        "label": pa.array(content.labels.tolist()),
        "soft_label": pa.array(content.soft_labels.tolist()),
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(content.classes), "_type": "ClassLabel"},
        "soft_label": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"},
    }
    told = {"huggingface": json.dumps({"info": {"features": features}}), "scale": json.dumps(content.scale)}
    table = pa.table(columns).replace_schema_metadata(told)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _tensors(content: Content, folder: Path) -> None:
    """images.pt, labels.pt and lr.pt, as DATM's ``evaluation.py`` and DD-Ranking read them.

    Images (N, C, H, W) are transformed.  Labels are logits (N, K), of which both take the softmax, or classes (N,)
    int64 where they are hard, as MTT writes them.  Rows are in the order of their classes, which DD-Ranking takes for
    granted.  The step size is a tensor without axes; there may be none.
    """
    if content.kind == "hard":
        labels = content.labels
    else:
        labels = kinds.convert(content.targets, content.kind, content.labels, len(content.classes), "logits")
    order = content.labels.argsort(stable=True)
    found = {"images": content.images[order], "labels": labels[order]}
    (folder / "lr.pt").unlink(missing_ok=True)  # that of another set
    if content.step_size is not None:
        found["lr"] = torch.tensor(content.step_size)
    for name, tensor in found.items():
        buffer = io.BytesIO()
        torch.save(tensor.detach(), buffer)
        files.write_bytes(folder / f"{name}.pt", buffer.getvalue())


def _shards(content: Content, path: Path) -> None:
    """WebDataset shards of 10,000 images; several are numbered: set-000000.tar.

    A sample is 000000007.png, .cls (the number of its class), and .json: {"label": its class's name, "soft_label": [K
    probabilities], "scale": [low, high]}.
    """
    several = len(content.labels) > SHARD
    for number, rows in enumerate(torch.arange(len(content.labels)).split(SHARD)):
        name = f"{path.stem}-{number:06d}{path.suffix}" if several else path.name
        files.write_bytes(path.with_name(name), _shard(content, rows.tolist()))


def _shard(content: Content, rows: Sequence[int]) -> bytes:
    """The bytes of one shard, the same whenever it is written."""
    pixels, buffer = content.pixels, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for row in rows:
            label = int(content.labels[row])
            told = {
                "label": content.classes[label], "soft_label": content.soft_labels[row].tolist(),
                "scale": list(content.scale),
            }  # fmt: skip
            parts = {"png": png(pixels[row]), "cls": str(label).encode(), "json": files.as_json(told).encode()}
            for ending, payload in parts.items():
                member = tarfile.TarInfo(f"{row:09d}.{ending}")
                member.size = len(payload)
                shard.addfile(member, io.BytesIO(payload))
    return buffer.getvalue()
