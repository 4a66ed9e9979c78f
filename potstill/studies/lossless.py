"""The smallest set that trains as well as the full data, found by bisection over resumable runs.

"As well" is that the full set is shown to be better by no more than a margin: Welch's 95 % interval of the difference
ends below it.  That no difference was found shows nothing, for the fewer networks there are the less is found.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import files
from potstill.errors import PotstillError
from potstill.evaluation.evaluator import Event
from potstill.evaluation.protocol import protocol_of
from potstill.evaluation.statistics import difference
from potstill.report.figures import COLOURS, NAMES, axes
from potstill.report.study_page import Record, Study, Table, percent
from potstill.runs.run import Run, train_experts
from potstill.runs.settings import Settings, at_size
from potstill.studies.cells import Cell, check_honest, common_fields, keep_all, run_cell

KIND = "lossless"
CLOSE = 1.25  # ratio of two sizes below which the search ends
MOST_RUNS = 12  # for the progress bar: no search here takes more


def search(
    given: Settings, out: Path, most: int, margin: float
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Find the smallest images per class without loss, between ``given.ipc`` and ``most``.

    Doubles the size until there is no loss, then bisects (in ratio) between the last with and the first without.

    Returns:
        The record, also in out/lossless.json; "ipc" is None where even ``most`` loses.

    Raises:
        PotstillError: it begins at a set on disk, or its figures could not be compared.
    """
    check_honest(given)
    _check_networks(given)
    _sized(given, most)  # what could not begin there is refused now
    yield from train_experts(Run(_sized(given, given.ipc), out, out / "experts"))
    cells: dict[int, dict[str, Any]] = {}

    def loses(ipc: int) -> Generator[Event, None, bool]:
        cell = Cell(f"ipc{ipc}", {"ipc": ipc}, _sized(given, ipc))
        results = yield from run_cell(KIND, cell, out, len(cells), max(MOST_RUNS, len(cells) + 1))
        lost = difference(results["accuracy"]["full"], results["accuracy"]["distilled"])
        cells[ipc] = {
            "ipc": ipc, "accuracy": results["accuracy"], "lost": lost, "lossless": is_lossless(lost, margin),
            "seconds": results["seconds"], "diverged": results["diverged"],
        }  # fmt: skip
        last.update(results)
        return not cells[ipc]["lossless"]

    last: dict[str, Any] = {}
    smallest = yield from bisect(loses, given.ipc, most)
    found = {
        "kind": KIND,
        **common_fields(last, given),
        "ipc": smallest,
        "margin": margin,
        "full_per_class": last["full_images"] / (last["images"] // last["ipc"]),
        "cells": [cells[ipc] for ipc in sorted(cells)],
    }
    files.write_json(out / f"{KIND}.json", found)
    return found


def _sized(given: Settings, ipc: int) -> Settings:
    return keep_all(replace(at_size(given, ipc), expert=given.expert))


def _check_networks(given: Settings) -> None:
    """Refuse figures of one network, which have no interval."""
    seeds = protocol_of(given.evaluation).seeds
    for name, count in (("seeds", seeds), ("full_seeds", given.evaluation.full_seeds or seeds)):
        if count < 2:
            raise PotstillError(
                f"evaluation.{name} {count}: an interval over networks shows that nothing is lost; give 2 or more."
            )


def is_lossless(lost: dict[str, Any], margin: float) -> bool:
    """Whether the full set is better by no more than the margin, with all of the interval."""
    return lost["ci95"] is not None and lost["ci95"][1] <= margin


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


def with_full_control(given: Settings) -> Settings:
    """The settings with the full-set control, without which nothing can be called lossless."""
    if given.evaluation.full_seeds == 0:
        return replace(given, evaluation=replace(given.evaluation, full_seeds=None))
    return given


def table(record: Record) -> Table:
    """Sizes that lose nothing are marked."""
    header = ["images per class", "random", "random, soft labels", "distilled", "full set", "full set over distilled"]
    rows = []
    for cell in record["cells"]:
        accuracy = cell["accuracy"]
        texts = [percent(accuracy[name]) if name in accuracy else "–" for name in ("random", "random_soft")]
        texts += [percent(accuracy["distilled"]), percent(accuracy["full"]), percent(cell["lost"], "+")]
        rows.append({"cells": [str(cell["ipc"]), *texts], "best": cell["lossless"]})
    return header, rows


def figure(record: Record) -> Any:
    """Accuracy against images per class, with the full set as a band."""
    cells = record["cells"]
    drawn, plot = axes(
        "images per class", "test accuracy (%)", 3.6, f"How many images lose nothing: {record['dataset']}"
    )
    sizes = [cell["ipc"] for cell in cells]
    for name in ("distilled", "random_soft", "random"):
        if any(name not in cell["accuracy"] for cell in cells):
            continue
        found = [cell["accuracy"][name] for cell in cells]
        plot.plot(sizes, [100 * f["mean"] for f in found], "o-", color=COLOURS[name], label=NAMES[name], markersize=4)
        if all(f["ci95"] for f in found):
            low, high = ([100 * f["ci95"][side] for f in found] for side in (0, 1))
            plot.fill_between(sizes, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    full = cells[-1]["accuracy"]["full"]
    plot.axhline(100 * full["mean"], color=COLOURS["full"], label=NAMES["full"])
    if full["ci95"]:
        plot.axhspan(*(100 * v for v in full["ci95"]), color=COLOURS["full"], alpha=0.12, linewidth=0)
    if record["ipc"]:
        plot.axvline(record["ipc"], color=COLOURS["distilled"], linewidth=1, linestyle=":")
    plot.set_xscale("log", base=2)
    plot.set_xticks(sizes, [str(size) for size in sizes])
    plot.legend(frameon=False, fontsize=9)
    return drawn


def summary(record: Record) -> str:
    """The size that was found with what it still loses, how large the full set is, and the next smaller size."""
    cells = {cell["ipc"]: cell for cell in record["cells"]}
    found = record["ipc"]
    if found is None:
        return f"None up to {max(cells)} images per class: every set loses"
    of, lost = f"of about {record['full_per_class']:.0f}", cells[found]["lost"]
    within = f"within the margin of {100 * record['margin']:.1f}"
    how = within if is_lossless(lost, record["margin"]) else "not significant, which is what 0.1.0 asked for"
    above = f"{percent(lost, '+')} points above them: {how}"
    text = f"{found} images per class {of} train as well as the full set, which is {above}"
    smaller = [ipc for ipc in cells if ipc < found]
    return f"{text}; {max(smaller)} lose {percent(cells[max(smaller)]['lost'])} points" if smaller else text


STUDY = Study(
    kind=KIND,
    title=lambda record: f"How many images lose nothing: {record['dataset']}",
    caption="Test accuracy by images per class (logarithmic) of networks trained on the distilled set, on as many "
    "random images with soft and with hard labels, and on the full set (line; bands are 95 % intervals). The dotted "
    "line marks the smallest set found that loses nothing.",
    table=table,
    figure=figure,
    summary=summary,
    chosen=lambda record: (
        f"Networks on the full set trained {record['protocol']['full_epochs']} epochs. The size was "
        "found by these very figures, so evaluate it again by other networks before you rely on it."
    ),
)
