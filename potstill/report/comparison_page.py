"""A comparison's record as tables (terminal, CSV, LaTeX), figures, sentences, and one self-contained page."""

import contextlib
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import files
from potstill.data.distilled import FILE, Distilled, grid, load, png
from potstill.errors import PotstillError
from potstill.evaluation import controls
from potstill.evaluation.protocol import described
from potstill.report.figures import COLOURS, NAMES, SERIES, axes, data_uri, page, render, svg
from potstill.report.gallery import Shown, gallery
from potstill.report.run_page import flatten
from potstill.report.study_page import percent
from potstill.store import known_json

Record = Mapping[str, Any]
Row = Mapping[str, Any]
NAMED = {"random": "random", "random:labels=soft": "random, soft labels"}
PICTURES = 2  # of each class that are drawn for a row
MOST_CLASSES = 10  # that are drawn
SIDE_BY_SIDE = 5  # of them, where each has one image
WIDE = 10  # ratio of the ends of an axis from which on it is logarithmic
MARKERS = "osD^vP*X"
FIELDS = (
    "method", "labels", "images per class", "network", "accuracy", "low", "high", "sets", "networks", "gain",
    "gain low", "gain high", "best", "published", "seconds of distilling", "seconds of experts",
    "iterations", "images", "bytes", "failed",
)  # fmt: skip


def write(record: Record, out: Path, store: Path | None = None) -> Path:
    """Write compare.html, .png, .csv and .tex beside the record; returns the page's path.

    Args:
        record: of the comparison.
        out: its folder.
        store: of its sets, where that is not where the record says.
    """
    figures = [(svg(draw(record)), caption) for draw, caption in _figures(record)]
    store = store or out / record["store"]
    sets = _first_sets(record, store)
    files.write_bytes(out / "compare.png", render(accuracy_figure(record), "png"))
    files.write_bytes(out / "compare.csv", as_csv(record).encode())
    files.write_bytes(out / "compare.tex", as_latex(record).encode())
    text = page(
        "comparison", record=record, networks=[_table(record, network) for network in record["full"]],
        ipcs=sizes(record), figures=figures, sentences=sentences(record), notes=notes(record),
        pictures=_pictures(record, sets), browsed=_browsed(sets, store), protocol=described(record["protocol"]),
        settings=sorted(flatten(record["config"]).items()), rows=record["rows"], named=name_of,
    )  # fmt: skip
    files.write_bytes(out / "compare.html", text.encode())
    return out / "compare.html"


def name_of(row: Row) -> str:
    """A row's name for people."""
    return NAMED.get(row["name"], str(row["name"]))


def sizes(record: Record) -> list[int]:
    """Images per class, ascending."""
    return sorted({row["ipc"] for row in record["rows"]})


def methods(record: Record) -> list[str]:
    """Names of the rows, the controls first."""
    found = list(dict.fromkeys(row["name"] for row in record["rows"]))
    return sorted(found, key=lambda name: name not in NAMED)


def _by_place(record: Record) -> dict[tuple[str, int], Row]:
    return {(row["name"], row["ipc"]): row for row in record["rows"]}


# --- tables --------------------------------------------------------------------------------------------------------


def short(figure: Mapping[str, Any] | None) -> str:
    """A mean with half of its interval, in per cent: 47.7 ±0.9."""
    if figure is None:
        return "–"
    low_high = figure["ci95"]
    return f"{100 * figure['mean']:.1f}" + (f" ±{50 * (low_high[1] - low_high[0]):.1f}" if low_high else "")


def cell_text(row: Row, network: str) -> str:
    """Accuracy of a row, or why there is none."""
    if found := row["accuracy"].get(network):
        return short(found) + ("" if len(found["per_seed"]) == len(row["sets"]) else " …")
    if network not in row["accuracy"]:
        return "–"
    return "failed" if row["failed"] else "…"


