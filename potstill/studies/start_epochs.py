"""Which start epochs to match at how many images per class: the paper's first figure, on any data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.methods.trajectory import span_of
from potstill.report.figures import SERIES, axes
from potstill.report.run_page import frames_of
from potstill.report.study_page import Record, Study, Table, percent
from potstill.runs import snapshots
from potstill.runs.settings import Settings, at_size
from potstill.studies.cells import Cell, epochs_text, keep_all, trajectory_of, validation_of, with_first


def cells(given: Settings, ipcs: Sequence[int], starts: Sequence[int] | None, width: int) -> list[Cell]:
    """Each size of the set with each range of start epochs.

    Args:
        given: settings; those that are not the default for the data hold for every size.
        ipcs: images per class.
        starts: first start epoch of each range; by default an early, a middle and a late one.
        width: start epochs in a range.

    Raises:
        PotstillError: a range lies outside the experts' epochs.
    """
    span = span_of(trajectory_of(given))
    latest = given.expert.epochs - span + 1 - width
    if latest < 0:
        raise PotstillError(
            f"--width {width}: experts of {given.expert.epochs} epochs have no {width} start epochs with {span} epochs "
            "after them; raise --expert.epochs or lower --width."
        )
    starts = sorted({0, latest // 3, latest} if starts is None else set(starts))
    if starts[0] < 0 or starts[-1] > latest:
        raise PotstillError(
            f"--starts {' '.join(map(str, starts))}: a range of {width} start epochs begins between 0 and {latest} "
            f"with experts of {given.expert.epochs} epochs; choose others, or raise --expert.epochs."
        )
    found = []
    for ipc in ipcs:
        sized = keep_all(replace(at_size(given, ipc), expert=given.expert))
        sized = replace(sized, keep="last", evaluations=1)  # start epochs that do harm shall be seen to
        for start in starts:
            labels = {"ipc": ipc, "start": start, "stop": start + width}
            chosen = with_first(sized, start_epochs=(start, start + width), opening=None)
            found.append(Cell(f"ipc{ipc}-from{start}", labels, chosen))
    return found


def table(record: Record) -> Table:
    """The best range of each size on validation images is marked."""
    header = [
        "images per class", "start epochs", "random", "random, soft labels", "distilled", "gain over random",
        "on validation images",
    ]  # fmt: skip
    rows, (_, best) = [], _best(record)
    for cell in record["cells"]:
        accuracy, validation = cell["accuracy"], validation_of(cell)
        soft = percent(accuracy["random_soft"]) if "random_soft" in accuracy else "–"
        texts = [
            str(cell["ipc"]), _epochs(cell), percent(accuracy["random"]), soft, percent(accuracy["distilled"]),
            percent(cell["gain"], "+"), f"{100 * validation[-1]['accuracy']:.1f}" if validation else "–",
        ]  # fmt: skip
        rows.append({"cells": texts, "best": best.get(cell["ipc"]) is cell})
    return header, rows


def figure(record: Record) -> Any:
    """Gain over random images, a group an IPC, a bar a range of start epochs."""
    found = record["cells"]
    ipcs = list(dict.fromkeys(cell["ipc"] for cell in found))
    starts = list(dict.fromkeys(cell["start"] for cell in found))
    drawn, plot = axes(
        "images per class", "gain over random images (points)", 3.4,
        f"Which part of the experts' path to match: {record['dataset']}",
    )  # fmt: skip
    width = 0.8 / len(starts)
    for number, start in enumerate(starts):
        column = [cell for cell in found if cell["start"] == start]
        places = [ipcs.index(cell["ipc"]) + (number - (len(starts) - 1) / 2) * width for cell in column]
        gains = [100 * cell["gain"]["mean"] for cell in column]
        colour = SERIES[number % len(SERIES)]
        bars = plot.bar(places, gains, width * 0.92, color=colour, label=f"epochs {_epochs(column[0])}")
        for bar, place, cell in zip(bars, places, column, strict=True):
            bar.set_alpha(0.25 if cell["diverged"] else 1.0)
            if cell["gain"]["ci95"]:
                plot.plot([place, place], [100 * v for v in cell["gain"]["ci95"]], color="#1c2026", linewidth=1.2)
    plot.axhline(0, color="#1c2026", linewidth=0.8)
    plot.set_xticks(range(len(ipcs)), [str(ipc) for ipc in ipcs])
    plot.legend(frameon=False, title="start epochs matched", fontsize=9, title_fontsize=9)
    return drawn


def summary(record: Record) -> str:
    """The best range of each size on validation images with its gain on test images, in a sentence."""
    on, best = _best(record)
    words = [f"epochs {_epochs(cell)} at {ipc} (gain {percent(cell['gain'], '+')})" for ipc, cell in best.items()]
    if not words:
        return "No start epochs could be matched"
    return f"Best matched, by {on} images: {', '.join(words)} images per class"


def _best(record: Record) -> tuple[str, dict[int, dict[str, Any]]]:
    """By images per class, the range whose last set is best, and the images that say so.

    Those for validation, for test images choose nothing; except in records that do not hold them.
    """
    known = all(validation_of(cell) for cell in record["cells"])

    def worth(cell: dict[str, Any]) -> float:
        return validation_of(cell)[-1]["accuracy"] if known else cell["accuracy"]["distilled"]["mean"]

    best: dict[int, dict[str, Any]] = {}
    for cell in record["cells"]:
        if not cell["diverged"] and (cell["ipc"] not in best or worth(cell) > worth(best[cell["ipc"]])):
            best[cell["ipc"]] = cell
    return "validation" if known else "test", best


def pictures(record: Record, out: Path) -> list[dict[str, Any]]:
    """The images of the first and the last range side by side, a section a size."""
    sections = []
    for ipc in dict.fromkeys(cell["ipc"] for cell in record["cells"]):
        row = [cell for cell in record["cells"] if cell["ipc"] == ipc]
        sequences = []
        for word, cell in {row[0]["start"]: ("early", row[0]), row[-1]["start"]: ("late", row[-1])}.values():
            if kept := snapshots.read(out / f"ipc{ipc}-from{cell['start']}"):
                sequences.append(frames_of(kept, f"{word}: epochs {_epochs(cell)}"))
        if sequences:
            sections.append({
                "title": f"What they write, at {ipc} images per class", "sequences": sequences,
                "sentence": "Move the slider: early epochs write the shapes that a class shares, late ones touch "
                "single features.",
            })  # fmt: skip
    return sections


def _epochs(cell: dict[str, Any]) -> str:
    return epochs_text(cell["start"], cell["stop"])


STUDY = Study(
    kind="stages",
    title=lambda record: f"Which part of the path to match: {record['dataset']}",
    caption="What networks gain in test accuracy when they are trained on the distilled set instead of as many random "
    "real images, in points, by the start epochs that were matched; lines are 95 % intervals. Below zero, distilling "
    "did harm. Every set is the one after the last iteration.",
    table=table,
    figure=figure,
    summary=summary,
    pictures=pictures,
)
