"""Functions that users give in Python: files and settings know them by what they compute, "own:NAME#HASH".

The function itself must be given again in every program that calls it.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill import files
from potstill.errors import PotstillError

PREFIX = "own:"


def called(function: Any) -> str:
    """A function as messages and names call it."""
    return str(getattr(function, "__name__", None) or type(function).__name__).strip("<>")


class Given:
    """The functions of one kind that were given in this process, by their names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind  # of the argument
        self.known: dict[str, Callable[..., Any]] = {}

    def remember(self, function: Callable[..., Any], *contents: Any) -> str:
        """The name of a function of these contents (JSON-like, or tensors), under which it is found from now on."""
        name = f"{PREFIX}{called(function)}#{files.fingerprint(*contents)[:8]}"
        self.known[name] = function
        return name

    def find(self, name: str) -> Any:
        """The function behind a name.

        Raises:
            PotstillError: it was not given in this process.
        """
        if name not in self.known:
            raise PotstillError(
                f"{self.kind} {name}: was given as a function in Python, which is not known here; give it again "
                f"({self.kind}=function), or choose one of potstill's by its name."
            )
        return self.known[name]


class Steps(TorchDispatchMode):
    """Writes down every operation that is computed inside: its name, which tensors it takes, its plain arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []
        self._seen: list[Any] = []  # held, so that no two have the same id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        told = [self._told(value) for value in (*args, *sorted((kwargs or {}).items()), result)]
        self.found.append([str(func), told])
        return result

    def _told(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = next((i for i, seen in enumerate(self._seen) if seen is value), len(self._seen))
            self._seen[number:] = self._seen[number:] or [value]
            return [number, list(value.shape)]
        if isinstance(value, list | tuple):
            return [self._told(one) for one in value]
        return str(value)
