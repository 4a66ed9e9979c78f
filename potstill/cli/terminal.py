"""The two streams, and a sentence on each; light, for it is there before PyTorch is."""

import contextlib
import os
import sys

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends with a code of its own."""
        raise  # the BrokenPipeError that is being handled


out, err = _Console(highlight=False), _Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print text as it stands: a path may hold what rich takes for markup."""
    out.print(text, markup=False, soft_wrap=True)


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
