"""Progress in a terminal, a notebook and a log."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from potstill.errors import PotstillError
from potstill.runs import progress

EVENTS = [{"stage": "distilling", "done": done, "total": 4, "loss": 0.5} for done in range(5)]


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def watch(wanted, clock=None, seconds=0.0):
    with progress.shown(wanted) as begin:
        show = begin()
        for event in EVENTS:
            show(event)
            if clock:
                clock[0] += seconds


def test_lines_now_and_then_where_there_is_no_terminal(clock, capsys):
    watch(True, clock, 10.0)
    assert capsys.readouterr().err.splitlines() == [
        "distilling 0/4  loss 0.500", "distilling 2/4, 20 s left  loss 0.500", "distilling 4/4  loss 0.500",
    ]  # fmt: skip


def test_silence_and_the_callers_own_function(capsys):
    seen = []
    watch(False)
    watch(seen.append)
    assert seen == EVENTS
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""
    with pytest.raises(PotstillError, match="progress 3: True, False or a function"):
        watch(3)


def test_a_bar_in_a_notebook(clock, monkeypatch, capsys):
    drawn = []
    handle = SimpleNamespace(update=lambda shown: drawn.append(shown))
    display = SimpleNamespace(HTML=str, display=lambda shown, display_id: handle)
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    watch(True, clock, 0.3)  # faster than one can look: every other one is drawn, and the last
    assert [text.partition(" max")[0].rpartition("=")[2] for text in drawn] == ['"0"', '"2"', '"4"']
    assert drawn[1] == '<div>distilling <progress value="2" max="4"></progress> 2/4, 1 s left, loss 0.500</div>'
    assert capsys.readouterr().err == ""


def test_the_time_left_is_the_events_own_where_it_knows(clock):
    pace, event = progress.Pace(), {"stage": "comparing", "done": 0, "total": 4}
    assert [pace.left({**event, "left": left}) for left in (None, 300.0)] == ["", "5 min left"]
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with progress.bars(console) as begin:
        show = begin()
        show({**event, "left": None, "doing": "one"})
        show({**event, "done": 1, "left": 3725.0, "doing": "another"})
    assert "left 1:02:05" in re.sub("\x1b[^m]*m", "", text.getvalue())


def test_without_rich_lines_are_printed(clock, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    watch(True, clock)
    assert capsys.readouterr().err.splitlines()[-1] == "distilling 4/4  loss 0.500"


def test_durations_read_well():
    assert [progress.duration(seconds) for seconds in (3, 200, 7200)] == ["3 s", "3 min", "2.0 h"]
