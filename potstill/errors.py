"""The one exception that reaches users: a value, the reason it cannot be used, and the remedy."""


class PotstillError(ValueError):
    """Something the user can mend.  The message is a whole sentence; the command line prints it and exits with 1."""
