"""The exception that reaches users, a value, the reason it cannot be used, and the remedy; and its one special kind."""


class PotstillError(ValueError):
    """Something the user can mend.  The message is a whole sentence; the command line prints it and exits with 1."""


class Diverged(PotstillError):
    """Distilling diverged again and again, however often the last step was undone."""
