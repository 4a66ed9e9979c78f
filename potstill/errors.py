"""The exception that reaches users, a value, the reason it cannot be used, and the remedy; and its special kinds."""

import re


class PotstillError(ValueError):
    """Something the user can mend.  The message is a whole sentence; the command line prints it and exits with 1.

    Example:
        >>> try:
        ...     potstill.distill("digits", ipc=0)
        ... except potstill.PotstillError as error:
        ...     print(error)
        ipc 0: at least 1 is needed; raise --ipc.
    """

    def __init__(self, message: str) -> None:
        """Messages quote what libraries and names of files say: on one line, and in characters that can be printed."""
        printable = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(re.sub(r"\s*[\r\n]\s*", " ", printable.strip()))


class InUse(PotstillError):
    """Another process works at the same thing now."""


class Diverged(PotstillError):
    """Distilling diverged again and again, however often the last step was undone."""


class ToldElsewhere(PotstillError):
    """One process of several ends because another has, which has told the reason: it is not printed once more."""
