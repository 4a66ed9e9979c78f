"""potstill distils a training set: a small synthetic one on which networks train as well as on the original.

distilled = potstill.distill((images, labels), ipc=10)
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
    from potstill.methods import METHODS, methods
    from potstill.runs.api import Selected, distill, evaluate, select
    from potstill.runs.settings import Settings, configure
    from potstill.studies.api import compare

__all__ = [
    "METHODS", "Distilled", "PotstillError", "Selected", "Settings", "__version__", "compare", "configure", "distill",
    "evaluate", "load", "methods", "select", "train",
]  # fmt: skip

_HOMES = {
    "METHODS": "methods", "methods": "methods", "Distilled": "data.distilled", "load": "data.distilled",
    "train": "evaluation.evaluator", "distill": "runs.api", "evaluate": "runs.api", "select": "runs.api",
    "Selected": "runs.api", "compare": "studies.api", "Settings": "runs.settings", "configure": "runs.settings",
}  # fmt: skip
"""Where a name lives: read at its first use, for PyTorch takes two seconds, which `potstill --help` need not wait."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    home = importlib.import_module(f"potstill.{_HOMES[name]}")
    found = home if name == _HOMES[name] else getattr(home, name)  # the methods are a package that can be called
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
