"""What other code published, as artefacts of ours: its sets as :class:`Distilled`, its replay buffers as experts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.data import foreign
from potstill.data.distilled import Distilled
from potstill.data.foreign import Space
from potstill.errors import PotstillError
from potstill.runs.run import prepare_problem
from potstill.runs.settings import NO_PRESET, Settings, as_dict, configure
from potstill.training import buffers
from potstill.training.trajectories import Trajectories

logger = logging.getLogger(__name__)
Contents = Mapping[Path, Any]
KEPT = ("zca", "standardise")  # spaces of which our transforms are too
MADE_BY: Mapping[str, str] = {"hard": "mtt", "values": "frepo"}
"""The method that labels of a kind speak of; of all others DATM."""


def read(files: Sequence[Path]) -> Contents:
    """What some files hold, by file: of a set, or of replay buffers.

    Raises:
        PotstillError: a file that cannot be read (see :func:`potstill.data.foreign.load`), or files of both.
    """
    if not files:
        raise PotstillError("no files: give those of a set (images.pt labels.pt lr.pt), or replay buffers.")
    found = {path: foreign.load(path) for path in files}
    experts = [path for path, content in found.items() if foreign.holds_experts(content)]
    if experts and len(experts) < len(found):
        other = next(path for path in found if path not in experts)
        raise PotstillError(f"{experts[0]}: holds experts, and {other} does not; import sets and experts one by one.")
    return found


def is_experts(found: Contents) -> bool:
    """Whether they are replay buffers."""
    return all(foreign.holds_experts(content) for content in found.values())


def space_of(found: Contents) -> Space:
    """The space that the published code of such files brings images to."""
    return "frepo" if all(path.suffix.lower() == ".npz" for path in found) else "zca"


def import_experts(
    found: Contents, dataset: str, folder: Path, changes: Mapping[str, Any], *, space: Space = "zca",
    step_size: float = 0.01,
) -> Trajectories:  # fmt: skip
    """Replay buffers as a store of experts; arguments as of :func:`import_set`, see also :mod:`training.buffers`."""
    return buffers.store(found, prepare_problem(_settings(dataset, changes, space)), folder, step_size)


def import_set(
    found: Contents, dataset: str, changes: Mapping[str, Any], *, space: Space | None = None,
    mean: Sequence[float] = (), std: Sequence[float] = (), method: str | None = None,
) -> Distilled:  # fmt: skip
    """A published set as one of ours, with the transform for test images.

    Args:
        found: the files' contents.
        dataset: that it was distilled from, as ``--dataset``.
        changes: of the settings of a run there: network, augmentation, how the data are read.
        space: what the images were brought to; None: as published for such files.
        mean: see :func:`potstill.data.foreign.placed`.
        std: likewise.
        method: that made the set; None: by its labels.

    Raises:
        PotstillError: files that do not make a set of this dataset.
    """
    space = space or space_of(found)
    settings = _settings(dataset, changes, space)
    problem = prepare_problem(settings)
    data, classes = problem.dataset, len(problem.dataset.classes)
    read = foreign.read_set(found, classes)
    images, transform = foreign.placed(read, space, data, problem.transform, mean, std)
    if space not in KEPT:
        logger.info(
            "the pictures are the authors', whitened by our %s: networks see them otherwise than theirs did",
            transform.kind,
        )
    made, ipc = method or MADE_BY.get(read.kind, "datm"), max(len(images) // classes, 1)
    return Distilled(
        images=images,
        targets=read.targets,
        kind=read.kind,
        labels=read.labels,
        step_size=read.step_size,
        transform=transform,
        classes=data.classes,
        recipe={"network": asdict(problem.network_config), "augment": list(settings.augment)},
        provenance={
            "config": as_dict(_settings(dataset, changes, space, ipc, made)),
            "dataset": {"name": data.name, "fingerprint": data.fingerprint},
            "experts": None,
            "iteration": 0,
            "chosen_on": "other code",
            "imported": {"files": [path.name for path in found], "space": space},
        },
    )


def _settings(
    dataset: str, changes: Mapping[str, Any], space: Space, ipc: int | None = None, method: str = "datm"
) -> Settings:  # fmt: skip
    """Settings of a run on these data, to which evaluating and distilling hold what is imported."""
    transform = space if space in KEPT else "auto"
    return configure(dataset, ipc, NO_PRESET, {**changes, "method": method, "transform": transform})
