"""The store of experts on disk: a manifest that says what they are, and one file an expert.

experts/
  manifest.json                 what was trained on what, and which epochs are kept: identity only
  expert-00.safetensors         theta (kept epochs, P), buffers (kept epochs, B), last (P,), last_buffers (B,);
                                its accuracy and seconds in its header: it is finished when the file exists
  expert-01.partial.safetensors an expert still in training
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

    def segment(self, expert: int, start: int, span: int) -> tuple[Tensor, Tensor]:
        """Snapshots (P,) at epochs ``start`` and ``start + span``, float32, read without the rest of the file."""
        with files.opened(expert_path(self.folder, expert), "expert") as reader:
            first, last = (reader.row("theta", self._row(epoch)) for epoch in (start, start + span))
        return first.float(), last.float()

    def last(self, expert: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) and buffers (B,) after the last epoch."""
        with files.opened(expert_path(self.folder, expert), "expert") as reader:
            return reader.tensor("last").float(), reader.tensor("last_buffers").float()

    def _row(self, epoch: int) -> int:
        if epoch not in self.epochs:
            raise PotstillError(f"{self.folder}: keeps no snapshot of epoch {epoch}, only of {_ranges(self.epochs)}.")
        return self.epochs.index(epoch)


def lock_path(folder: Path, number: int) -> Path:
    """What the process that trains an expert holds."""
    return folder / f"expert-{number:02d}.lock"


def seconds(folder: Path) -> float | None:
    """Seconds that training the experts of a folder took; None where there are none."""
    return open_store(folder).seconds if (folder / MANIFEST).exists() else None


def expert_path(folder: Path, number: int) -> Path:
    """Where a finished expert lies."""
    return folder / f"expert-{number:02d}.safetensors"


def partial_path(folder: Path, number: int) -> Path:
    """Where an expert in training lies."""
    return folder / f"expert-{number:02d}.partial.safetensors"


def create(folder: Path, identity: dict[str, Any], epochs: Sequence[int]) -> None:
    """Begin a store, or continue one of the same identity; the caller holds the folder's lock.

    Raises:
        PotstillError: the folder holds experts of another network, dataset, transform or recipe, finished or in
        training;
            the differing fields are named.
    """
    identity, path = files.plain(identity), folder / MANIFEST
    begun = any(folder.glob("expert-*.safetensors")) or any(_is_claimed(lock) for lock in folder.glob("expert-*.lock"))
    if begun and path.exists():
        found = _manifest(folder)
        check_identity(folder, found["identity"], identity)
        if missing := sorted(set(epochs) - set(found["epochs"])):
            raise PotstillError(
                f"{folder}: keeps snapshots of epochs {_ranges(found['epochs'])}, but epoch {missing[0]} is needed; "
                "train the experts in another folder, or with --expert.keep-all."
            )
        return
    manifest = {"kind": "trajectories", "version": files.VERSION, "identity": identity, "epochs": list(epochs)}
    files.write_json(path, manifest)


def claim(folder: Path, number: int) -> Any | None:
    """A lock on training one expert, to be released; None where another process has it."""
    import filelock

    lock = filelock.FileLock(str(lock_path(folder, number)), timeout=0, thread_local=False)
    try:
        return lock.acquire().lock
    except filelock.Timeout:
        return None


def _is_claimed(path: Path) -> bool:
    import filelock

    try:
        with filelock.FileLock(str(path), timeout=0, thread_local=False):
            return False
    except filelock.Timeout:
        return True


def open_store(folder: Path, identity: dict[str, Any] | None = None) -> Trajectories:
    """Open a store, and hold it to what is asked for; fields of its identity that are not asked for may be anything.

    Raises:
        PotstillError: no store there, a damaged one, or one of another identity (the differing fields are named).
    """
    if not (folder / MANIFEST).is_file():
        raise PotstillError(f"{folder}: holds no experts ({MANIFEST} is missing); train some with `potstill experts`.")
    found = _manifest(folder)
    if identity is not None:
        asked = {name: value for name, value in found["identity"].items() if name in identity}
        check_identity(folder, asked, files.plain(identity))
    accuracies: list[float] = []
    seconds = found.get("seconds", 0.0)
    while (path := expert_path(folder, len(accuracies))).exists():
        with files.opened(path, "expert") as reader:
            number, header = len(accuracies), reader.header
        before = found.get("accuracies", [])  # of 0.1.0, whose experts did not carry their own
        accuracy = header.get("accuracy", before[number] if number < len(before) else None)
        if accuracy is None:
            break
        accuracies.append(accuracy)
        seconds += header.get("seconds", 0.0)
    return Trajectories(folder, found["identity"], tuple(found["epochs"]), tuple(accuracies), seconds)


def check_identity(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a store of another identity; more experts than asked for are welcome."""
    if lines := files.differences(found, wanted):
        raise PotstillError(
            f"{folder}: these experts differ from what is asked for in {'; '.join(lines)}. Give the same settings, or "
            "another folder."
        )


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = files.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != "trajectories" or "identity" not in manifest:
        raise PotstillError(f"{folder / MANIFEST}: not a manifest of potstill's experts; choose another folder.")
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


def stack(snapshots: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Snapshots as one tensor (S, P) of the stored precision; a copy, so training cannot write into it."""
    return torch.stack([snapshot.detach().cpu().to(dtype) for snapshot in snapshots])
