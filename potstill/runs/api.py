"""The Python door: a whole distillation in one call."""

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from potstill.config import PRESETS, Config, default
from potstill.data.distilled import Distilled
from potstill.errors import PotstillError
from potstill.runs import measure
from potstill.runs import run as stages


def distill(
    dataset: str | Path | None = None, ipc: int | None = None, *, out: str | Path, preset: str | None = None,
    experts: str | Path | None = None, progress: Callable[[dict[str, Any]], None] | None = None, **settings: Any,
) -> Distilled:  # fmt: skip
    """Train experts, distil, and return the set; calling again with the same ``out`` continues or just loads.

    Args:
        dataset: as ``--dataset`` of the command line: "digits" (the default), a folder, an .npz file or a Hugging
            Face name.
        ipc: images per class; by default 1, or what the preset says.
        out: folder of the run.
        preset: name of a preset, e.g. "cifar10-ipc10"; by default that of the digits; other data are measured.
        experts: folder of experts shared between runs; by default inside ``out``.
        progress: called with every event, dicts with "stage", "done" and "total".
        settings: fields of the configuration, nested ones as dicts: ``distil={"iterations": 50}, seed=3``.

    Raises:
        PotstillError: with the value, the reason and the remedy.

    Example:
        >>> distilled = potstill.distill("digits", ipc=1, out="runs/mine", distil={"iterations": 50})
    """
    config = configure(None if dataset is None else str(dataset), ipc, preset, settings)
    run = stages.open_run(config, Path(out), Path(experts) if experts else None)
    for stage in (stages.train_experts, stages.distil):
        result = exhaust(stage(run), progress)
    return result


def configure(dataset: str | None, ipc: int | None, preset: str | None, settings: dict[str, Any]) -> Config:
    """The configuration that a preset (or the default for the data) and further settings make."""
    if preset is None:
        config = default(dataset or "digits", 1 if ipc is None else ipc)
    else:
        config = named_preset(preset, dataset)
        config = config if ipc is None else replace(config, ipc=ipc)
    window = settings.get("window")
    if isinstance(window, str):  # "auto", as on the command line
        settings = {**settings, "window": {"mode": window}}
    elif isinstance(window, dict):  # numbers that are given are meant
        if window.get("mode") == "auto" and len(window) > 1:
            raise PotstillError(f"window auto: finds what {sorted(window)[-1]} gives; leave one of them out.")
        settings = {**settings, "window": {"mode": "given", **window}}
    for name, value in settings.items():
        if not hasattr(config, name):
            raise PotstillError(f"{name}: no such setting; choose among {sorted(vars(config))}.")
        if is_dataclass(getattr(config, name)) and not isinstance(value, dict | type(getattr(config, name))):
            raise PotstillError(
                f"{name} {value!r}: holds several settings; give a dict of {sorted(vars(getattr(config, name)))}."
            )
        try:
            nested = replace(getattr(config, name), **value) if isinstance(value, dict) else value
        except TypeError as error:
            choices = sorted(vars(getattr(config, name)))
            raise PotstillError(f"{name}: {sorted(value)} are not all among its fields {choices}.") from error
        config = replace(config, **{name: nested})
    given = settings.get("distil")
    return measure.keep(config, given if isinstance(given, dict) else ())


def named_preset(name: str, dataset: str | None) -> Config:
    """A preset by name, on a dataset; those of the digits bring their own.

    Raises:
        PotstillError: there is none of that name (the nearest names are suggested), or it needs a dataset.
    """
    import difflib

    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3) or list(PRESETS)
        raise PotstillError(f"preset {name!r}: unknown; did you mean {' or '.join(near)}? All: {', '.join(PRESETS)}.")
    if dataset is None and not name.startswith("digits-"):
        raise PotstillError(f"preset {name!r}: holds settings, not images; say where they are by --dataset.")
    return replace(PRESETS[name], dataset=dataset or "digits")


def exhaust(events: Any, progress: Callable[[dict[str, Any]], None] | None = None) -> Any:
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
