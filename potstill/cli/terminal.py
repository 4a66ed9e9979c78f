"""The two streams, and a sentence on each; light, for it is there before PyTorch is."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends with a code of its own."""
        raise  # the BrokenPipeError that is being handled


out, err = _Console(highlight=False), _Console(stderr=True, highlight=False)


@dataclass
class Mode:
    """How much is told: what the flags that every command has ask for."""

    quiet: bool = False  # no progress, no remarks and no log below a warning; results and errors stay
    json: bool = False  # the results as JSON on stdout, and all else on stderr


mode = Mode()


@contextlib.contextmanager
def telling(quiet: bool, json: bool) -> Iterator[None]:
    """Tell as much as the flags ask for, to the end of the block."""
    mode.quiet, mode.json, out.stderr = quiet, json, json
    try:
        yield
    finally:
        mode.quiet, mode.json, out.stderr = False, False, False


def say(text: str) -> None:
    """Print text as it stands: a path may hold what rich takes for markup."""
    out.print(text, markup=False, soft_wrap=True)


def remark(text: str) -> None:
    """Print what is no result: what begins, what could be done next.  Not where quiet was asked for."""
    if not mode.quiet:
        say(text)


def fail(sentence: str) -> int:
    """Print one sentence as an error; returns the exit code."""
    with contextlib.suppress(OSError):  # nobody may be there to read it
        err.print("[bold red]error:[/] ", end="")
        err.print(sentence, markup=False, soft_wrap=True)
    return 1


def silence() -> None:
    """Print no results any more: whoever read has gone, and what is still buffered would fail once more at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
