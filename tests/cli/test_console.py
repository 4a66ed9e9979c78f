"""What a narrow terminal shows of the progress, and what is said after a run."""

import io

import pytest
from rich.console import Console

from potstill.cli import console

EVENT = {
    "stage": "distilling", "done": 1000, "total": 3300, "expert": 23, "loss": 1.03, "step_size": 0.0198,
    "validation": {"on": "validation", "accuracy": 0.222}, "skipped": 3,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100, 125, 160])
def test_bar_count_and_time_left_are_whole_at_any_width(monkeypatch, width):
    shown = io.StringIO()
    terminal = Console(file=shown, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "err", terminal)
    with console.progress() as show:
        show({**EVENT, "done": 1000 + i} for i in range(3))
    line = [line for line in shown.getvalue().replace("\r", "\n").splitlines() if "distilling" in line][-1]
    assert len(line) <= width + len("\x1b[2K")
    for whole in ("distilling", "━━━", "1002/3300", "left 0:0", "exp"):
        assert whole in line
