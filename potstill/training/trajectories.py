"""The store of experts on disk: a manifest that says what they are, and one file an expert.

experts/
  manifest.json                 what was trained on what, and which epochs are kept: identity only
  expert-00.safetensors         theta (kept epochs, P), buffers (kept epochs, B), last (P,), last_buffers (B,);
                                its accuracy and seconds in its header: it is finished when the file exists
  expert-01.partial.safetensors an expert still in training
  expert-01.lock                held by the process that trains it

Nothing is claimed and no manifest written but under the folder's lock (:func:`potstill.files.locked`).  Folders of
0.1.0, whose manifest told the accuracies, are read as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files
from potstill.errors import PotstillError

MANIFEST = "manifest.json"
Snapshots = dict[int, tuple[Tensor, Tensor]]
"""Parameters (P,) and running statistics (B,) by epoch."""


@dataclass(frozen=True)
class Trajectories:
    """Finished experts in a folder."""

    folder: Path
    identity: dict[str, Any]  # what they were trained on and how; compared field by field
    epochs: tuple[int, ...]  # the epochs whose snapshots are kept, ascending
    accuracies: tuple[float, ...]  # of each finished expert after its last epoch, on the validation part
    seconds: float  # that training them took, all together

    def __len__(self) -> int:
        return len(self.accuracies)

    @property
    def accuracy(self) -> float:
        """Mean over the experts, of which there must be one."""
        return sum(self.accuracies) / len(self)

    def segment(self, expert: int, start: int, span: int) -> tuple[Tensor, Tensor]:
        """Snapshots (P,) at epochs ``start`` and ``start + span``, float32, read without the rest of the file."""
        with files.opened(expert_path(self.folder, expert), "expert") as reader:
            kept = reader.header.get("epochs", self.epochs)
            first, last = (reader.row("theta", self._row(epoch, kept)) for epoch in (start, start + span))
        return first.float(), last.float()

    def last(self, expert: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) and buffers (B,) after the last epoch."""
        with files.opened(expert_path(self.folder, expert), "expert") as reader:
            return reader.tensor("last").float(), reader.tensor("last_buffers").float()

    def snapshot(self, expert: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) and buffers (B,) after so many epochs, float32."""
        if epoch == self.identity["expert"]["epochs"]:
            return self.last(expert)
        with files.opened(expert_path(self.folder, expert), "expert") as reader:
            row = self._row(epoch, reader.header.get("epochs", self.epochs))
            return reader.row("theta", row).float(), reader.tensor("buffers")[row].float()

    def _row(self, epoch: int, kept: Sequence[int]) -> int:
        if epoch not in kept:
            raise PotstillError(
                f"{self.folder}: keeps no snapshot of epoch {epoch}, only of {_ranges(kept)}; match epochs among "
                "these, or train experts in another folder with --expert.keep-all."
            )
        return kept.index(epoch)


def lock_path(folder: Path, number: int) -> Path:
    """What the process that trains an expert holds."""
    return folder / f"expert-{number:02d}.lock"


def expert_path(folder: Path, number: int) -> Path:
    """Where a finished expert lies."""
    return folder / f"expert-{number:02d}.safetensors"


def partial_path(folder: Path, number: int) -> Path:
    """Where an expert in training lies."""
    return folder / f"expert-{number:02d}.partial.safetensors"


def create(folder: Path, identity: dict[str, Any], epochs: Sequence[int]) -> tuple[int, ...]:
    """Begin a store, or continue one of the same identity; the caller holds the folder's lock.

    Returns:
        The epochs whose snapshots it keeps, ``epochs`` at least.

    Raises:
        PotstillError: the folder holds experts of another network, dataset, transform or recipe, finished or in
            training; the differing fields are named.
    """
    path = folder / MANIFEST
    begun = any(folder.glob("expert-*.safetensors")) or any(_is_claimed(lock) for lock in folder.glob("expert-*.lock"))
    if begun and path.exists():
        found = _manifest(folder, identity)
        if missing := sorted(set(epochs) - set(found["epochs"])):
            raise PotstillError(
                f"{folder}: keeps snapshots of epochs {_ranges(found['epochs'])}, but epoch {missing[0]} is needed; "
                "train the experts in another folder, or with --expert.keep-all."
            )
        return tuple(found["epochs"])
    manifest = files.stamped({"kind": "trajectories", "identity": identity, "epochs": list(epochs)})
    files.write_json(path, manifest)
    return tuple(epochs)


def missing(folder: Path, count: int) -> list[int]:
    """Those of the first ``count`` experts that are not finished; the caller holds the folder's lock."""
    manifest = _manifest(folder)
    unfinished = [number for number in range(count) if _ending(folder, number, manifest) is None]
    for number in set(range(count)) - set(unfinished):
        lock_path(folder, number).unlink(missing_ok=True)  # nobody will claim it again
    return unfinished


def claim(folder: Path, number: int) -> Any | None:
    """A lock on training one expert, to be released; None where another has it.  The caller holds the folder's lock."""
    return files.take(lock_path(folder, number))


