"""Many small runs side by side, which differ in one thing: what all studies share.

Every cell is a run in a folder of its own, all share their experts, and whatever is finished is not done again.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import files
from potstill.data.distilled import load
from potstill.errors import Diverged, PotstillError
from potstill.evaluation.evaluator import Event
from potstill.evaluation.protocol import protocol_of
from potstill.evaluation.statistics import difference
from potstill.methods.trajectory import Datm
from potstill.runs import run as runs
from potstill.runs import stage
from potstill.runs.record import evaluate
from potstill.runs.settings import Settings, as_dict, from_dict

DISTILLING = 0.75  # of a cell's time, roughly; the rest is evaluation


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str  # of its folder
    labels: dict[str, Any]  # what tells it from the others
    settings: Settings


def trajectory_of(settings: Settings) -> Datm:
    """The settings of the first stage, which a study of start epochs changes.

    Raises:
        PotstillError: it is no method of the trajectory family.
    """
    first = settings.stages[0]
    if not isinstance(first, Datm):
        raise PotstillError(
            f"method {settings.method[0]}: matches no trajectories, which this study is about; take --method datm, "
            "mtt, tesla or ftd first."
        )
    return first


def with_first(settings: Settings, **changes: Any) -> Settings:
    """The settings with fields of the first stage changed."""
    return replace(settings, stages=(replace(trajectory_of(settings), **changes), *settings.stages[1:]))


def keep_all(settings: Settings) -> Settings:
    """The settings with experts of which every snapshot is kept, so that all cells can share them."""
    return replace(settings, expert=replace(settings.expert, keep_all=True))


def explore(
    kind: str, cells: Sequence[Cell], out: Path, following: Callable[[Settings], Sequence[Cell]] | None = None
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Run every cell, and write what they gave to out/KIND.json: a record as complete as a run's results.

    Args:
        kind: of the study.
        cells: what to run.
        out: folder of the study.
        following: more cells, from what the first one settled on by measuring, so that they differ in one thing only.

    Raises:
        PotstillError: a size that the data cannot fill, before any work is done.
    """
    for cell in cells:
        check_honest(cell.settings)
    largest = max((cell.settings for cell in cells), key=lambda settings: settings.ipc)
    yield from runs.train_experts(runs.Run(largest, out, out / "experts"))
    found: list[dict[str, Any]] = []
    waiting, total = list(cells), len(cells)
    while waiting:
        cell = waiting.pop(0)
        results = yield from run_cell(kind, cell, out, len(found), total)
        found.append({**cell.labels, **_figures(results)})
        if following is not None and len(found) == 1:
            waiting += following(from_dict(results["config"]))
            total = len(found) + len(waiting)
    for entry in found:
        entry["over_base"] = difference(entry["accuracy"]["distilled"], found[0]["accuracy"]["distilled"])
    record = {"kind": kind, **common_fields(results, cells[0].settings), "cells": found}
    files.write_json(out / f"{kind}.json", record)
    return record


def common_fields(results: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What every study's record tells beside its cells."""
    told = {name: results[name] for name in ("dataset", "protocol", "network", "environment")}
    return files.stamped({**told, "config": as_dict(settings)})


def check_honest(settings: Settings) -> None:
    """Refuse sets that are chosen on test images: what is compared here are their figures on those."""
    if protocol_of(settings.evaluation).selection == "test":
        raise PotstillError(
            f"protocol {settings.evaluation.protocol}: chooses sets on the very test images they are compared on here; "
            "take --evaluation.protocol standard or quick."
        )


def run_cell(kind: str, cell: Cell, out: Path, number: int, total: int) -> Generator[Event, None, dict[str, Any]]:
    """Distil and evaluate one cell; its events tell how far all of them are."""
    words = " ".join(f"{name} {value}" for name, value in cell.labels.items() if value != "")
    diverged = None
    with runs.opened(cell.settings, out / cell.name, out / "experts") as run:
        try:
            distilled = yield from _within(stage.distil(run), kind, words, number, total, 0.0, DISTILLING)
        except Diverged as error:  # what cannot be matched is a finding, not the end of the study
            diverged, distilled = str(error), load(run.folder)
        results = yield from _within(evaluate(run, distilled), kind, words, number, total, DISTILLING, 1.0)
    return {**results, "diverged": diverged}


def _within(
    events: Iterator[Event], kind: str, words: str, number: int, total: int, begin: float, end: float
) -> Generator[Event, None, Any]:
    """The events of one stage of one cell as events of the whole, in hundredths of a cell."""
    generator: Any = events
    while True:
        try:
            event = next(generator)
        except StopIteration as stop:
            return stop.value
        share = begin + (end - begin) * event["done"] / max(event["total"], 1)
        yield {**event, "stage": kind, "done": round(100 * (number + share)), "total": 100 * total, "cell": words}


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    accuracy = results["accuracy"]
    return {
        "accuracy": accuracy,
        "gain": difference(accuracy["distilled"], accuracy["random"]),
        "validation": results["validation"],
        "iterations": results["iterations"],
        "step_size": results["step_size"],
        "seconds": results["seconds"],
        "diverged": results["diverged"],
        "settings": results["config"]["stages"],  # as settled
    }


def validation_of(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracies on validation images of a record's cell, of this version or 0.1.0."""
    return cell.get("validation", cell.get("judged", []))


def start_epochs_of(cell: dict[str, Any]) -> tuple[int, int]:
    """First start epoch, and one past the last, that a record's cell matched; of this version or 0.1.0."""
    settings = cell["settings"]
    if "window" in settings:
        return settings["window"]["start"], settings["window"]["stop"]
    first, stop = next(iter(settings.values()))["start_epochs"]
    return first, stop


def epochs_text(first: int, stop: int) -> str:
    """A range of start epochs, as "8–10"."""
    return str(first) if stop - 1 == first else f"{first}–{stop - 1}"
