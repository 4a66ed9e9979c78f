"""What a user sees while work goes on and when it is done: progress with the time left, tables, one-sentence errors."""

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from potstill import files, store
from potstill.cli.doctor import Finding
from potstill.cli.terminal import err, mode, out, remark, say
from potstill.errors import PotstillError
from potstill.evaluation.protocol import described
from potstill.evaluation.statistics import difference
from potstill.methods import published
from potstill.methods.method import Cell, Method
from potstill.report import comparison_tables, figures, study_page
from potstill.report.study_page import Study
from potstill.runs import api
from potstill.runs.progress import Watcher, bars

T = TypeVar("T")


class ConsoleHandler(logging.Handler):
    """Prints what the package logs while it works, above the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        err.print(record.getMessage(), markup=False, soft_wrap=True)


def set_up_logging() -> None:
    """Print log messages from here on; a program that imports the package decides that for itself."""
    package = logging.getLogger("potstill")
    package.setLevel(logging.WARNING if mode.quiet else logging.INFO)
    package.handlers[:] = [ConsoleHandler()]


def print_json(result: Any) -> None:
    """The results of a command, for other programs."""
    print(files.as_json(result, indent=2))


def working(text: str) -> AbstractContextManager[Any]:
    """Show that something is going on that tells nothing of how far it is."""
    return nullcontext() if mode.quiet else err.status(text)


def size(count: float) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_results(results: dict[str, Any]) -> None:
    """The figures of a run as a table."""
    protocol = results["protocol"]
    title = f"{results['dataset']}, {results['ipc']} images per class, {results['network']}, {described(protocol)}"
    table = Table("trained on", "accuracy", "95 % interval", "networks", title=title)
    for name, label in figures.NAMES.items():
        if name in results["accuracy"]:
            figure = results["accuracy"][name]
            low_high = figure["ci95"]
            shown = f"{low_high[0]:.1%} to {low_high[1]:.1%}" if low_high else "one network: none"
            networks = str(len(figure["per_seed"]))
            if count := results.get("kept", {}).get(name):
                networks += f" ({count} kept)"
            table.add_row(label, f"{figure['mean']:.1%}", shown, networks)
    out.print(table)
    _print_gain(results)
    if results.get("kept"):
        remark(
            "kept: the accuracy of the same network on the same images, from an earlier evaluation (`potstill cache`)"
        )
    if protocol["selection"] == "test":
        out.print("protocol paper: chosen on the test set, only to compare with published tables")


def _print_gain(results: dict[str, Any]) -> None:
    """What the set gives beyond real images, and which state of it that is."""
    accuracy, chosen = results["accuracy"], results["chosen"]
    parts = []
    if {"distilled", "random"} <= accuracy.keys():
        found = difference(accuracy["distilled"], accuracy["random"])
        spread = f" ({found['ci95'][0]:+.1%} to {found['ci95'][1]:+.1%})" if found["ci95"] else ""
        parts.append(f"{100 * found['mean']:+.1f} points over random images{spread}")
    if results["iterations"].get("iteration"):
        parts.append(f"the set of iteration {chosen['iteration']} of {results['iterations']['iteration']}")
    say("; ".join(parts))


def print_cache(folder: Path, kinds: Mapping[str, tuple[int, int]]) -> None:
    """What is kept from earlier work: entries and bytes of each kind."""
    table = Table("kept", "entries", "size", "what it is", title=str(folder))
    for kind, (entries, size_of) in kinds.items():
        table.add_row(kind, str(entries), size(size_of), store.KINDS.get(kind, ""))
    out.print(table)
    remark("Nothing here is ever needed: `potstill cache --clear` deletes it, and what is asked for is made again.")


def print_findings(found: Sequence[Finding]) -> None:
    """What `potstill doctor` found, as a table; what is lacking stands out."""
    table = Table("", "here", "", box=None, padding=(0, 1))
    for item in found:
        table.add_row(item.name, Text(item.here, "yellow" if item.lacking else ""), Text(item.remark))
    out.print(table)
    if missing := [item.name for item in found if item.here == "missing"]:
        remark(f"what is missing comes by: pip install {' '.join(missing)}")


def print_study(study: Study, record: dict[str, Any], folder: Path) -> None:
    """The figures of a study as a table; writes its page too."""
    page = study_page.write(study, record, folder)
    header, rows = study.table(record)
    printed = Table(*header, title=record["dataset"])
    for row in rows:
        printed.add_row(*row["cells"], style="bold" if row["best"] else None)
    out.print(printed)
    say(f"{study.summary(record)}.")
    say(f"\nthe page    {page}\nthe figure  {page.with_suffix('.png')}\nfigures     {page.with_suffix('.json')}")


def print_comparison(record: Mapping[str, Any]) -> None:
    """A comparison as tables, and what was found in sentences."""
    for caption, header, rows in comparison_tables.tables(record):
        printed = Table(header[0], title=Text(f"{record['dataset']}, {caption}: test accuracy (%)"))
        for name in header[1:]:
            printed.add_column(name.replace(":", ":\n"), justify="right")
        for row in rows:
            printed.add_row(*(Text(text, "bold" if best else "") for text, best in row))
        out.print(printed)
    say("Bold: the best of a column, and what is not significantly worse. Intervals are over sets.")
    for sentence in comparison_tables.sentences(record):
        say(sentence)
    for note in comparison_tables.notes(record):
        say(note)


def print_methods(methods: Mapping[str, Method]) -> None:
    """All methods as a table."""
    table = Table("method", "family", "needs", "labels", "cells", "paper", padding=(0, 1), box=None)
    for method in methods.values():
        settings = method.settings()
        needs = "experts" if method.needs(settings) else "–"
        cells = str(len(method.published) or "–")
        table.add_row(f"[bold]{method.name}[/]", method.family, needs, method.kind(settings), cells, _short(method))
    out.print(table)
    remark("potstill methods NAME lists its cells; potstill run --method NAME --help its settings.")
    remark("Several methods are stages: potstill run --method datm rat-bptt")


def _short(method: Method) -> str:
    """Authors and venue of a method's paper."""
    authors, _, rest = method.citation.partition(', "')
    venue = rest.rpartition('", ')[2]
    return f"{authors}, {venue}" if rest else method.citation


