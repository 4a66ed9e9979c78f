"""Taking turns: a process that runs one iteration each time it is told to, and says how long it took.

Imports nothing but the standard library: authors' code runs under it, perhaps by another interpreter than ours.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Turns:
    """The process's end: :meth:`mark` where an iteration ends and the next one begins."""

    def __init__(self) -> None:
        self.report = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what scripts print goes to the log
        self.began: float | None = None

    def mark(self) -> None:
        """Say how long the iteration took that ends here, and wait for the next turn; none comes: leave."""
        self.report.write("ready\n" if self.began is None else f"{time.perf_counter() - self.began}\n")
        if not sys.stdin.readline():
            os._exit(0)  # in the midst of somebody's script, which would go on for days
        self.began = time.perf_counter()


class Side:
    """The other end: a process that takes turns."""

    def __init__(
        self, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

    def ready(self) -> None:
        """Wait until its first iteration, which does not count, is over."""
        self._line()

    def turn(self) -> float:
        """Seconds of its next iteration."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """No more turns."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _line(self) -> str:
        """What it reports.

        Raises:
            RuntimeError: it ended, with the last lines of its log.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("it ended too early:\n" + "\n".join(self.log.read_text().splitlines()[-15:]))
        return line.strip()
