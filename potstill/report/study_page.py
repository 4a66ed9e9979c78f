"""The page of a study: one figure, one table, the images beside each other.  It knows no study by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import files
from potstill.evaluation.protocol import described
from potstill.report.figures import COLOURS, axes, page, render, svg
from potstill.report.run_page import flatten

Record = dict[str, Any]
Row = dict[str, Any]
"""{"cells": texts, "best": whether to mark it}"""
Table = tuple[list[str], list[Row]]
"""Header and rows."""
TEST_CHOSE_NOTHING = "The test images chose nothing."


def _nothing(record: Record, out: Path) -> list[dict[str, Any]]:
    return []


@dataclass(frozen=True)
class Study:
    """How a study's record is told and drawn: functions of the record."""

    kind: str  # names its files
    title: Callable[[Record], str]
    caption: str  # of the figure
    table: Callable[[Record], Table]
    figure: Callable[[Record], Any]  # a figure of matplotlib's
    summary: Callable[[Record], str]  # what was found, in a sentence
    chosen: Callable[[Record], str] = lambda record: TEST_CHOSE_NOTHING  # what the figures were chosen by
    pictures: Callable[[Record, Path], list[dict[str, Any]]] = _nothing  # sections of sliders, from the runs' folders


def write(study: Study, record: Record, out: Path) -> Path:
    """Write KIND.html and KIND.png of a study beside its runs; returns the page's path."""
    drawn = study.figure(record)
    files.write_bytes(out / f"{study.kind}.png", render(drawn, "png"))
    header, rows = study.table(record)
    text = page(
        "study", record=record, header=header, rows=rows, figure=svg(drawn), notes=_notes(record),
        patterns=study.pictures(record, out), settings=sorted(flatten(record["config"]).items()),
        protocol=described(record["protocol"]), title=study.title(record), caption=study.caption,
        chosen=study.chosen(record), summary=study.summary(record),
    )  # fmt: skip
    files.write_bytes(out / f"{study.kind}.html", text.encode())
    return out / f"{study.kind}.html"


def percent(figure: dict[str, Any], sign: str = "") -> str:
    """A mean with its interval, in per cent."""
    mean = f"{100 * figure['mean']:{sign}.1f}"
    low_high = figure["ci95"]
    return f"{mean} ({100 * low_high[0]:{sign}.1f} to {100 * low_high[1]:{sign}.1f})" if low_high else mean


def compared_with_the_first(
    record: Record, names: Sequence[str], title: str, first: str, over: str
) -> tuple[Table, Any]:  # fmt: skip
    """Table and figure of cells that are compared with the first one, whose mean is a dashed line."""
    cells = record["cells"]
    rows = []
    for number, (name, cell) in enumerate(zip(names, cells, strict=True)):
        difference = percent(cell["over_base"], "+") if number else "–"
        minutes = f"{(cell['seconds']['distill'] or 0) / 60:.1f}"
        texts = [name, percent(cell["accuracy"]["distilled"]), difference, minutes]
        rows.append({"cells": texts, "best": number == 0})
    figure, plot = axes("test accuracy (%)", "", 0.9 + 0.36 * len(cells), title)
    for y, cell in enumerate(reversed(cells)):
        found = cell["accuracy"]["distilled"]
        plot.plot(100 * found["mean"], y, "o", color=COLOURS["distilled"])
        if found["ci95"]:
            plot.plot([100 * v for v in found["ci95"]], [y, y], color=COLOURS["distilled"], linewidth=2)
    plot.axvline(100 * cells[0]["accuracy"]["distilled"]["mean"], color="#8a8f98", linewidth=1, linestyle="--")
    plot.set_yticks(range(len(cells)), list(reversed(names)))
    plot.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    return ([first, "distilled", over, "minutes of distilling"], rows), figure


def _notes(record: Record) -> list[str]:
    """A sentence for each cell that diverged, or took no step."""
    return [
        f"{_name(cell)}: {cell['diverged']} (pale) What was evaluated is the last set that was kept before."
        for cell in record["cells"] if cell.get("diverged")
    ]  # fmt: skip


def _name(cell: dict[str, Any]) -> str:
    named = ("ipc", "start", "part", "variant", "window")
    return " ".join(f"{name} {cell[name]}" for name in named if cell.get(name, "") != "")
