"""The paper's findings on any data: many small runs that differ in one thing, side by side.

``stages`` matches early, middle and late parts of the trajectories at several images per class (the paper's first
figure); ``windows`` holds the window that is found against some chosen by hand; ``ablations`` leaves out or changes
one part of the method at a time (its section 4.3).  Every cell is a run in a folder of its own, all share their
experts, and whatever is finished is not done again.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from potstill import files
from potstill.config import Config, WindowConfig, as_dict, default, rebase
from potstill.errors import Diverged, PotstillError
from potstill.evaluation.evaluator import Event
from potstill.evaluation.protocol import protocol_of
from potstill.evaluation.statistics import difference
from potstill.runs import run as stages_of
from potstill.runs.run import Run

T = TypeVar("T")
Part = Literal["labels", "window", "start", "experts", "gradient"]
"""What an ablation changes."""
DISTILLING = 0.75  # of a cell's time, roughly; the rest is evaluation


@dataclass(frozen=True)
class Cell:
    """One run of an exploration."""

    name: str  # of its folder
    labels: dict[str, Any]  # what tells it from the others
    config: Config


# --- which cells ---------------------------------------------------------------------------------------------------


def stage_cells(given: Config, ipcs: Sequence[int], starts: Sequence[int] | None, width: int) -> list[Cell]:
    """Each size of the set against each part of the trajectories.

    Args:
        given: settings; those that are not the default for the data hold for every size.
        ipcs: images per class.
        starts: first start epoch of each window; by default an early, a middle and a late one.
        width: start epochs in a window.

    Raises:
        PotstillError: a window lies outside the experts' epochs.
    """
    latest = given.expert.epochs - given.distil.expert_epochs + 1 - width
    if latest < 0:
        raise PotstillError(
            f"--width {width}: experts of {given.expert.epochs} epochs have no {width} start epochs with "
            f"{given.distil.expert_epochs} epochs after them; raise --expert.epochs or lower --width."
        )
    starts = sorted({0, latest // 3, latest} if starts is None else set(starts))
    if starts[0] < 0 or starts[-1] > latest:
        raise PotstillError(
            f"--starts {' '.join(map(str, starts))}: a window of {width} start epochs begins between 0 and {latest} "
            f"with experts of {given.expert.epochs} epochs; choose others, or raise --expert.epochs."
        )
    cells = []
    for ipc in ipcs:
        config = sized(given, ipc)
        for start in starts:
            labels = {"ipc": ipc, "start": start, "stop": start + width}
            window = WindowConfig(start, start + width)
            distil = replace(config.distil, keep="last", evaluations=1)  # a stage that harms shall be seen to
            cells.append(Cell(f"ipc{ipc}-from{start}", labels, replace(config, window=window, distil=distil)))
    return cells


def sized(given: Config, ipc: int) -> Config:
    """The settings at another size: those of the data's default there, but for what was given; experts are shared."""
    config = rebase(given, default(given.dataset, given.ipc), default(given.dataset, ipc))
    return replace(config, ipc=ipc, expert=replace(given.expert, keep_all=True))


def ablation_base(given: Config) -> list[Cell]:
    """The run as given, which everything is compared with."""
    given = replace(given, expert=replace(given.expert, keep_all=True))
    return [Cell("as-given", {"part": "as given", "variant": ""}, given)]


