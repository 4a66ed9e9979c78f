"""Explorations as pages: one figure, one table, the images beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill import files
from potstill.report.figures import COLOURS, NAMES, STAGES, axes, page, render, svg
from potstill.report.run_page import film, flatten
from potstill.runs import snapshots

Row = dict[str, Any]  # {"cells": texts, "best": whether to mark it}


def write(record: dict[str, Any], out: Path) -> Path:
    """Write KIND.html and KIND.png of an exploration beside its runs; returns the page's path."""
    kind = record["kind"]
    drawn = FIGURES[kind](record)
    files.write_bytes(out / f"{kind}.png", render(drawn, "png"))
    heads, rows = table(record)
    values = {
        "record": record, "heads": heads, "rows": rows, "figure": svg(drawn), "notes": _notes(record),
        "patterns": _patterns(record, out), "settings": sorted(flatten(record["config"]).items()), **_words(record),
    }  # fmt: skip
    files.write_bytes(out / f"{kind}.html", page("exploration", **values).encode())
    return out / f"{kind}.html"


def percent(figure: dict[str, Any], sign: str = "") -> str:
    """A mean with its interval, in per cent."""
    mean = f"{100 * figure['mean']:{sign}.1f}"
    low_high = figure["ci95"]
    return f"{mean} ({100 * low_high[0]:{sign}.1f} to {100 * low_high[1]:{sign}.1f})" if low_high else mean


