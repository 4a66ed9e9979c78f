"""How far the work is: bars in a terminal and in a notebook, lines elsewhere, each with the time left.

What a stage yields are events, mappings with "stage", "done", "total" and what else is worth knowing; whoever shows
them takes one after the other.
"""

import html
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from potstill.errors import PotstillError

Watcher = Callable[[dict[str, Any]], None]
"""Is told every event of a stage."""
Begin = Callable[[], Watcher]
"""Makes a watcher for the next stage."""
WIDE = 125  # columns from which on there is room for everything
PLAIN_SECONDS = 15.0  # between lines of progress where the output is no terminal
NOTEBOOK_SECONDS = 0.5  # between two looks of a bar in a notebook


@contextmanager
def shown(wanted: bool | Watcher) -> Iterator[Begin]:
    """What a call shows of its progress: True what suits the place, False nothing, or the caller's function.

    Raises:
        PotstillError: neither a bool nor a function.
    """
    if wanted is True:
        with _here() as begin:
            yield begin
    elif wanted is False or wanted is None:
        yield lambda: lambda event: None
    elif callable(wanted):
        yield lambda: wanted
    else:
        raise PotstillError(f"progress {wanted!r}: True, False or a function of an event is needed; give one of them.")


@contextmanager
def _here() -> Iterator[Begin]:
    """Bars or lines, whichever this place can show."""
    if in_notebook():
        yield _notebook_bar
        return
    try:
        from rich.console import Console
    except ImportError:
        yield lambda: PlainLines(lambda line: print(line, file=sys.stderr))
        return
    with bars(Console(stderr=True, highlight=False)) as begin:
        yield begin


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


# --- terminals and logs --------------------------------------------------------------------------------------------


@contextmanager
def bars(console: Any) -> Iterator[Begin]:
    """A bar a stage on a console of rich's; where that is no terminal, a line now and then."""
    from rich.progress import Progress

    live = Progress(
        *_columns(console.width), console=console, disable=not console.is_terminal, speed_estimate_period=120,
        expand=True,
    )  # fmt: skip

    def begin() -> Watcher:
        if not console.is_terminal:
            return PlainLines(lambda line: console.print(line, markup=False, soft_wrap=True))
        bar = live.add_task("starting", total=None, detail="reading the data", event={})

        def show(event: dict[str, Any]) -> None:
            live.update(
                bar, description=event["stage"], completed=event["done"], total=event["total"], detail=detail(event),
                event=event,
            )  # fmt: skip

        return show

    with live:
        yield begin


def _columns(width: int) -> list[Any]:
    """Stage, bar, count and time left stay whole however narrow the terminal; what is told besides gives way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Left(TimeRemainingColumn):
        """The time left by an event's own word, where it has one."""

        def render(self, task: Task) -> Text:
            if task.finished or "left" not in task.fields["event"]:
                return super().render(task)
            left = task.fields["event"]["left"]
            return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="progress.remaining")

    def whole(least: int) -> Column:
        return Column(no_wrap=True, min_width=least)

    passed = [TimeElapsedColumn(table_column=whole(7))] if width >= WIDE else []
    return [
        TextColumn("{task.description}", table_column=whole(10)), BarColumn(40 if width >= WIDE else 12),
        MofNCompleteColumn(table_column=whole(9)), *passed, TextColumn("left", table_column=whole(4)),
        Left(elapsed_when_finished=False, table_column=whole(7)),
        TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    ]  # fmt: skip


class Pace:
    """How long what is left will take, by what was done since the first event."""

    def __init__(self) -> None:
        self.began, self.first = time.monotonic(), None

    def left(self, event: dict[str, Any]) -> str:
        """ "3 min left", by the event's own "left" where it has one; nothing where it is not known or all is done."""
        done, total = event["done"], event["total"]
        if "left" in event:
            return "" if event["left"] is None else f"{duration(event['left'])} left"
        if self.first is None:
            self.first = done
        fresh = done - self.first
        if not fresh or done >= total:
            return ""
        return f"{duration((time.monotonic() - self.began) / fresh * (total - done))} left"


class PlainLines:
    """Progress as lines now and then, for logs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.pace, self.printed = write, Pace(), 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Write a line, if it is time for one or all is done."""
        now, left = time.monotonic(), self.pace.left(event)
        if now - self.printed < PLAIN_SECONDS and event["done"] < event["total"]:
            return
        self.printed = now
        self.write(f"{event['stage']} {event['done']}/{event['total']}{left and f', {left}'}  {detail(event)}")


# --- notebooks -----------------------------------------------------------------------------------------------------


def _notebook_bar() -> Watcher:
    """A bar in the output of a cell, by the browser's own element."""
    found: Any = importlib.import_module("IPython.display")  # is there, for it runs this
    html_of, display = found.HTML, found.display
    handle, pace, drawn = display(html_of(""), display_id=True), Pace(), 0.0

    def show(event: dict[str, Any]) -> None:
        nonlocal drawn
        now, left = time.monotonic(), pace.left(event)
        if now - drawn > NOTEBOOK_SECONDS or event["done"] >= event["total"]:
            drawn = now
            handle.update(html_of(as_html(event, left)))

    return show


def as_html(event: dict[str, Any], left: str) -> str:
    """An event as a bar."""
    done, total = event["done"], event["total"]
    words = ", ".join(part for part in (f"{done}/{total}", left, detail(event)) if part)
    return (
        f'<div>{html.escape(event["stage"])} <progress value="{done}" max="{total}"></progress> '
        f"{html.escape(words)}</div>"
    )


# --- words ---------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def detail(event: dict[str, Any]) -> str:
    """What is worth knowing of an event, in a few words."""
    parts: Iterable[tuple[str, str]] = (
        ("doing", "{}"), ("expert", "expert {}"), ("epoch", "epoch {}"),
        ("loss", "loss {:.3f}"), ("step_size", "step size {:.4f}"),
        ("cell", "{}"), ("validation", "{0[on]} {0[accuracy]:.1%}"), ("set", "{}"), ("network", "network {}"),
    )  # fmt: skip
    words = [text.format(event[name]) for name, text in parts if name in event]
    counts = (("skipped", "skipped"), ("rolled_back", "undone"))
    words += [f"{event[name]} {label}" for name, label in counts if event.get(name)]
    return ", ".join(words)