def table(record: Record, network: str) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Header, and for each method its cells by images per class; whether it is among the best of a column."""
    places, columns = _by_place(record), sizes(record)
    header = ["method", *(f"{ipc} per class" for ipc in columns)]
    rows = []
    for name in methods(record):
        cells = [(NAMED.get(name, name), False)]
        for ipc in columns:
            row = places[name, ipc]
            cells.append((cell_text(row, network), bool(row["best"][network])))
        rows.append(cells)
    if record["full"].get(network):
        rows.append([("all images", False), *((short(record["full"][network]), False) for _ in columns)])
    return header, rows


def _table(record: Record, network: str) -> dict[str, Any]:
    """What the page shows of one network: for each method and size the figure and what stands below it."""
    places = _by_place(record)
    rows = [
        {
            "name": NAMED.get(name, name),
            "labels": places[name, sizes(record)[0]]["labels"],
            "cells": [_cell(places[name, ipc], network) for ipc in sizes(record)],
        }
        for name in methods(record)
    ]  # fmt: skip
    return {"network": network, "rows": rows, "full": percent(found) if (found := record["full"][network]) else None}


def _cell(row: Row, network: str) -> dict[str, Any]:
    gain, known = row["gain"].get(network), row["published"]
    return {
        "text": cell_text(row, network), "best": row["best"][network],
        "networks": short(row["networks"].get(network)),
        "gain": f"{percent(gain, '+')} over {NAMED.get(gain['over'], gain['over'])}" if gain else "",
        "published": f"published {100 * known['accuracy']:.1f} ({known['source']})" if known else "",
        "seconds": row["seconds"]["distilling"],
    }  # fmt: skip


def as_csv(record: Record) -> str:
    """A line for each row and network, with every figure as a fraction of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in record["rows"]:
        for network, found in row["accuracy"].items():
            ends = (found or {}).get("ci95") or (None, None)
            gain = row["gain"].get(network) or {"mean": None, "ci95": None}
            writer.writerow([
                row["name"], row["labels"], row["ipc"], network, (found or {}).get("mean"), *ends,
                len(found["per_seed"]) if found else 0, len(row["networks"][network]["per_seed"]) if found else 0,
                gain["mean"], *(gain["ci95"] or (None, None)), row["best"][network],
                row["published"] and row["published"]["accuracy"], row["seconds"]["distilling"],
                row["seconds"]["experts"], row["iterations"], row["images"], row["bytes"], row["failed"],
            ])  # fmt: skip
    return text.getvalue()


