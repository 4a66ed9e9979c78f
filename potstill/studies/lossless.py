"""The smallest set that trains as well as the full data, found by bisection over resumable runs.

"As well" is that the full set's figure is not significantly higher (Welch's 95 % interval of the difference reaches
0), or, where a margin is given, that it is higher by no more than that.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import files
from potstill.config import Config, as_dict
from potstill.evaluation.evaluator import Event
from potstill.evaluation.statistics import difference
from potstill.runs.run import Run, train_experts
from potstill.studies.exploring import Cell, check_honest, run_cell, sized

KIND = "lossless"
CLOSE = 1.25  # ratio of two sizes below which the search ends
MOST_RUNS = 12  # for the progress bar: no search here takes more


def search(
    given: Config, out: Path, most: int, margin: float
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Find the smallest images per class without loss, between ``given.ipc`` and ``most``.

    Doubles the size until there is no loss, then bisects (in ratio) between the last with and the first without.

    Returns:
        The record, also in out/lossless.json; "ipc" is None where even ``most`` loses.
    """
    check_honest(given)
    yield from train_experts(Run(sized(given, given.ipc), out, out / "experts"))
    cells: dict[int, dict[str, Any]] = {}

    def loses(ipc: int) -> Generator[Event, None, bool]:
        cell = Cell(f"ipc{ipc}", {"ipc": ipc}, sized(given, ipc))
        results = yield from run_cell(KIND, cell, out, len(cells), max(MOST_RUNS, len(cells) + 1))
        lost = difference(results["accuracy"]["full"], results["accuracy"]["distilled"])
        cells[ipc] = {
            "ipc": ipc, "accuracy": results["accuracy"], "lost": lost, "lossless": is_lossless(lost, margin),
            "seconds": results["seconds"], "diverged": results["diverged"],
        }  # fmt: skip
        record.update(results)
        return not cells[ipc]["lossless"]

    record: dict[str, Any] = {}
    smallest = yield from bisect(loses, given.ipc, most)
    found = {
        "kind": KIND,
        "dataset": record["dataset"],
        "ipc": smallest,
        "margin": margin,
        "full_per_class": record["full_images"] / _classes(record),
        "protocol": record["protocol"],
        "network": record["network"],
        "cells": [cells[ipc] for ipc in sorted(cells)],
        "config": files.plain(as_dict(given)),
        "environment": record["environment"],
        "version": files.VERSION,
    }
    files.write_json(out / f"{KIND}.json", found)
    return found


def is_lossless(lost: dict[str, Any], margin: float) -> bool:
    """Whether the full set is better by no more than the margin; without one, not significantly better."""
    if margin > 0 or lost["ci95"] is None:
        return lost["mean"] <= margin
    return lost["ci95"][0] <= 0


def bisect(loses: Callable[[int], Generator[Event, None, bool]], least: int, most: int) -> Generator[Event, None, Any]:
    """The smallest size in [least, most] that does not lose, to within CLOSE; None where all do."""
    below, size = 0, least
    while (yield from loses(size)):
        if size >= most:
            return None
        below, size = size, min(2 * size, most)
    while below and size - below > 1 and size / below > CLOSE:
        middle = max(below + 1, min(size - 1, round((below * size) ** 0.5)))
        if (yield from loses(middle)):
            below = middle
        else:
            size = middle
    return size


def _classes(record: dict[str, Any]) -> int:
    return record["images"] // record["ipc"]


def with_full_control(given: Config) -> Config:
    """The settings with the full-set control, without which nothing can be called lossless."""
    if given.evaluation.full_seeds == 0:
        return replace(given, evaluation=replace(given.evaluation, full_seeds=None))
    return given
