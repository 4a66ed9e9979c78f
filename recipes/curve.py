"""Accuracy against minutes, of the evaluations that runs had on the way.

python recipes/curve.py cifar10-ipc1-minutes cifar10-ipc1-cpu cifar10-ipc1-sixteen-w64-cpu

Each name after the first is a record of a run; those joined by + go on at the set of the one before, and their minutes
are added up.  Accuracies are of validation images, by the run's own network; minutes are of experts and distilling,
without the evaluations.  Older records do not say when an evaluation was: of these the first and the last are drawn.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import files
from potstill.report import figures

RECORDS = Path(__file__).parents[1] / "records"


def points(records: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Minutes and accuracies in per cent of one run, or of several that go on one from another."""
    minutes, accuracies, before = [], [], 0.0
    for record in records:
        before += record["seconds"]["experts"]
        last = record["iterations"]["iteration"]
        for entry in record["validation"]:
            ends = {0: 0.0, last: record["seconds"]["distill"]}.get(entry["iteration"])
            seconds = entry.get("seconds", ends)
            if seconds is not None:
                minutes.append((before + seconds) / 60)
                accuracies.append(100 * entry["accuracy"])
        before += record["seconds"]["distill"]
    return minutes, accuracies


def drawn(runs: Sequence[str], folder: Path = RECORDS) -> bytes:
    """The picture of some runs, each by the names of its records joined by +."""
    figure, plot = figures.axes("minutes of experts and distilling", "validation accuracy, %", height=3.4)
    for number, run in enumerate(runs):
        names = run.split("+")
        minutes, accuracies = points([files.read_json(folder / f"{name}.json") for name in names])
        colour = figures.SERIES[number % len(figures.SERIES)]
        plot.plot(minutes, accuracies, marker="o", markersize=4, color=colour, label=", then ".join(names))
    plot.set_xlim(left=0)
    plot.legend(frameon=False, fontsize=8, loc="lower right")
    return figures.render(figure, "png")


def main() -> None:
    """Draw what is named, into records/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the picture")
    parser.add_argument("runs", nargs="+", help="records, those that go on one from another joined by +")
    given = parser.parse_args()
    files.write_bytes(RECORDS / f"{given.name}.png", drawn(given.runs))


if __name__ == "__main__":
    main()