def table(record: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """The record's cells as texts; the best ones are marked."""
    return _TABLES[record["kind"]](record["cells"])


def _stages_table(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[Row]]:
    heads = [
        "images per class", "start epochs", "random", "random, soft labels", "distilled", "gain over random",
        "on validation images",
    ]  # fmt: skip
    rows = []
    for cell in cells:
        accuracy, judged = cell["accuracy"], cell.get("judged")
        fair = [c["accuracy"]["distilled"]["mean"] for c in cells if c["ipc"] == cell["ipc"] and not c["diverged"]]
        soft = percent(accuracy["random_soft"]) if "random_soft" in accuracy else "–"
        rows.append({
            "cells": [str(cell["ipc"]), stage_name(cell), percent(accuracy["random"]), soft,
                      percent(accuracy["distilled"]), percent(cell["gain"], "+"),
                      f"{100 * judged[-1]['accuracy']:.1f}" if judged else "–"],
            "best": not cell["diverged"] and accuracy["distilled"]["mean"] == max(fair),
        })  # fmt: skip
    return heads, rows


def _ablations_table(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[Row]]:
    rows = []
    for number, cell in enumerate(cells):
        name = f"{cell['part']}: {cell['variant']}" if cell["variant"] else cell["part"]
        over = percent(cell["over_base"], "+") if number else "–"
        minutes = f"{(cell['seconds']['distill'] or 0) / 60:.1f}"
        rows.append({"cells": [name, percent(cell["accuracy"]["distilled"]), over, minutes], "best": number == 0})
    return ["what is changed", "distilled", "over the run as given", "minutes of distilling"], rows


def _windows_table(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[Row]]:
    rows = []
    for number, cell in enumerate(cells):
        over = percent(cell["over_base"], "+") if number else "–"
        minutes = f"{(cell['seconds']['distill'] or 0) / 60:.1f}"
        texts = [cell["window"], percent(cell["accuracy"]["distilled"]), over, minutes]
        rows.append({"cells": texts, "best": number == 0})
    return ["start epochs", "distilled", "over auto", "minutes of distilling"], rows


def _lossless_table(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[Row]]:
    heads = ["images per class", "random", "random, soft labels", "distilled", "full set", "full set over distilled"]
    rows = []
    for cell in cells:
        accuracy = cell["accuracy"]
        texts = [percent(accuracy[name]) if name in accuracy else "–" for name in ("random", "random_soft")]
        texts += [percent(accuracy["distilled"]), percent(accuracy["full"]), percent(cell["lost"], "+")]
        rows.append({"cells": [str(cell["ipc"]), *texts], "best": cell["lossless"]})
    return heads, rows


_TABLES = {
    "stages": _stages_table, "windows": _windows_table, "ablations": _ablations_table, "lossless": _lossless_table,
}  # fmt: skip


def stage_name(cell: dict[str, Any]) -> str:
    """A window's start epochs, as "8–10"."""
    last = cell["stop"] - 1
    return str(cell["start"]) if last == cell["start"] else f"{cell['start']}–{last}"


# --- figures -------------------------------------------------------------------------------------------------------


def _stages_figure(record: dict[str, Any]) -> Any:
    """Gain over random images, a group an IPC, a bar a stage."""
    cells = record["cells"]
    ipcs = list(dict.fromkeys(cell["ipc"] for cell in cells))
    starts = list(dict.fromkeys(cell["start"] for cell in cells))
    figure, plot = axes(
        "images per class", "gain over random images (points)", 3.4,
        f"Which part of the experts' path to match: {record['dataset']}",
    )  # fmt: skip
    width = 0.8 / len(starts)
    for number, start in enumerate(starts):
        column = [cell for cell in cells if cell["start"] == start]
        places = [ipcs.index(cell["ipc"]) + (number - (len(starts) - 1) / 2) * width for cell in column]
        gains = [100 * cell["gain"]["mean"] for cell in column]
        colour = STAGES[number % len(STAGES)]
        bars = plot.bar(places, gains, width * 0.92, color=colour, label=f"epochs {stage_name(column[0])}")
        for bar, cell in zip(bars, column, strict=True):
            bar.set_alpha(0.25 if cell["diverged"] else 1.0)
        for place, cell in zip(places, column, strict=True):
            if cell["gain"]["ci95"]:
                plot.plot([place, place], [100 * v for v in cell["gain"]["ci95"]], color="#1c2026", linewidth=1.2)
    plot.axhline(0, color="#1c2026", linewidth=0.8)
    plot.set_xticks(range(len(ipcs)), [str(ipc) for ipc in ipcs])
    plot.legend(frameon=False, title="start epochs matched", fontsize=9, title_fontsize=9)
    return figure


def _ablations_figure(record: dict[str, Any]) -> Any:
    """Accuracy of every variant with its interval, and the run as given as a line."""
    names = [f"{c['part']}: {c['variant']}" if c["variant"] else c["part"] for c in record["cells"]]
    return _beside_the_first(record, names, f"One thing changed: {record['dataset']}")


def _windows_figure(record: dict[str, Any]) -> Any:
    """Accuracy of every window with its interval, and the one that was found as a line."""
    names = [c["window"] if c["window"][0].isalpha() else f"epochs {c['window']}" for c in record["cells"]]
    return _beside_the_first(record, names, f"The window found, and some chosen by hand: {record['dataset']}")


def _beside_the_first(record: dict[str, Any], names: Sequence[str], title: str) -> Any:
    """A row a cell: mean and interval; the first one's mean as a dashed line."""
    cells = record["cells"]
    figure, plot = axes("test accuracy (%)", "", 0.9 + 0.36 * len(cells), title)
    for y, cell in enumerate(reversed(cells)):
        found = cell["accuracy"]["distilled"]
        plot.plot(100 * found["mean"], y, "o", color=COLOURS["distilled"])
        if found["ci95"]:
            plot.plot([100 * v for v in found["ci95"]], [y, y], color=COLOURS["distilled"], linewidth=2)
    plot.axvline(100 * cells[0]["accuracy"]["distilled"]["mean"], color="#8a8f98", linewidth=1, linestyle="--")
    plot.set_yticks(range(len(cells)), list(reversed(names)))
    plot.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    return figure


def _lossless_figure(record: dict[str, Any]) -> Any:
    """Accuracy against images per class, with the full set as a band."""
    cells = record["cells"]
    figure, plot = axes(
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
    return figure


FIGURES = {
    "stages": _stages_figure, "windows": _windows_figure, "ablations": _ablations_figure, "lossless": _lossless_figure,
}  # fmt: skip


# --- words ---------------------------------------------------------------------------------------------------------


def _words(record: dict[str, Any]) -> dict[str, str]:
    """Title, finding and caption."""
    dataset = record["dataset"]
    common = {"chosen": "The test images chose nothing.", "finding": finding(record)}
    if record["kind"] == "stages":
        return {
            **common,
            "title": f"Which part of the path to match: {dataset}",
            "caption": "What networks gain in test accuracy when they are trained on the distilled set instead of as "
            "many random real images, in points, by the part of the experts' trajectories that was matched; lines are "
            "95 % intervals. Below zero, distilling did harm. Every set is the one after the last iteration.",
        }
    if record["kind"] == "windows":
        return {
            **common,
            "title": f"The window found, and some chosen by hand: {dataset}",
            "caption": "Test accuracy by the start epochs that were matched; the first row and the dashed line are of "
            "the window that was found by measuring. Lines are 95 % intervals.",
        }
    if record["kind"] == "ablations":
        return {
            **common,
            "title": f"What each part of the method is worth: {dataset}",
            "caption": "Test accuracy of the run as given (first, and dashed) and of the same run with one thing "
            "changed; lines are 95 % intervals over networks. Each row is one distilled set.",
        }
    epochs = record["protocol"]["full_epochs"]
    return {
        **common,
        "chosen": f"Networks on the full set trained {epochs} epochs. The size was found by these very figures, so "
        "judge it again by other networks before you rely on it.",
        "title": f"How many images lose nothing: {dataset}",
        "caption": "Test accuracy by images per class (logarithmic) of networks trained on the distilled set, on as "
        "many random images with soft and with hard labels, and on the full set (line; bands are 95 % intervals). The "
        "dotted line marks the smallest set found that loses nothing.",
    }


def finding(record: dict[str, Any]) -> str:
    """What an exploration found, in a sentence."""
    return _FINDINGS[record["kind"]](record)


def _stages_finding(record: dict[str, Any]) -> str:
    """The best stage of each size, in a sentence."""
    cells = record["cells"]
    best: dict[int, dict[str, Any]] = {}
    for cell in cells:
        if cell["diverged"]:
            continue
        if cell["ipc"] not in best or cell["gain"]["mean"] > best[cell["ipc"]]["gain"]["mean"]:
            best[cell["ipc"]] = cell
    parts = [f"epochs {stage_name(cell)} at {ipc}" for ipc, cell in best.items()]
    if not parts:
        return "Distilling diverged at every stage"
    return f"Best matched: {', '.join(parts)} images per class"


def _windows_finding(record: dict[str, Any]) -> str:
    """The window that was found against the best of the others."""
    found, *others = record["cells"]
    best = max(others, key=lambda cell: cell["accuracy"]["distilled"]["mean"])
    named, window = best["window"], best["settings"]["window"]
    told = " (published)" if named.startswith("published") else ""
    return (
        f"Found: epochs {stage_name(found['settings']['window'])}, "
        f"{100 * found['accuracy']['distilled']['mean']:.1f} %; best by hand: epochs {stage_name(window)}{told}, "
        f"a difference of {percent(best['over_base'], '+')} points"
    )


def _ablations_finding(record: dict[str, Any]) -> str:
    """The changes that make more of a difference than fresh networks do; each is one distilled set."""
    changed = [c for c in record["cells"][1:] if (ci := c["over_base"]["ci95"]) and not ci[0] <= 0 <= ci[1]]
    if not changed:
        return "No change makes more of a difference than fresh networks do"
    words = [f"{c['part']}: {c['variant']} ({100 * c['over_base']['mean']:+.1f})" for c in changed]
    return f"More than fresh networks differ: {', '.join(words)}"


def _lossless_finding(record: dict[str, Any]) -> str:
    """The size that was found with what it still loses, how large the full set is, and the next smaller size."""
    cells = {cell["ipc"]: cell for cell in record["cells"]}
    found = record["ipc"]
    if found is None:
        return f"None up to {max(cells)} images per class: every set loses"
    of, lost = f"of about {record['full_per_class']:.0f}", cells[found]["lost"]
    if record["margin"]:
        how = f"within the margin of {100 * record['margin']:.1f}"
    elif lost["ci95"] is None:
        how = "of too few networks for an interval"
    else:
        how = "not significant" if lost["ci95"][1] >= 0 else "significantly less"
    told = f"{found} images per class {of} train as well as the full set"
    told = f"{told}, which is {percent(lost, '+')} points above them: {how}"
    smaller = [ipc for ipc in cells if ipc < found]
    return f"{told}; {max(smaller)} lose {percent(cells[max(smaller)]['lost'])} points" if smaller else told


_FINDINGS = {
    "stages": _stages_finding, "windows": _windows_finding, "ablations": _ablations_finding,
    "lossless": _lossless_finding,
}  # fmt: skip


def _notes(record: dict[str, Any]) -> list[str]:
    named = ("ipc", "start", "part", "variant", "window")
    told = [cell for cell in record["cells"] if cell.get("diverged")]
    names = [" ".join(f"{name} {cell[name]}" for name in named if cell.get(name, "") != "") for cell in told]
    return [
        f"{name}: distilling diverged (pale): what was judged is the last set that was kept before." for name in names
    ]


def _patterns(record: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """The images of the first and the last stage side by side, a section a size."""
    if record["kind"] != "stages":
        return []
    parts = []
    for ipc in dict.fromkeys(cell["ipc"] for cell in record["cells"]):
        row = [cell for cell in record["cells"] if cell["ipc"] == ipc]
        films = []
        for word, cell in {row[0]["start"]: ("early", row[0]), row[-1]["start"]: ("late", row[-1])}.values():
            if kept := snapshots.read(out / f"ipc{ipc}-from{cell['start']}"):
                films.append(film(kept, f"{word}: epochs {stage_name(cell)}"))
        if films:
            sentence = ("Move the slider: early parts write the shapes that a class shares, late parts touch single "
                        "features.")  # fmt: skip
            parts.append({"title": f"What they write, at {ipc} images per class", "sentence": sentence, "films": films})
    return parts
