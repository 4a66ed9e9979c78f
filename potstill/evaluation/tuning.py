"""The step size that networks train with, chosen on validation images.

The step size a set learns is the student's, which walks a few epochs of plain SGD.  A network of the protocol walks a
thousand with momentum, and may want smaller steps; larger ones have not helped.
"""

import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any, Literal

from potstill.data.distilled import Distilled
from potstill.errors import PotstillError
from potstill.evaluation.evaluator import Evaluator, Event, TrainingSet, training_set_of, validation_accuracy
from potstill.networks.architectures import NetworkConfig

TRIED_FRACTIONS = (1.0, 0.5, 0.25, 0.125)  # of the learned step size, that are tried where it is to be chosen
Tried = dict[str, Any]
"""{"step_size", "accuracy"}: one that was tried (None where the set has none), and the mean accuracy on validation
images, a fraction of 1."""


def step_sizes(
    evaluator: Evaluator, training_set: TrainingSet, event: Event
) -> Generator[Event, None, list[Tried]]:  # fmt: skip
    """Accuracies on validation images by step size, the set's own first; yields ``event`` before each one tried."""
    tried = []
    for step_size in (training_set.alpha * fraction for fraction in TRIED_FRACTIONS):
        yield {**event, "doing": f"training with step size {step_size:.3g}"}
        accuracy = validation_accuracy(evaluator, replace(training_set, step_size=step_size))
        tried.append({"step_size": step_size, "accuracy": accuracy})
    return tried


def best(tried: list[Tried]) -> Tried:
    """The entry of highest accuracy, the first of equal ones."""
    return max(tried, key=lambda entry: entry["accuracy"])


def choose_step_size(
    evaluator: Evaluator, distilled: Distilled, wanted: Literal["learned", "chosen"], event: Event
) -> Generator[Event, None, Distilled]:  # fmt: skip
    """The set with the step size to train with: the student's own, or one chosen on validation images.

    A set keeps in its provenance what was tried, so that nothing is tried twice, and a set whose step size was chosen
    can be given back its own.  A set that is already as wanted is returned unchanged, the very object.

    Args:
        evaluator: what is trained, and how.
        distilled: the set.
        wanted: "learned" or "chosen".
        event: yielded before each step size tried.

    Raises:
        PotstillError: one is to be chosen by another network than the set's own, which does not use it.
    """
    tried = distilled.provenance.get("step_sizes", [])
    provenance: dict[str, Any] = {**distilled.provenance, "step_sizes": []}
    if wanted == "chosen" and not tried:
        if evaluator.config != NetworkConfig(**distilled.recipe["network"]):
            raise PotstillError(
                "step_size chosen: is between the step size the set has learned and smaller ones, which another "
                "network than the set's does not use; leave it out."
            )
        training_set = training_set_of(distilled, evaluator.config, evaluator.problem.device)
        began = time.monotonic()
        provenance["step_sizes"] = yield from step_sizes(evaluator, training_set, event)
        provenance["choosing_seconds"] = time.monotonic() - began
        taken = best(provenance["step_sizes"])
    elif wanted == "learned" and tried:
        taken = tried[0]
    else:
        return distilled
    provenance["chosen_with_accuracy"] = taken["accuracy"]
    return replace(distilled, step_size=taken["step_size"], provenance=provenance)