def as_latex(record: Record) -> str:
    """A table for a paper (booktabs), one block a network; the best and what is not significantly worse in bold."""
    columns = sizes(record)
    lines = [
        f"% {record['dataset']}; potstill {record['version']}; means over {record['set_seeds']} sets, 95 % intervals",
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule",
        " & ".join(["images per class", *map(str, columns)]) + r" \\",
    ]  # fmt: skip
    for network in record["full"]:
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{{network}}} \\"]
        for first, *cells in table(record, network)[1]:
            texts = [rf"\textbf{{{_tex(text)}}}" if best else _tex(text) for text, best in cells]
            lines.append(" & ".join([_tex(first[0]), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    for letter in "\\&%_#{}$":
        text = text.replace(letter, {"\\": r"\textbackslash "}.get(letter, f"\\{letter}"))
    return text.replace(" ±", r"\,$\pm$\,").replace("…", r"\dots").replace("–", "--")


# --- sentences -----------------------------------------------------------------------------------------------------


def sentences(record: Record) -> list[str]:
    """For each network and size: which is best, and which differences are larger than chance."""
    return [
        sentence
        for network in record["full"] for ipc in sizes(record)
        if (sentence := _sentence([row for row in record["rows"] if row["ipc"] == ipc], ipc, network))
    ]  # fmt: skip


def _sentence(rows: Sequence[Row], ipc: int, network: str) -> str:
    there = [row for row in rows if row["accuracy"].get(network)]
    if len(there) < 2:
        return ""
    first = max(there, key=lambda row: row["accuracy"][network]["mean"])
    if not first["accuracy"][network]["ci95"]:
        return (
            f"{ipc} per class, {network}: {name_of(first)} is highest with {short(first['accuracy'][network])} %; of "
            "one set a row no difference can be told from chance (--set-seeds)."
        )
    alike = [name_of(row) for row in there if row["best"][network] and row is not first]
    text = f"{ipc} per class, {network}: {name_of(first)} is best with {short(first['accuracy'][network])} %"
    text += f"; not significantly worse: {', '.join(alike)}" if alike else "; all others are significantly worse"
    gains = [(row, row["gain"][network]) for row in there if row["gain"].get(network)]
    sure = [name_of(row) for row, gain in gains if gain["ci95"] and gain["ci95"][0] > 0]
    worse = [name_of(row) for row, gain in gains if gain["ci95"] and gain["ci95"][1] < 0]
    if gains:
        text += f". Better than random images with their kind of labels, beyond chance: {', '.join(sure) or 'none'}"
    return text + (f"; worse: {', '.join(worse)}." if worse else ".")


def notes(record: Record) -> list[str]:
    """A sentence for what failed, diverged, or was changed in published settings."""
    found = [f"The full training set failed: {record['full_failed']}"] if record["full_failed"] else []
    for row in record["rows"]:
        where = f"{name_of(row)} at {row['ipc']} per class"
        if row["failed"]:
            found.append(f"{where} failed: {row['failed']}")
        if row["diverged"]:
            found.append(f"{where}: {row['diverged']} What was evaluated is the last set that was kept before.")
        if row["changed"]:
            found.append(f"{where} differs from what its authors published in {'; '.join(row['changed'])}.")
    return found


# --- figures -------------------------------------------------------------------------------------------------------


def _figures(record: Record) -> list[tuple[Callable[[Record], Any], str]]:
    """What is drawn, and the words below it."""
    drawn: list[tuple[Callable[[Record], Any], str]] = [
        (accuracy_figure, "Test accuracy by images per class; bars are 95 % intervals over sets. The line is the full "
         "training set; a ring marks what is not shown to be worse than it."),
        (seconds_figure, "Test accuracy against seconds of distilling, the experts' training left out; what takes none "
         "stands at the left."),
        (bytes_figure, "Test accuracy against the bytes of images and labels."),
    ]  # fmt: skip
    if len(record["full"]) > 1:
        drawn.append((transfer_figure, "The same sets on every network: lines that cross are methods whose order "
                      "depends on the network."))  # fmt: skip
    return drawn


def _style(record: Record, name: str) -> dict[str, Any]:
    """Colour and marker of a method, the same in every figure."""
    if name in NAMED:
        return {"color": COLOURS["random" if name == "random" else "random_soft"], "marker": "o"}
    number = [other for other in methods(record) if other not in NAMED].index(name)
    marker = MARKERS[(number // len(SERIES)) % len(MARKERS)]
    return {"color": SERIES[number % len(SERIES)], "marker": marker}


def _network(record: Record) -> str:
    return next(iter(record["full"]))


def accuracy_figure(record: Record) -> Any:
    """Accuracy by images per class."""
    network, places, columns = _network(record), _by_place(record), sizes(record)
    drawn, plot = axes("images per class", "test accuracy (%)", 4.2, f"{record['dataset']}, {network}")
    full = record["full"].get(network)
    for name in methods(record):
        there = [(ipc, f) for ipc in columns if (f := places[name, ipc]["accuracy"].get(network))]
        if not there:
            continue
        ends = [[100 * abs(f["mean"] - f["ci95"][side]) if f["ci95"] else 0 for _, f in there] for side in (0, 1)]
        at, means, style = [ipc for ipc, _ in there], [100 * f["mean"] for _, f in there], _style(record, name)
        plot.errorbar(at, means, ends, label=NAMED.get(name, name), markersize=4, linewidth=1.2, capsize=2, **style)
        lossless = [(ipc, 100 * f["mean"]) for ipc, f in there if full and _reaches(f, full)]
        plot.plot(
            [x for x, _ in lossless], [y for _, y in lossless], "o", mfc="none", mec=style["color"], markersize=11
        )
    if full:
        plot.axhline(100 * full["mean"], color=COLOURS["full"], label=NAMES["full"])
        if full["ci95"]:
            plot.axhspan(*(100 * end for end in full["ci95"]), color=COLOURS["full"], alpha=0.12, linewidth=0)
    plot.set_xscale("log")
    plot.set_xticks(columns, [str(ipc) for ipc in columns])
    plot.minorticks_off()
    _legend(plot, record)
    return drawn


def _reaches(figure: Mapping[str, Any], full: Mapping[str, Any]) -> bool:
    """Whether a figure's interval meets the full set's mean."""
    return bool(figure["ci95"]) and figure["ci95"][1] >= full["mean"]


def _legend(plot: Any, record: Record) -> None:
    if not plot.get_legend_handles_labels()[0]:  # nothing is there yet
        return
    plot.legend(
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), ncols=1 + len(methods(record)) // 18
    )


def _against(record: Record, x_of: Callable[[Row], float | None], x: str) -> Any:
    network = _network(record)
    drawn, plot = axes(x, "test accuracy (%)", 4.2)
    for name in methods(record):
        there = [
            (found, 100 * row["accuracy"][network]["mean"]) for row in record["rows"]
            if row["name"] == name and row["accuracy"].get(network) and (found := x_of(row)) is not None
        ]  # fmt: skip
        if there:
            label, style = NAMED.get(name, name), _style(record, name)
            plot.plot([a for a, _ in there], [b for _, b in there], label=label, linewidth=0.8, markersize=5, **style)
    shown = [found for row in record["rows"] if (found := x_of(row))]
    if shown and max(shown) > WIDE * min(shown):
        plot.set_xscale("log")
    _legend(plot, record)
    return drawn


def seconds_figure(record: Record) -> Any:
    """Accuracy against the time that distilling took."""
    least = min((row["seconds"]["distilling"] for row in record["rows"] if row["seconds"]["distilling"]), default=1.0)
    return _against(
        record, lambda row: max(row["seconds"]["distilling"] or 0.0, least / 2) if row["images"] else None,
        "seconds of distilling",
    )  # fmt: skip


def bytes_figure(record: Record) -> Any:
    """Accuracy against what the set takes on disk."""
    return _against(record, lambda row: row["bytes"], "bytes of images and labels")


def transfer_figure(record: Record) -> Any:
    """Accuracy of every method on every network, at the largest size."""
    networks, ipc, places = list(record["full"]), sizes(record)[-1], _by_place(record)
    drawn, plot = axes("", "test accuracy (%)", 4.2, f"{ipc} images per class, by network")
    for name in methods(record):
        found = places[name, ipc]["accuracy"]
        there = [(n, 100 * found[network]["mean"]) for n, network in enumerate(networks) if found.get(network)]
        label, style = NAMED.get(name, name), _style(record, name)
        plot.plot([n for n, _ in there], [y for _, y in there], label=label, markersize=5, **style)
    plot.set_xticks(range(len(networks)), networks)
    _legend(plot, record)
    return drawn


# --- pictures ------------------------------------------------------------------------------------------------------


def _first_sets(record: Record, store: Path) -> list[tuple[Row, Distilled]]:
    """The first set of each row, of those that can be read."""
    found = []
    for row in record["rows"]:
        path = store / "sets" / row["sets"][0] / FILE
        if path.exists():
            with contextlib.suppress(PotstillError):
                found.append((row, load(path)))
    return found


def _browsed(sets: Sequence[tuple[Row, Distilled]], store: Path) -> dict[str, Any] | None:
    """The gallery of the first sets of all rows; None where there is none."""
    shown = [
        Shown(f"{name_of(row)}, {row['ipc']} per class", distilled, confusion=_confusion(row, store))
        for row, distilled in sets
    ]
    return gallery(shown) if shown else None


def _confusion(row: Row, store: Path) -> dict[str, Any] | None:
    """Of the networks trained on a row's first set; None where none has one, as in records of before."""
    figures = [known_json("figures", key, store) for key in row.get("first_figures", [])]
    return controls.summed([figure.get("confusion") for figure in figures if figure is not None])


def _pictures(record: Record, sets: Sequence[tuple[Row, Distilled]]) -> list[dict[str, str]]:
    """The first images of some classes, of the first set of each row of the smallest size, as they are stored."""
    shown = []
    for row, distilled in sets:
        if row["ipc"] != sizes(record)[0]:
            continue
        few = distilled.labels < MOST_CLASSES
        image = grid(distilled.pixels[few], distilled.labels[few], PICTURES if row["ipc"] > 1 else SIDE_BY_SIDE)
        shown.append({"name": name_of(row), "picture": data_uri(png(image))})
    return shown
