"""A comparison's record as figures, and as one self-contained page."""

import contextlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import files
from potstill.data.distilled import FILE, Distilled, grid, load, png
from potstill.errors import PotstillError
from potstill.evaluation import controls
from potstill.evaluation.protocol import described
from potstill.report.comparison_tables import (
    NAMED,
    Record,
    Row,
    across_networks,
    as_csv,
    as_latex,
    by_place,
    methods,
    network_table,
    notes,
    sentences,
    sizes,
    tables,
    titles,
)
from potstill.report.figures import COLOURS, NAMES, SERIES, axes, data_uri, page, render, svg
from potstill.report.gallery import Shown, gallery
from potstill.report.run_page import flatten
from potstill.store import known_json

PICTURES = 2  # of each class that are drawn for a row
MOST_CLASSES = 10  # that are drawn
SIDE_BY_SIDE = 5  # of them, where each has one image
WIDE = 10  # ratio of the ends of an axis from which on it is logarithmic
MARKERS = "osD^vP*X"
NAME_WIDTH = 48  # letters of a method's name in one line


def write(record: Record, out: Path, store: Path | None = None) -> Path:
    """Write compare.html, .png, .csv and .tex beside the record; returns the page's path.

    Args:
        record: of the comparison.
        out: its folder.
        store: of its sets, where that is not where the record says.
    """
    drawn = _figures(record)
    figures = [(svg(draw(record)), caption) for draw, caption in drawn]
    store = store or out / record["store"]
    sets = _first_sets(record, store)
    files.write_bytes(out / "compare.png", render(drawn[0][0](record), "png"))
    files.write_bytes(out / "compare.csv", as_csv(record).encode())
    files.write_bytes(out / "compare.tex", as_latex(record).encode())
    text = page(
        "comparison", record=record, tables=tables(record) if across_networks(record) else [],
        networks=[network_table(record, network) for network in record["full"]],
        ipcs=sizes(record), figures=figures, sentences=sentences(record), notes=notes(record),
        pictures=_pictures(record, sets), browsed=_browsed(record, sets, store), protocol=described(record["protocol"]),
        settings=sorted(flatten(record["config"]).items()), rows=record["rows"], titles=titles(record),
    )  # fmt: skip
    files.write_bytes(out / "compare.html", text.encode())
    return out / "compare.html"


# --- figures -------------------------------------------------------------------------------------------------------


def _figures(record: Record) -> list[tuple[Callable[[Record], Any], str]]:
    """What is drawn, and the words below it."""
    across = (transfer_figure, "The same sets on every network, which learn differently well: lines that cross are "
              "methods whose order depends on the network.")  # fmt: skip
    drawn: list[tuple[Callable[[Record], Any], str]] = [
        (accuracy_figure, "Test accuracy by images per class; bars are 95 % intervals over sets. The line is the full "
         "training set; a ring marks what is not shown to be worse than it."),
        (seconds_figure, "Test accuracy against seconds of distilling, the experts' training left out; what takes none "
         "stands at the left."),
        (bytes_figure, "Test accuracy against the bytes of images and labels."),
    ]  # fmt: skip
    if not across_networks(record):
        ranked = (ranked_figure, "Test accuracy, from the lowest to the highest; bars are 95 % intervals over sets.")
        return drawn if len(sizes(record)) > 1 else [ranked, *drawn[1:]]  # one size makes no curve
    return [*drawn, across] if len(sizes(record)) > 1 else [across, *drawn[1:]]


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
    network, places, columns = _network(record), by_place(record), sizes(record)
    drawn, plot = axes("images per class", "test accuracy (%)", 4.2, f"{record['dataset']}, {network}")
    full = record["full"].get(network)
    for name in methods(record):
        there = [(ipc, f) for ipc in columns if (f := places[name, ipc]["accuracy"].get(network))]
        if not there:
            continue
        ends = [[100 * abs(f["mean"] - f["ci95"][side]) if f["ci95"] else 0 for _, f in there] for side in (0, 1)]
        at, means, style = [ipc for ipc, _ in there], [100 * f["mean"] for _, f in there], _style(record, name)
        plot.errorbar(at, means, ends, label=titles(record)[name], markersize=4, linewidth=1.2, capsize=2, **style)
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


