"""The Python door: a whole distillation in one call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill import bounds
from potstill.data.distilled import Distilled
from potstill.process import own_state
from potstill.runs.run import opened, train_experts
from potstill.runs.settings import configure
from potstill.runs.stage import distil


@own_state()
def distill(
    dataset: str | Path | None = None, ipc: int | None = None, *, out: str | Path, method: str | Sequence[str] = "datm",
    preset: str | None = None, experts: str | Path | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None, **changes: Any,
) -> Distilled:  # fmt: skip
    """Train the experts a method needs, distil, and return the set; called again with the same ``out`` it continues.

    Args:
        dataset: as ``--dataset`` of the command line: "digits" (the default), a folder, an .npz file or a Hugging
            Face name.
        ipc: images per class; by default 1, or what the preset says.
        out: folder of the run.
        method: name of a method, or several as stages; ``potstill.METHODS`` holds all.
        preset: a published cell, e.g. "cifar10-ipc10"; by default that tuned for the digits; other data are measured.
        experts: folder of experts shared between runs; by default inside ``out``.
        progress: called with every event, mappings with "stage", "done" and "total".
        changes: fields of the settings, those of a method under its name: ``datm={"iterations": 50}, seed=3``.

    Raises:
        PotstillError: with the value, the reason and the remedy.

    Example:
        >>> distilled = potstill.distill("digits", ipc=1, out="runs/mine", datm={"iterations": 50})
    """
    settings = configure(dataset, ipc, preset, {**changes, "method": method})
    folder, store = bounds.fit(out, Path, "out"), bounds.fit(experts, Path | None, "experts")
    with opened(settings, folder, store) as run:
        run_to_completion(train_experts(run), progress)
        return run_to_completion(distil(run), progress)


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
