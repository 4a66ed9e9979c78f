"""potstill distils a training set: a small synthetic one on which networks train as well as on the original.

distilled = potstill.load("runs/digits-ipc1")
network = potstill.train(distilled)
predicted = network(distilled.transform(uint8_images)).argmax(1)
"""

import importlib
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.version import VERSION as __version__

if TYPE_CHECKING:
    from potstill.data.distilled import Distilled, load
    from potstill.evaluation.evaluator import train
    from potstill.methods import METHODS
    from potstill.runs.api import distill
    from potstill.runs.settings import Settings, configure

__all__ = [
    "METHODS", "Distilled", "PotstillError", "Settings", "__version__", "configure", "distill", "load", "train",
]  # fmt: skip

_HOMES = {
    "METHODS": "methods", "Distilled": "data.distilled", "load": "data.distilled", "train": "evaluation.evaluator",
    "distill": "runs.api", "Settings": "runs.settings", "configure": "runs.settings",
}  # fmt: skip
"""Where a name lives: read at its first use, for PyTorch takes two seconds, which `potstill --help` need not wait."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"potstill.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
