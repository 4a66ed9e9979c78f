"""The start epochs that measuring finds, against some chosen by hand."""

from dataclasses import replace
from typing import Any

from potstill.methods.trajectory import span_of
from potstill.report.study_page import Record, Study, Table, compared_with_the_first, percent
from potstill.runs.settings import Settings, defaults
from potstill.studies.cells import (
    Cell,
    epochs_text,
    keep_all,
    start_epochs_of,
    trajectory_of,
    validation_of,
    with_first,
)

AUTO = "auto"


def cells(given: Settings, count: int) -> list[Cell]:
    """What is found by measuring, with all that is measured besides, and ``count`` ranges evenly from early to late."""
    given = replace(keep_all(given), evaluations=max(1, given.evaluations))  # by which the best of them is named
    first = trajectory_of(given)
    starts = given.expert.epochs - span_of(first) + 1
    width = max(1, starts // count)
    measured = {name: None for name in given.methods[0].measured if _is_default(given, name)}
    found = [Cell(AUTO, {"window": AUTO}, with_first(given, **{**measured, "start_epochs": None}, opening=None))]
    for start in sorted({round((starts - width) * i / max(count - 1, 1)) for i in range(count)}):
        name = epochs_text(start, start + width)
        chosen = with_first(given, start_epochs=(start, start + width), opening=None)
        found.append(Cell(f"from{start}", {"window": name}, chosen))
    return found


def _is_default(given: Settings, name: str) -> bool:
    """Whether a setting was left as the data's own cell has it, so that measuring may find another."""
    here = defaults(given.dataset, given.ipc, given.method)
    return getattr(given.stages[0], name) == getattr(here.stages[0], name)


def _compared(record: Record) -> tuple[Table, Any]:
    names = [cell["window"] if cell["window"][0].isalpha() else f"epochs {cell['window']}" for cell in record["cells"]]
    title = f"Start epochs found, and some chosen by hand: {record['dataset']}"
    return compared_with_the_first(record, names, title, "start epochs", "over those found")


def best_of(cells: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The best cell, and the images that say so: those for validation, except in records that do not hold them."""
    if all(validation_of(cell) for cell in cells):
        return "validation", max(cells, key=lambda cell: max(entry["accuracy"] for entry in validation_of(cell)))
    return "test", max(cells, key=lambda cell: cell["accuracy"]["distilled"]["mean"])


def summary(record: Record) -> str:
    """What was found against the best of the others, as validation images choose it."""
    found, *others = record["cells"]
    on, best = best_of(others)
    published = " (published)" if best["window"].startswith("published") else ""
    return (
        f"Found: epochs {epochs_text(*start_epochs_of(found))}, "
        f"{100 * found['accuracy']['distilled']['mean']:.1f} %; best by hand on {on} images: epochs "
        f"{epochs_text(*start_epochs_of(best))}{published}, a difference of {percent(best['over_base'], '+')} points"
    )


STUDY = Study(
    kind="windows",
    title=lambda record: f"Start epochs found, and some chosen by hand: {record['dataset']}",
    caption="Test accuracy by the start epochs that were matched; the first row and the dashed line are of those "
    "that were found by measuring. Lines are 95 % intervals.",
    table=lambda record: _compared(record)[0],
    figure=lambda record: _compared(record)[1],
    summary=summary,
)
