"""The Python door: distil, select and evaluate, each in one call."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from potstill import bounds
from potstill.data.distilled import Distilled
from potstill.data.own_augment import Augment
from potstill.errors import PotstillError
from potstill.evaluation import tuning
from potstill.evaluation.evaluator import Network, evaluator_for
from potstill.evaluation.protocol import protocol_of, selecting
from potstill.methods import METHODS
from potstill.process import own_state
from potstill.runs import given, record
from potstill.runs.progress import Watcher, shown
from potstill.runs.run import opened, train_experts
from potstill.runs.settings import check_methods
from potstill.runs.stage import check_start, distil, selected


class Selected(NamedTuple):
    """What :func:`select` gives.

    Example:
        >>> chosen = potstill.select((images, labels), method="random", ipc=2)
        >>> len(chosen.rows), len(chosen.distilled)
        (6, 6)
    """

    rows: np.ndarray  # (n,) int64, of the images in the training part that was given
    distilled: Distilled  # the same images as a set


@own_state()
def distill(
    data: Any = None, ipc: int | None = None, *, test: Any = None, out: str | Path | None = None,
    method: str | Sequence[str] = "datm", network: Network | None = None, augment: Augment | None = None,
    preset: str | None = None, experts: str | Path | None = None, progress: bool | Watcher = True, **changes: Any,
) -> Distilled:  # fmt: skip
    """Train the experts a method needs, distil, and return the set; called again with the same ``out`` it continues.

    Args:
        data: "digits" (the default), a folder, a file or a Hugging Face name, as ``--dataset`` of the command line;
            ``(X, y)`` as NumPy arrays, torch tensors or lists of PIL images, of uint8 or 0 to 1; a torch or Hugging
            Face Dataset or DatasetDict; a mapping of "train", "validation" and "test" to any of these.
        ipc: images per class; by default 1, or what the preset says.
        test: the test part of data in memory, of any of these kinds; by default a fifth of each class is kept aside.
        out: folder of the run; by default a temporary one, deleted at the end, so that nothing can be continued.
        method: name of a method, or several as stages; ``potstill.methods()`` lists all.
        network: what experts and students share: a network's name, its settings, or a function ``(channels, height,
            width, classes)`` that returns a new ``nn.Module``.
        augment: operations of the augmentation by name, or a differentiable function ``(images (b, C, H, W), numbers
            (b, 8))`` that returns images; the numbers are drawn from 0 to 1 for each image, its only source of chance.
        preset: a published cell, e.g. "cifar10-ipc10"; by default that tuned for the digits; other data are measured.
        experts: folder of experts shared between runs; by default inside ``out``.
        progress: True shows how far it is, in a terminal or a notebook; False shows nothing; a function is called with
            every event, mappings with "stage", "done" and "total".
        changes: fields of the settings, those of a method under its name: ``datm={"iterations": 50}, seed=3``.

    Raises:
        PotstillError: with the value, the reason and the remedy.

    Example:
        >>> distilled = potstill.distill((images, labels), ipc=1, method="dm", network={"width": 16},
        ...     dm={"iterations": 5}, evaluations=1, evaluation={"epochs": 9})
        >>> distilled.export("distilled.png")
    """
    changes |= {"method": method} | ({} if augment is None else {"augment": augment})
    settings, found = given.asked(data, test, ipc, preset, network, changes)
    store = bounds.fit(experts, Path | None, "experts")
    with folder_of(out) as folder, shown(progress) as begin, opened(settings, folder, store, found) as run:
        check_start(run)
        run_to_completion(train_experts(run), begin())
        return run_to_completion(distil(run), begin())


@own_state()
def select(
    data: Any = None, method: str = "herding", ipc: int | None = 10, *, test: Any = None,
    network: Network | None = None, experts: str | Path | None = None, progress: bool | Watcher = True, **changes: Any,
) -> Selected:  # fmt: skip
    """Choose real images by a method of the family "selection"; arguments as in :func:`distill`.

    They are chosen among the training images: of data without a test part, what is left when a fifth of each class is
    kept aside for testing, and of that a tenth for validation.  Give ``test=`` to choose among all others.

    Returns:
        The rows of the chosen images in the training part that was given, and the images as a set.

    Raises:
        PotstillError: with the value, the reason and the remedy.

    Example:
        >>> rows, chosen = potstill.select((images, labels), method="herding", ipc=2, expert={"count": 1, "epochs": 2})
        >>> few_images, few_labels = images[rows], labels[rows]
    """
    method = bounds.fit(method, str, "method")
    check_methods((method,))
    if METHODS[method].loss is not None:
        known = ", ".join(name for name, one in METHODS.items() if one.loss is None)
        raise PotstillError(f"method {method}: learns images; give it to potstill.distill, or choose among {known}.")
    settings, found = given.asked(data, test, ipc, None, network, {**changes, "method": method})
    store = bounds.fit(experts, Path | None, "experts")
    with folder_of(None) as folder, shown(progress) as begin, opened(settings, folder, store, found) as run:
        run_to_completion(train_experts(run), begin())
        chosen = selected(run)
        assert chosen.rows is not None
        rows = run.problem.dataset.train.rows
        assert rows is not None
        return Selected(rows[chosen.rows.cpu()].numpy(), chosen)


@own_state()
def evaluate(
    distilled: Distilled, data: Any = None, *, test: Any = None, network: Network | None = None,
    augment: Augment | None = None, seeds: int | None = None, controls: bool = True,
    device: str | torch.device | None = None, progress: bool | Watcher = True, **changes: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Train fresh networks on a set, and test them beside its controls.

    Args:
        distilled: the set.
        data: the data it was distilled from, as in :func:`distill`; by default where they lay then.
        test: the test part, where it was given so.
        network: the network to train, as in :func:`distill`; by default the one the set was made with.
        augment: as in :func:`potstill.train`; by default that of the set.
        seeds: fresh networks per figure; by default five.
        controls: whether as many random images and the full training set are evaluated as well.
        device: where to train; by default the fastest one present.
        progress: as in :func:`distill`.
        changes: how networks are trained: ``protocol="quick"``, ``epochs=300``, ``full_epochs``, ``full_seeds``.

    Returns:
        A figure for "distilled" and for the controls "random" and "full": {"mean", "std", "ci95", "per_seed"},
        accuracies as fractions of 1, as in results.json.

    Raises:
        PotstillError: with the value, the reason and the remedy.

    Example:
        >>> distilled = potstill.load("runs/digits-ipc1")
        >>> accuracy = potstill.evaluate(distilled, network="mlp", protocol="quick", epochs=5, full_epochs=1)
        >>> 0 <= accuracy["distilled"]["mean"] <= 1
        True
    """
    told = {**changes, "seeds": seeds, "device": device}
    settings, problem, chosen = given.evaluation_of(distilled, data, test, network, augment, told)
    who = evaluator_for(problem, chosen, protocol_of(settings.evaluation), settings.augment)
    alone = not bounds.fit(controls, bool, "controls")
    with shown(progress) as begin:
        if settings.evaluation.step_size == "chosen":
            chooser, event = replace(who, protocol=selecting(settings.evaluation)), {"stage": "evaluation"}
            choosing = tuning.choose_step_size(chooser, distilled, "chosen", {**event, "done": 0, "total": 1})
            distilled = run_to_completion(choosing, begin())
        return run_to_completion(record.evaluate_set(who, distilled, settings, None, alone), begin())["accuracy"]


@contextmanager
def folder_of(out: str | Path | None) -> Iterator[Path]:
    """The folder of a run: the one that was asked for, or a temporary one."""
    if out is not None:
        yield bounds.fit(out, Path, "out")
        return
    with tempfile.TemporaryDirectory(prefix="potstill-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run_to_completion(events: Any, progress: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """Run a stage to its end, hand its events to ``progress``, and return what the stage returns.

    Whatever ends it early, the stage is closed at once, so that it leaves its checkpoint.
    """
    try:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
            if progress:
                progress(event)
    finally:
        events.close()
