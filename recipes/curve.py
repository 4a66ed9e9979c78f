"""Accuracy against minutes, of the evaluations that runs had on the way.

python recipes/curve.py cifar10-ipc1-cpu cifar10-ipc1-sixteen-w64-cpu --out records/cifar10-ipc1-minutes.png

Each name is a record of a run.  Of names joined by + each goes on at the set of the one before, and their minutes are
added up: a line of several pieces, for another network may judge.  Accuracies are of validation images, by the run's
own network; minutes are of experts and distilling, without evaluations.  Older records do not say when an evaluation
was: of these the first and the last are drawn, and their minutes of distilling hold the evaluations on the way.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill import files
from potstill.errors import PotstillError
from potstill.report import figures
from potstill.studies.cells import validation_of

RECORDS = Path(__file__).parents[1] / "records"
Points = list[tuple[float, float]]


def points(records: Sequence[dict[str, Any]]) -> list[Points]:
    """Minutes and accuracies in per cent, a list for each of some runs that go on one from another.

    Raises:
        PotstillError: nothing was evaluated on the way.
    """
    pieces: list[Points] = []
    before, trained = 0.0, []  # seconds, and the experts that they hold
    for record in records:
        seconds = record["seconds"]
        identity = {name: value for name, value in (record.get("experts") or {}).items() if name != "count"}
        if identity not in trained:
            before += seconds["experts"] or 0.0
            trained.append(identity)
        last = record["iterations"]["iteration"]
        ends = {0: 0.0, last: seconds["distill"]}
        piece = []
        for entry in validation_of(record):
            spent = entry.get("seconds", ends.get(entry["iteration"]))
            if spent is not None:
                piece.append(((before + spent) / 60, 100 * entry["accuracy"]))
                ends[entry["iteration"]] = spent
        if not piece:
            raise PotstillError("a record without evaluations on the way; run the recipe with --evaluations 4.")
        pieces.append(piece)
        before += ends[last]
    return pieces


def drawn(runs: Sequence[str], folder: Path = RECORDS) -> bytes:
    """The picture of some runs, each by the names of its records joined by +."""
    figure, plot = figures.axes("minutes of experts and distilling", "validation accuracy, %", height=3.8)
    for number, run in enumerate(runs):
        names = run.split("+")
        colour, label = figures.SERIES[number % len(figures.SERIES)], ", then ".join(names)
        for piece in points([files.read_json(folder / f"{name}.json") for name in names]):
            plot.plot(*zip(*piece, strict=True), marker="o", markersize=4, color=colour, label=label)
            label = ""
    plot.set_xlim(left=0)
    plot.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    return figures.render(figure, "png")


def main() -> None:
    """Draw what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="records, those that go on one from another joined by +")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a .png")
    given = parser.parse_args()
    files.write_bytes(given.out, drawn(given.runs))


if __name__ == "__main__":
    main()
