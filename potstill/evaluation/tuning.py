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
from potstill.evaluation.evaluator import Evaluator, Event, training_set_of, validation_accuracy
from potstill.networks.architectures import NetworkConfig

TRIED_FRACTIONS = (1.0, 0.5, 0.25, 0.125)  # of the learned step size, that are tried where it is to be chosen
SMALLER_FRACTIONS = (0.0625, 0.03125)  # and tried as long as the smallest one before is the best
Wanted = Literal["learned", "chosen"]
Tried = dict[str, Any]
"""{"step_size", "accuracy"}: one that was tried (None where the set has none), and the mean accuracy on validation
images, a fraction of 1."""


def try_step_sizes(
    evaluator: Evaluator, distilled: Distilled, wanted: Wanted, event: Event
) -> Generator[Event, None, list[Tried]]:  # fmt: skip
    """Accuracies on validation images by step size: the set's own, and where one is to be chosen, smaller ones too.

    Yields ``event`` before each one tried.
    """
    training_set = training_set_of(distilled, evaluator.config, evaluator.problem.device)
    if wanted == "learned":
        yield {**event, "doing": "evaluating"}
        return [{"step_size": distilled.step_size, "accuracy": validation_accuracy(evaluator, training_set)}]
    tried: list[Tried] = []
    for fraction in TRIED_FRACTIONS + SMALLER_FRACTIONS:
        if fraction in SMALLER_FRACTIONS and max(tried, key=lambda entry: entry["accuracy"]) is not tried[-1]:
            break
        step_size = training_set.alpha * fraction
        yield {**event, "doing": f"training with step size {step_size:.3g}"}
        accuracy = validation_accuracy(evaluator, replace(training_set, step_size=step_size))
        tried.append({"step_size": step_size, "accuracy": accuracy})
    return tried


def with_best(distilled: Distilled, tried: list[Tried], **provenance: Any) -> Distilled:
    """The set with the best of the step sizes tried, the first of equal ones; what was tried is in its provenance."""
    best = max(tried, key=lambda entry: entry["accuracy"])
    found = {
        **distilled.provenance, **provenance, "chosen_with_accuracy": best["accuracy"],
        "step_sizes": tried if len(tried) > 1 else [],
    }  # fmt: skip
    return replace(distilled, step_size=best["step_size"], provenance=found)


def choose_step_size(
    evaluator: Evaluator, distilled: Distilled, wanted: Wanted, event: Event
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
    if wanted == "chosen" and not tried:
        if evaluator.config != NetworkConfig(**distilled.recipe["network"]):
            raise PotstillError(
                "step_size chosen: is between the step size the set has learned and smaller ones, which another "
                "network than the set's does not use; leave it out."
            )
        began = time.monotonic()
        tried = yield from try_step_sizes(evaluator, distilled, wanted, event)
        return with_best(distilled, tried, choosing_seconds=time.monotonic() - began)
    return with_best(distilled, tried[:1]) if wanted == "learned" and tried else distilled