def ablation_cells(given: Config, parts: Sequence[Part] = get_args(Part)) -> list[Cell]:
    """A run, all of whose settings are given, with one thing changed at a time; what changes nothing is left out."""
    distil, window = given.distil, given.window
    first = window.start + max(1, (window.stop - window.start) // 2)
    grown = replace(window, initial=None) if window.initial else replace(
        window, initial=first, expand=max(1, distil.iterations // 2)
    )  # fmt: skip
    variants: list[tuple[Part, str, dict[str, Any]]] = [
        ("labels", "soft, not learned", {"distil": {"labels": "soft"}}),
        ("labels", "hard", {"distil": {"labels": "hard"}}),
        ("window", "open from the start" if window.initial else "growing", {"window": vars(grown)}),
        ("start", "any real images", {"distil": {"start": "random"}}),
        ("experts", "1", {"expert": {"count": 1}}),
        ("gradient", "frozen (TESLA)", {"distil": {"adjoint": "frozen"}}),
    ]
    if given.expert.count > 3:
        variants.insert(-1, ("experts", str(given.expert.count // 2), {"expert": {"count": given.expert.count // 2}}))
    cells = []
    for part, variant, changes in variants:
        config = replace(given, **{name: replace(getattr(given, name), **new) for name, new in changes.items()})
        name = "-".join("".join(c if c.isalnum() else " " for c in f"{part} {variant}").split())
        if part in parts and config != given:
            cells.append(Cell(name, {"part": part, "variant": variant}, config))
    return cells


def window_cells(given: Config, count: int) -> list[Cell]:
    """The window that is found by measuring, and ``count`` windows chosen by hand, evenly from early to late."""
    given = replace(given, expert=replace(given.expert, keep_all=True))
    starts = given.expert.epochs - given.distil.expert_epochs + 1
    width = max(1, starts // count)
    found = replace(given, window=WindowConfig(mode="auto"), distil=replace(given.distil, rates="auto"))
    cells = [Cell("auto", {"window": "auto"}, found)]
    for first in sorted({round((starts - width) * i / max(count - 1, 1)) for i in range(count)}):
        window = WindowConfig(first, first + width)
        name = f"{first}–{first + width - 1}" if width > 1 else str(first)
        cells.append(Cell(f"from{first}", {"window": name}, replace(given, window=window)))
    return cells


# --- running them --------------------------------------------------------------------------------------------------


def explore(
    kind: str, cells: Sequence[Cell], out: Path, parts: Sequence[Part] = get_args(Part)
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Run every cell, and write what they gave to out/KIND.json: a record as complete as a run's results.

    Ablations are given by their base alone: what it settles on by measuring holds for all, so that they differ in one
    thing only, which is one of ``parts``.

    Raises:
        PotstillError: a size that the data cannot fill, before any work is done.
    """
    for cell in cells:
        check_honest(cell.config)
    largest = max((cell.config for cell in cells), key=lambda config: config.ipc)
    yield from stages_of.train_experts(Run(largest, out, out / "experts"))
    found: list[dict[str, Any]] = []
    waiting, total = list(cells), len(cells)
    while waiting:
        cell = waiting.pop(0)
        results = yield from run_cell(kind, cell, out, len(found), total)
        found.append({**cell.labels, **_figures(results)})
        if kind == "ablations" and len(found) == 1:
            settled = stages_of.open_run(cell.config, out / cell.name, out / "experts").settled
            waiting = ablation_cells(settled, parts)
            total += len(waiting)
    for entry in found:
        entry["over_base"] = difference(entry["accuracy"]["distilled"], found[0]["accuracy"]["distilled"])
    record = {
        "kind": kind,
        "dataset": results["dataset"],
        "protocol": results["protocol"],
        "network": results["network"],
        "cells": found,
        "config": files.plain(as_dict(cells[0].config)),
        "environment": results["environment"],
        "version": files.VERSION,
    }
    files.write_json(out / f"{kind}.json", record)
    return record


def check_honest(config: Config) -> None:
    """Refuse sets that are chosen on test images: what is compared here are their figures on those."""
    if protocol_of(config.evaluation).selection == "test":
        raise PotstillError(
            f"protocol {config.evaluation.protocol}: chooses sets on the very test images they are compared on here; "
            "take --evaluation.protocol standard or quick."
        )


def run_cell(kind: str, cell: Cell, out: Path, number: int, total: int) -> Generator[Event, None, dict[str, Any]]:
    """Distil and evaluate one cell; its events tell how far all of them are."""
    told = " ".join(f"{name} {value}" for name, value in cell.labels.items() if value != "")
    run = stages_of.open_run(cell.config, out / cell.name, out / "experts")
    diverged = None
    try:
        yield from _within(stages_of.distil(run), kind, told, number, total, 0.0, DISTILLING)
    except Diverged as error:  # a window that cannot be matched is a finding, not the end of the exploration
        diverged = str(error)
    results = yield from _within(stages_of.evaluate(run), kind, told, number, total, DISTILLING, 1.0)
    return {**results, "diverged": diverged}


def _within(
    events: Iterator[Event], kind: str, told: str, number: int, total: int, begin: float, end: float
) -> Generator[Event, None, Any]:
    """The events of one stage of one cell as events of the whole, in hundredths of a cell."""
    generator: Any = events
    while True:
        try:
            event = next(generator)
        except StopIteration as stop:
            return stop.value
        part = begin + (end - begin) * event["done"] / max(event["total"], 1)
        yield {**event, "stage": kind, "done": round(100 * (number + part)), "total": 100 * total, "cell": told}


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    accuracy = results["accuracy"]
    return {
        "accuracy": accuracy,
        "gain": difference(accuracy["distilled"], accuracy["random"]),
        "judged": results["judged"],  # on validation images
        "iterations": results["iterations"],
        "step_size": results["step_size"],
        "seconds": results["seconds"],
        "diverged": results["diverged"],
        "settings": files.plain({name: results["config"][name] for name in ("window", "distil")}),  # as found
    }
