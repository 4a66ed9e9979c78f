"""potstill distils a training set: a small synthetic one on which networks train as well as on the original.

distilled = potstill.load("runs/digits-ipc1")
network = potstill.train(distilled)
predicted = network(distilled.transform(uint8_images)).argmax(1)
"""

from potstill.data.distilled import Distilled, load
from potstill.errors import PotstillError
from potstill.evaluation.evaluator import train
from potstill.files import VERSION as __version__
from potstill.methods import METHODS
from potstill.runs.api import distill
from potstill.runs.settings import Settings, configure

__all__ = [
    "METHODS", "Distilled", "PotstillError", "Settings", "__version__", "configure", "distill", "load", "train",
]  # fmt: skip