def _is_claimed(path: Path) -> bool:
    lock = files.take(path)
    if lock is not None:
        lock.release()
    return lock is None


def _ending(folder: Path, number: int, manifest: dict[str, Any]) -> tuple[float, float] | None:
    """Accuracy and seconds of an expert; None where it is not finished.

    Version 0.1.0 wrote accuracies into the manifest, a moment after the file: one without was killed in between.

    Raises:
        PotstillError: its file is damaged, or comes from another folder.
    """
    path = expert_path(folder, number)
    if not path.exists():
        return None
    with files.opened(path, "expert") as reader:
        header = reader.header
    if header.get("identity", files.fingerprint(manifest["identity"])) != files.fingerprint(manifest["identity"]):
        raise PotstillError(
            f"{path}: was trained otherwise than {MANIFEST} says, so it comes from another folder; put it back there, "
            "or delete it to train this expert anew."
        )
    before = manifest.get("accuracies", [])
    accuracy = header.get("accuracy", before[number] if number < len(before) else None)
    return None if accuracy is None else (accuracy, header.get("seconds", 0.0))


def write_expert(
    path: Path, kind: str, snapshots: Snapshots, last: Tensor, last_buffers: Tensor, header: dict[str, Any],
    storage: str,
) -> None:  # fmt: skip
    """Write an expert, finished or in training: its snapshots in the precision ``storage``, its last state whole."""
    tensors = {
        "theta": _stacked([theta for theta, _ in snapshots.values()], len(last), getattr(torch, storage)),
        "buffers": _stacked([b for _, b in snapshots.values()], len(last_buffers), torch.float32),
        "last": last,
        "last_buffers": last_buffers,
    }
    files.write_tensors(path, kind, tensors, {**header, "epochs": list(snapshots)}, by_row=("theta",))


def _stacked(snapshots: Sequence[Tensor], size: int, dtype: torch.dtype) -> Tensor:
    """Snapshots (P,) as one tensor (S, P) of the stored precision; a copy, so training cannot write into it.

    There may be none, where only the experts at their end are needed; P is ``size``.
    """
    if not snapshots:
        return torch.empty(0, size, dtype=dtype)
    return torch.stack([snapshot.detach().cpu().to(dtype) for snapshot in snapshots])


def open_store(folder: Path, identity: dict[str, Any] | None = None) -> Trajectories:
    """Open a store, and hold it to what is asked for; fields of its identity that are not asked for may be anything.

    Raises:
        PotstillError: no store there, a damaged one, or one of another identity (the differing fields are named).
    """
    if not (folder / MANIFEST).is_file():
        raise PotstillError(f"{folder}: holds no experts ({MANIFEST} is missing); train some with `potstill experts`.")
    found = _manifest(folder, identity)
    endings: list[tuple[float, float]] = []
    while (ending := _ending(folder, len(endings), found)) is not None:
        endings.append(ending)
    accuracies = tuple(accuracy for accuracy, _ in endings)
    seconds = found.get("seconds", 0.0) + sum(spent for _, spent in endings)  # those of 0.1.0 in the manifest
    return Trajectories(folder, found["identity"], tuple(found["epochs"]), accuracies, seconds)


def find(folder: Path, identity: dict[str, Any] | None = None) -> Trajectories | None:
    """The store in a folder, as :func:`open_store` opens it; None where there is none."""
    return open_store(folder, identity) if (folder / MANIFEST).is_file() else None


def _manifest(folder: Path, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of a store, held to the identity that is asked for; fields that are not may be anything.

    Raises:
        PotstillError: it is damaged, no manifest of ours, or of another identity (the differing fields are named).
    """
    manifest = files.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != "trajectories" or "identity" not in manifest:
        raise PotstillError(f"{folder / MANIFEST}: not a manifest of potstill's experts; choose another folder.")
    epochs, identity = manifest.get("epochs"), manifest["identity"]
    trained = identity.get("expert") if isinstance(identity, dict) else None
    whole = isinstance(epochs, list) and all(isinstance(epoch, int) for epoch in epochs)
    if not whole or not isinstance(trained, dict) or not isinstance(trained.get("epochs"), int):
        raise PotstillError(
            f"{folder / MANIFEST}: damaged: it does not say which epochs are kept, or how the experts were trained; "
            "restore it from a copy, or train experts in another folder."
        )
    if asked is not None:
        found = {name: value for name, value in identity.items() if name in asked}
        if lines := files.differences(found, files.plain(asked)):
            raise PotstillError(
                f"{folder}: these experts differ from what is asked for in {'; '.join(lines)}. Give the same settings, "
                "or another folder."
            )
    return manifest


def _ranges(epochs: Sequence[int]) -> str:
    """Ascending numbers as "0–6, 30"."""
    parts: list[list[int]] = []
    for epoch in epochs:
        if parts and epoch == parts[-1][1] + 1:
            parts[-1][1] = epoch
        else:
            parts.append([epoch, epoch])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in parts)
