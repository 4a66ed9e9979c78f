"""The outer loop: loss, gradient, step, yield metrics.  A state is a value; an iteration makes the next one.

Several processes each find their part of the loss and of its gradient; both are summed here, and nowhere else.  So all
of them decide alike and step alike, and their states stay the same bit for bit.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from potstill import ranks
from potstill.errors import Diverged, PotstillError
from potstill.methods import outer
from potstill.methods.method import Context, Method, Outcome, Variables
from potstill.runs.state import State

PATIENCE = 20  # iterations refused from the beginning, or diverging in a row, after which something else is wrong
MOST_IN_VAIN = 8  # an eighth of all iterations


def iterate(
    method: Method, ctx: Context, settings: Any, state: State
) -> Iterator[tuple[State, dict[str, Any]]]:  # fmt: skip
    """Run a stage's iterations from ``state`` on, and yield each new state with its metrics.

    An iteration that the method does not accept is not stepped on.  Where a loss or a gradient is not finite, the last
    step led astray: it is undone, its momentum forgotten, and the iteration counted in ``rolled_back``.

    Raises:
        Diverged: twenty iterations in a row, or an eighth of all, diverged; or the method accepted none of the first
            twenty, or refused an eighth of all.
        PotstillError: the method's loss does not depend on a variable that it learns.
    """
    total = method.iterations(settings)
    while state.iteration < total:
        began = time.perf_counter()
        outcome, gradients = differentiate(method, ctx, settings, state)
        loss = ranks.total(float(outcome.loss.detach()))
        gradients = dict(zip(gradients, ranks.summed(list(gradients.values())), strict=True))
        metrics = {"iteration": state.total, "loss": loss, **outcome.metrics}
        if "step_size" in state.variables:
            metrics["step_size"] = float(state.variables["step_size"])
        finite = math.isfinite(loss) and all(bool(g.square().sum().isfinite()) for g in gradients.values())
        if not finite:
            stepped = _undo(method, settings, state, outcome)
        elif not outcome.accept:
            stepped = replace(
                state, memory=_refused_memory(state, outcome), skipped=state.skipped + 1, refused=state.refused + 1,
                in_a_row=0,
            )  # fmt: skip
        else:
            stepped = _step(method, settings, replace(state, memory=outcome.memory), gradients)
        seconds = state.seconds + time.perf_counter() - began
        state = replace(stepped, iteration=state.iteration + 1, seconds=seconds)
        _check_progress(method, settings, state)
        yield state, {**metrics, "accepted": outcome.accept, "skipped": state.skipped, "rolled_back": state.rolled_back}


def differentiate(method: Method, ctx: Context, settings: Any, state: State) -> tuple[Outcome, Variables]:
    """What one iteration finds in this process, and the gradient of its loss in each variable that is learned."""
    rules = method.learns(settings)
    leaves = {name: x.detach().requires_grad_(name in rules) for name, x in state.variables.items()}
    assert method.loss is not None
    outcome = method.loss(ctx, settings, leaves, state.memory, state.labels, state.iteration)
    try:
        gradients = torch.autograd.grad(outcome.loss, [leaves[name] for name in rules])
    except RuntimeError as error:
        if "not have been used" not in str(error) and "does not require grad" not in str(error):
            raise
        raise PotstillError(
            f"method {method.name}: its loss does not depend on all of {', '.join(rules)}, which it learns; take those "
            "it ignores out of its rules."
        ) from error
    return outcome, dict(zip(rules, gradients, strict=True))


def _step(method: Method, settings: Any, state: State, gradients: Variables) -> State:
    """Each variable moved by its rule."""
    variables, moments = dict(state.variables), dict(state.moments)
    for name, rule in method.learns(settings).items():
        scale = outer.lr_scale(rule, state.iteration, method.iterations(settings))
        variables[name], moments[name] = outer.step(rule, variables[name], moments[name], gradients[name], scale)
    return replace(state, variables=variables, moments=moments, previous=state.variables, in_a_row=0)


def _undo(method: Method, settings: Any, state: State, outcome: Outcome) -> State:
    """The state before the last step, without the momentum that led astray."""
    rules = method.learns(settings)
    moments = {name: outer.undo(rule, state.previous[name], state.moments[name]) for name, rule in rules.items()}
    return replace(
        state,
        variables=state.previous,
        moments=moments,
        memory=_refused_memory(state, outcome),
        rolled_back=state.rolled_back + 1,
        undone=state.undone + 1,
        in_a_row=state.in_a_row + 1,
    )


def _refused_memory(state: State, outcome: Outcome) -> Variables:
    return state.memory if outcome.refused_memory is None else outcome.refused_memory


def _check_progress(method: Method, settings: Any, state: State) -> None:
    """Stop where iterations are in vain.

    Raises:
        Diverged: with the count, the reason and the remedy.
    """
    most = max(PATIENCE, method.iterations(settings) // MOST_IN_VAIN)
    if state.in_a_row >= PATIENCE or state.undone >= most:
        how = f"{PATIENCE} times in a row" if state.in_a_row >= PATIENCE else f"in {state.undone} iterations"
        raise Diverged(
            f"{method.name}: diverged {how} at iteration {state.iteration}, each time undone; lower its outer rates "
            f"(--{method.name}.lr-images) in another --out; --experts takes the experts along."
        )
    if state.refused >= most or state.refused == state.iteration >= PATIENCE:
        threshold = getattr(settings, "threshold", None)
        reason = "" if threshold is None else f", because their loss was above --{method.name}.threshold {threshold}"
        raise Diverged(
            f"{method.name}: took no step in {state.refused} of {state.iteration} iterations{reason}: this set "
            f"cannot follow what it is asked to. {_easier(method, settings)} in another --out; --experts takes the "
            "experts along."
        )


def _easier(method: Method, settings: Any) -> str:
    """What to ask of a set that cannot follow."""
    if getattr(settings, "start_epochs", None) is None:
        return f"Choose other settings of --{method.name} (see its --help), or more images per class"
    asked = " ".join(map(str, settings.start_epochs))
    return f"Take earlier --{method.name}.start-epochs than {asked}, a higher threshold, or more images per class"