def ranked_figure(record: Record) -> Any:
    """Accuracy at the one size there is, a line for each method."""
    network = _network(record)
    rows = [row for row in record["rows"] if row["accuracy"].get(network)]
    rows.sort(key=lambda row: row["accuracy"][network]["mean"])
    labels = [textwrap.fill(titles(record)[row["name"]].replace(",", ", "), NAME_WIDTH) for row in rows]
    lines = [1.3 + label.count("\n") for label in labels]
    places = [sum(lines[:n]) + lines[n] / 2 for n in range(len(rows))]
    title = f"{record['dataset']}, {network}, {sizes(record)[0]} per class"
    drawn, plot = axes("test accuracy (%)", "", 1.0 + 0.17 * sum(lines), title)
    for place, row in zip(places, rows, strict=True):
        figure = row["accuracy"][network]
        ends = [[100 * abs(figure["mean"] - end)] for end in figure["ci95"] or [figure["mean"]] * 2]
        plot.errorbar([100 * figure["mean"]], [place], xerr=ends, capsize=2, **_style(record, row["name"]))
    if full := record["full"].get(network):
        plot.axvline(100 * full["mean"], color=COLOURS["full"], label=NAMES["full"])
        plot.legend(frameon=False, fontsize=8)
    plot.set_yticks(places, labels, fontsize=8)
    plot.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    return drawn


def _reaches(figure: Mapping[str, Any], full: Mapping[str, Any]) -> bool:
    """Whether a figure's interval meets the full set's mean."""
    return bool(figure["ci95"]) and figure["ci95"][1] >= full["mean"]


def _legend(plot: Any, record: Record) -> None:
    names = plot.get_legend_handles_labels()[1]
    if not names:  # nothing is there yet
        return
    if max(map(len, names)) > NAME_WIDTH:  # beside the plot they would be cut
        plot.figure.set_figheight(plot.figure.get_figheight() + 0.17 * len(names))
        plot.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.14))
        return
    plot.legend(
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), ncols=1 + len(methods(record)) // 18
    )


def _against(record: Record, x_of: Callable[[Row], float | None], x: str) -> Any:
    """Accuracy against something, on a logarithmic axis where that is wide; nothing then stands at the left."""
    network = _network(record)
    drawn, plot = axes(x, "test accuracy (%)", 4.2)
    shown = [found for row in record["rows"] if (found := x_of(row))]
    wide = bool(shown) and max(shown) > WIDE * min(shown)
    left = min(shown) / 2 if wide else 0.0
    for name in methods(record):
        there = [
            (max(found, left), 100 * row["accuracy"][network]["mean"]) for row in record["rows"]
            if row["name"] == name and row["accuracy"].get(network) and (found := x_of(row)) is not None
        ]  # fmt: skip
        if there:
            label, style = titles(record)[name], _style(record, name)
            plot.plot([a for a, _ in there], [b for _, b in there], label=label, linewidth=0.8, markersize=5, **style)
    if wide:
        plot.set_xscale("log")
    _legend(plot, record)
    return drawn


def seconds_figure(record: Record) -> Any:
    """Accuracy against the time that distilling took."""
    return _against(
        record, lambda row: (row["seconds"]["distilling"] or 0.0) if row["images"] else None, "seconds of distilling"
    )


def bytes_figure(record: Record) -> Any:
    """Accuracy against what the set takes on disk."""
    return _against(record, lambda row: row["bytes"], "bytes of images and labels")


def transfer_figure(record: Record) -> Any:
    """Accuracy of every method on every network, at the largest size."""
    networks, ipc, places = list(record["full"]), sizes(record)[-1], by_place(record)
    drawn, plot = axes("", "test accuracy (%)", 4.2, f"{ipc} images per class, by network")
    for name in methods(record):
        found = places[name, ipc]["accuracy"]
        there = [(n, 100 * found[network]["mean"]) for n, network in enumerate(networks) if found.get(network)]
        label, style = titles(record)[name], _style(record, name)
        plot.plot([n for n, _ in there], [y for _, y in there], label=label, markersize=5, linewidth=1, **style)
    full = [(n, 100 * f["mean"]) for n, network in enumerate(networks) if (f := record["full"].get(network))]
    plot.plot(
        [n for n, _ in full], [y for _, y in full], "_", color=COLOURS["full"], markersize=18, label=NAMES["full"]
    )
    plot.set_xticks(range(len(networks)), [name.replace(":", ":\n") for name in networks], fontsize=7)
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


def _browsed(record: Record, sets: Sequence[tuple[Row, Distilled]], store: Path) -> dict[str, Any] | None:
    """The gallery of the first sets of all rows; None where there is none."""
    shown = [
        Shown(f"{titles(record)[row['name']]}, {row['ipc']} per class", distilled, confusion=_confusion(row, store))
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
        shown.append({"name": titles(record)[row["name"]], "picture": data_uri(png(image))})
    return shown