def print_method(method: Method) -> None:
    """One method: its paper, and its cells as a table of the settings that its authors published."""
    say(f"{method.title}\n{method.citation}\n")
    known = published.cells(method.name)
    for dataset in dict.fromkeys(dataset for dataset, _ in known):
        row = ", ".join(
            f"{100 * found.accuracy:.1f} at {ipc}" for (name, ipc), found in known.items() if name == dataset
        )
        source = next(found.source for (name, _), found in known.items() if name == dataset)
        say(f"published accuracy, {dataset}: {row} images per class ({source})")
    for title, cells in (("as published", method.published), ("tuned here", method.tuned)):
        if cells:
            _print_cells(title, cells)
    remark(f"potstill run --method {method.name} --help explains every setting.")


def _print_cells(title: str, cells: Mapping[Cell, Mapping[str, Any]]) -> None:
    """What all cells share once, then a line for each with what is its own."""
    first, *others = cells.values()
    shared = {name: value for name, value in first.items() if all(cell.get(name) == value for cell in others)}
    out.print(f"\n[bold]{title}[/]")
    say(f"  all: {_value(shared)}")
    for (dataset, ipc), cell in cells.items():
        own = {name: value for name, value in cell.items() if name not in shared and value is not None}
        if own:
            say(f"  {dataset}-ipc{ipc}: {_value(own)}")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, tuple | list):
        return " ".join(_value(item) for item in value)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def deadline(minutes: float | None) -> Watcher | None:
    """Interrupts the work, as Ctrl-C does, when so many minutes are over; from now on."""
    if minutes is None:
        return None
    ends = time.monotonic() + 60 * minutes

    def watch(event: dict[str, Any]) -> None:
        if time.monotonic() > ends:
            raise KeyboardInterrupt

    return watch


def _unseen() -> Watcher:
    return lambda event: None


@contextmanager
def progress(*watchers: Watcher | None) -> Any:
    """A function that runs a stage to its end and shows how far it is, with the time left; others may watch."""
    with nullcontext(_unseen) if mode.quiet else bars(err) as begin:

        def show(events: Generator[dict[str, Any], None, T]) -> T:
            bar = begin()

            def on_event(event: dict[str, Any]) -> None:
                bar(event)
                for watcher in watchers:
                    if watcher:
                        watcher(event)

            return api.run_to_completion(events, on_event)

        yield show


def tensorboard(wanted: bool, folder: Path) -> Callable[[dict[str, Any]], None] | None:
    """Writes the metrics of distilling as event files."""
    if not wanted:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PotstillError("--tensorboard: the package tensorboard is missing; pip install tensorboard.") from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def record(event: dict[str, Any]) -> None:
        if event["stage"] == "distilling" and "iteration" in event:
            for name, value in event.items():
                if isinstance(value, int | float) and name not in ("iteration", "done", "total"):
                    writer.add_scalar(name, value, event["iteration"])
            if "validation" in event:
                writer.add_scalar("accuracy", event["validation"]["accuracy"], event["validation"]["iteration"])
            writer.flush()

    return record
