"""What each part of a method of the trajectory family is worth: one thing changed at a time (DATM, section 4.3)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from potstill.methods.trajectory import range_of
from potstill.report.study_page import Record, Study, Table, compared_with_the_first
from potstill.runs.settings import Settings
from potstill.studies.cells import Cell, keep_all, trajectory_of, with_first

Part = Literal["labels", "start-epochs", "initial", "experts", "gradient"]
"""What an ablation changes."""


def base(given: Settings) -> Cell:
    """The run as given, which everything is compared with."""
    trajectory_of(given)
    return Cell("as-given", {"part": "as given", "variant": ""}, keep_all(given))


def cells(settled: Settings, parts: Sequence[Part] = get_args(Part)) -> list[Cell]:
    """A run with nothing left to measure, with one thing changed at a time; what changes nothing is left out."""
    found = []
    for part, variant, changed in _variants(settled):
        name = "-".join("".join(c if c.isalnum() else " " for c in f"{part} {variant}").split())
        if part in parts and changed != settled:
            found.append(Cell(name, {"part": part, "variant": variant}, changed))
    return found


def _variants(settled: Settings) -> list[tuple[Part, str, Settings]]:
    first = trajectory_of(settled)
    start = range_of(first)
    assert start is not None  # settled
    half = start.first + max(1, (start.stop - start.first) // 2)
    opening = None if first.opening else (half, max(1, first.iterations // 2))
    variants: list[tuple[Part, str, Settings]] = [
        ("labels", "soft, not learned", with_first(settled, labels="soft")),
        ("labels", "hard", with_first(settled, labels="hard")),
        ("labels", "learned", with_first(settled, labels="learned", lr_logits=first.lr_logits or 5.0)),
        ("start-epochs", "open from the start" if first.opening else "growing", with_first(settled, opening=opening)),
        ("initial", "any real images", with_first(settled, initial="random")),
        ("experts", "1", _experts(settled, 1)),
        ("gradient", "frozen (TESLA)", with_first(settled, adjoint="frozen")),
    ]
    if settled.expert.count > 3:
        few = settled.expert.count // 2
        variants.insert(-1, ("experts", str(few), _experts(settled, few)))
    return variants


def _experts(settled: Settings, count: int) -> Settings:
    return replace(settled, expert=replace(settled.expert, count=count))


def _names(record: Record) -> list[str]:
    return [f"{c['part']}: {c['variant']}" if c["variant"] else c["part"] for c in record["cells"]]


def _compared(record: Record) -> tuple[Table, Any]:
    title = f"One thing changed: {record['dataset']}"
    return compared_with_the_first(record, _names(record), title, "what is changed", "over the run as given")


def summary(record: Record) -> str:
    """The changes that make more of a difference than fresh networks do; each is one distilled set."""
    changed = [c for c in record["cells"][1:] if (ci := c["over_base"]["ci95"]) and not ci[0] <= 0 <= ci[1]]
    if not changed:
        return "No change makes more of a difference than fresh networks do"
    words = [f"{c['part']}: {c['variant']} ({100 * c['over_base']['mean']:+.1f})" for c in changed]
    return f"More than fresh networks differ: {', '.join(words)}"


STUDY = Study(
    kind="ablations",
    title=lambda record: f"What each part of the method is worth: {record['dataset']}",
    caption="Test accuracy of the run as given (first, and dashed) and of the same run with one thing changed; lines "
    "are 95 % intervals over networks. Each row is one distilled set.",
    table=lambda record: _compared(record)[0],
    figure=lambda record: _compared(record)[1],
    summary=summary,
)
