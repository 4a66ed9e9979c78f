"""Automatic difficulty: which part of the experts' path a set of this size can follow, found by measuring.

A grid of matching losses tells how much of each part the set explains before anything is learned: by start epoch, over
inner steps, expert epochs and step sizes (a student's path is walked once for all of them).  Parts that it cannot match
at all are left out; the rest is cut into ranges of start epochs from easy to hard.  These are the arms of a successive
halving (Jamieson and Talwalkar, AISTATS 2016): each distils for a few iterations at rates that move images and labels
by the same small fraction, whatever the data; the worse half on validation images drops out at each rung, and the
winner's iterations are the first of the run.

A setting that is not None was chosen by someone, and is left as it is.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch

from potstill.adjoint.unroll import unroll
from potstill.errors import PotstillError
from potstill.methods import trajectory
from potstill.methods.method import Begun, Context, Measuring, Progress, Trial, shown
from potstill.methods.rates import scale_free
from potstill.methods.start_epochs import StartEpochs
from potstill.methods.trajectory import Trajectory
from potstill.networks.losses import loss_for

FIELDS = (
    "start_epochs", "inner_steps", "expert_epochs", "step_size", "lr_images", "lr_logits", "lr_step_size", "cooldown",
)  # fmt: skip
"""Settings that are found where they are None."""

GRID_EPOCHS = 8  # start epochs of the grid, evenly spaced
STEP_SIZES = (0.5, 1.0, 2.0)  # of the student, in step sizes of the experts
SPANS = (1, 2, 3)  # epochs of the expert (M)
STEP_FRACTIONS = (0.5, 1.0)  # of the inner steps (N)
MATCHABLE = 0.97  # matching loss below which a part can be matched at all
AS_GOOD = 0.02  # loss that half as many inner steps may cost
ARMS, FEW_ARMS = 5, 3  # the latter where a rung would be shorter than SHORTEST
BUDGET = 0.15  # of the iterations that may be spent on arms that drop out
SHORTEST = 4  # iterations that an arm runs before the worse half drops out
FEWEST_EPOCHS = 5  # of the experts, below which there is hardly a difficulty to choose
GRADIENT = 3 / 11  # of the time of an inner step with its adjoint, roughly
COOLDOWN = 0.5
TOTAL = GRID_EPOCHS + ARMS + ARMS // 2  # of the progress bar
DIVERGED = 1e9  # stands for a loss that is not finite
RATES = {"images": "lr_images", "logits": "lr_logits", "step_size": "lr_step_size"}

T = TypeVar("T")


def measure(
    ctx: Context, settings: Trajectory, begun: Begun, trial: Trial, record: dict[str, Any], save: Callable[[], None]
) -> Measuring:  # fmt: skip
    """Settings with nothing left open, and the arm and rung whose state the run continues from.

    Args:
        ctx: what the method may read.
        settings: with None where something is to be found.
        begun: the set before its first iteration.
        trial: distils and evaluates some iterations.
        record: what was measured; whatever it already holds is not measured again.
        save: writes the record.
    """
    if settings.start_epochs is not None:
        with_defaults = _with_defaults(settings)
        rates = _timed(record, lambda: missing_rates(ctx, with_defaults, begun))
        return replace(with_defaults, **rates), None
    for number, epoch in enumerate(grid_epochs(ctx, settings)):
        yield _event(number, f"matching loss from epoch {epoch}")
        if number >= len(record.setdefault("grid", [])):
            losses = _timed(record, lambda: grid(ctx, settings, begun, epoch))  # noqa: B023
            record["grid"].append({"start": epoch, "losses": losses})
            save()
    settled, limit = settle(settings, record["grid"])
    arms = arms_of(limit, settled, _expert_epochs(ctx))
    record |= {"limit": limit, "matchable": MATCHABLE, "arms": [asdict(arm) for arm in arms]}
    step_size = torch.full_like(begun.variables["step_size"], trajectory.step_size_of(settled))
    begun = replace(begun, variables={**begun.variables, "step_size": step_size})
    winner, rung = yield from _halve(_Search(ctx, settled, begun, trial, record, save), arms)
    record["winner"] = winner
    found = _opened(settled, arms[winner])
    return replace(found, **_rates(record, winner)), (winner, rung)


def _with_defaults(settings: Trajectory) -> Trajectory:
    """Settings whose start epochs were given, with the defaults of what is measured with those."""
    return replace(
        settings,
        inner_steps=trajectory.steps_of(settings),
        expert_epochs=trajectory.span_of(settings),
        step_size=trajectory.step_size_of(settings),
        cooldown=COOLDOWN if settings.cooldown is None else settings.cooldown,
    )


def assumed(settings: Trajectory, epochs: int) -> Trajectory:
    """Settings of a run that is too short to measure: the easy half of the path of experts of so many epochs, followed
    in fewer and larger steps.  Rates are still found.
    """
    easy = max(1, (epochs - trajectory.span_of(settings) + 1) // 2)
    return replace(
        settings,
        start_epochs=settings.start_epochs or (0, easy),
        inner_steps=settings.inner_steps or trajectory.INNER_STEPS // 2,
        step_size=settings.step_size or 2 * trajectory.STEP_SIZE,
    )


def missing_rates(ctx: Context, settings: Trajectory, begun: Begun) -> dict[str, Any]:
    """The outer rates by field: scale-free ones where they are None, 0 for what is not learned."""
    learned = [name for name in RATES if name in trajectory.learns(settings)]
    missing = [name for name in learned if getattr(settings, RATES[name]) is None]
    found = scale_free(ctx, settings, begun, trajectory.matching_loss, missing) if missing else {}
    given = {name: getattr(settings, field) for name, field in RATES.items() if getattr(settings, field) is not None}
    return {field: {**found, **given}.get(name, 0.0) for name, field in RATES.items()}


def _event(done: int, doing: str) -> Progress:
    return {"stage": "difficulty", "done": done, "total": TOTAL, "doing": doing}


def _timed(record: dict[str, Any], work: Callable[[], T]) -> T:
    """What ``work`` gives; the seconds it took are added to the record, over all sessions."""
    began = time.monotonic()
    found = work()
    record["seconds"] = record.get("seconds", 0.0) + time.monotonic() - began
    return found


# --- the grid ------------------------------------------------------------------------------------------------------


def _expert_epochs(ctx: Context) -> int:
    assert ctx.experts is not None
    return ctx.experts.identity["expert"]["epochs"]


def grid_epochs(ctx: Context, settings: Trajectory) -> list[int]:
    """The start epochs of the grid, from 0 to the last with an epoch after it.

    Raises:
        PotstillError: the experts are too short to choose anything.
    """
    epochs, longest = _expert_epochs(ctx), max(spans(settings))
    if epochs < FEWEST_EPOCHS or longest >= epochs:
        raise PotstillError(
            f"start_epochs None: experts of {epochs} epochs have hardly a difficulty to choose; raise --expert.epochs "
            f"to {max(FEWEST_EPOCHS, longest + 1)} or more, or give the method's start epochs."
        )
    last = epochs - longest
    return sorted({round(last * i / (GRID_EPOCHS - 1)) for i in range(GRID_EPOCHS)})


def spans(settings: Trajectory) -> tuple[int, ...]:
    """Epochs of the expert to try."""
    return SPANS if settings.expert_epochs is None else (settings.expert_epochs,)


@torch.no_grad()
def grid(ctx: Context, settings: Trajectory, begun: Begun, epoch: int) -> list[dict[str, float]]:
    """Matching losses of the initial set from one epoch on, for every step size, number of inner steps and span.

    One walk of the student serves them all: its end is compared on the way and with several targets.
    """
    assert ctx.experts is not None
    device, found = ctx.problem.device, []
    begin = ctx.experts.segment(0, epoch, 0)[0].to(device)
    ends = [ctx.experts.segment(0, epoch, span)[1].to(device) for span in spans(settings)]
    images, targets = shown(begun.variables, begun.labels, ctx.classes, settings.pictures)
    count = trajectory.steps_of(settings)
    steps = trajectory.draw_steps(ctx, settings.batch_size, count, len(images), ctx.draws("survey", epoch))
    loss = loss_for(ctx.problem.network, trajectory.kind(settings))
    for step_size in _step_sizes(ctx, settings):
        alpha = torch.tensor(step_size, device=device)
        theta, walked = begin, 0
        for fraction in STEP_FRACTIONS if settings.inner_steps is None else (1.0,):
            n = max(1, math.ceil(fraction * len(steps)))
            theta = unroll(
                theta, images, targets, alpha, steps[walked:n], loss, derivatives=ctx.derivatives,
                micro_batch=ctx.micro_batch,
            )  # fmt: skip
            walked = n
            for span, end in zip(spans(settings), ends, strict=True):
                apart = float((theta - end).square().sum() / (begin - end).square().sum())
                apart = apart if math.isfinite(apart) else DIVERGED
                found.append({"step_size": step_size, "inner_steps": n, "expert_epochs": span, "loss": apart})
    return found


def _step_sizes(ctx: Context, settings: Trajectory) -> list[float]:
    assert ctx.experts is not None
    if settings.step_size is not None:
        return [settings.step_size]
    return [factor * ctx.experts.identity["expert"]["step_size"] for factor in STEP_SIZES]


def settle(settings: Trajectory, measured: Sequence[dict[str, Any]]) -> tuple[Trajectory, int]:
    """Inner steps, expert epochs and step size that explain most over all parts, and the last start that is matchable.

    Losses above 1, where standing still is better, count as 1.  Half of the inner steps are enough where they explain
    nearly as much.
    """
    keys = ("inner_steps", "expert_epochs", "step_size")
    choices = [{key: entry[key] for key in keys} for entry in measured[0]["losses"]]
    columns = list(zip(*([entry["loss"] for entry in row["losses"]] for row in measured), strict=True))
    means = [sum(min(loss, 1.0) for loss in column) / len(column) for column in columns]
    best = min(means)
    fewest = min(
        choice["inner_steps"] for choice, mean in zip(choices, means, strict=True) if mean <= best + AS_GOOD
    )  # fmt: skip
    index = min((i for i, c in enumerate(choices) if c["inner_steps"] == fewest), key=lambda i: means[i])
    matchable = [row["start"] for row in measured if row["losses"][index]["loss"] < MATCHABLE]
    return _with_defaults(replace(settings, **choices[index])), max(matchable, default=0)


# --- successive halving --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """What the halving works with; see :func:`measure`."""

    ctx: Context
    settings: Trajectory
    begun: Begun
    trial: Trial
    record: dict[str, Any]
    save: Callable[[], None]


def _halve(search: _Search, arms: Sequence[StartEpochs]) -> Generator[Progress, None, tuple[int, int]]:
    """The arm that is best on validation images, and the last rung that it ran."""
    rung, running = 0, list(range(len(arms)))
    search.record.setdefault("rungs", [])
    while True:
        scores: dict[int, float] = {}
        for arm in running:
            done = min(GRID_EPOCHS + ARMS * rung + len(scores), TOTAL - 1)
            yield _event(done, f"epochs {arms[arm].first}–{arms[arm].stop - 1}, rung {rung + 1}")
            scores[arm] = _run(search, arms[arm], arm, rung)
        best = sorted(scores, key=lambda arm: -scores[arm])[: max(1, len(scores) // 2)]
        if len(best) == 1:
            return best[0], rung
        running, rung = sorted(best), rung + 1


def _run(search: _Search, start: StartEpochs, arm: int, rung: int) -> float:
    """One rung of one arm: its accuracy on validation images; read back where it was run before."""
    for entry in search.record["rungs"]:
        if (entry["arm"], entry["rung"]) == (arm, rung):
            return entry["accuracy"]
    settings = replace(search.settings, start_epochs=(start.first, start.stop), opening=None)

    def work() -> tuple[dict[str, Any], list[float], float]:
        rates = _rates(search.record, arm) if rung else missing_rates(search.ctx, settings, search.begun)
        length = rung_length(settings.iterations)
        return rates, *search.trial(replace(settings, **rates), search.begun, arm, rung, length)

    rates, losses, accuracy = _timed(search.record, work)
    search.record["rungs"].append({"arm": arm, "rung": rung, "losses": losses, "accuracy": accuracy, **rates})
    search.record["rungs"][-1]["iteration"] = rung_length(settings.iterations) * (rung + 1)
    search.save()
    return accuracy


def _rates(record: dict[str, Any], arm: int) -> dict[str, Any]:
    """The outer rates that an arm found at its first rung."""
    first = next(entry for entry in record["rungs"] if (entry["arm"], entry["rung"]) == (arm, 0))
    return {field: first[field] for field in RATES.values()}


def arms_of(limit: int, settings: Trajectory, epochs: int) -> list[StartEpochs]:
    """Ranges of start epochs from easy to hard, from 0 to ``limit``; fewer where there are few iterations to spare."""
    limit = min(limit, epochs - trajectory.span_of(settings))
    count = _arms(settings.iterations)
    edges = sorted({round((limit + 1) * i / count) for i in range(count + 1)})
    return [StartEpochs(first, stop) for first, stop in pairwise(edges)]


def _arms(iterations: int) -> int:
    return ARMS if BUDGET * iterations >= SHORTEST * _dropped(_rungs(ARMS)) else FEW_ARMS


def _rungs(count: int) -> list[int]:
    """How many arms run at each rung."""
    return [] if count < 2 else [count, *_rungs(count // 2)]


def _dropped(rungs: Sequence[int]) -> int:
    """Trials that the winner did not run."""
    return sum(running - 1 for running in rungs)


def rung_length(iterations: int) -> int:
    """Iterations that an arm runs before the worse half drops out."""
    affordable = int(BUDGET * iterations / _dropped(_rungs(_arms(iterations))))
    return max(1, min(max(SHORTEST, affordable), iterations // SHORTEST))


def effort(settings: Trajectory) -> tuple[float, int]:
    """What finding the difficulty costs beyond a run: inner steps walked without an adjoint, and iterations that are
    lost with arms that drop out, both in iterations; and sets that are evaluated.
    """
    if settings.start_epochs is not None:
        return 0.0, 0
    walks = GRID_EPOCHS * (len(STEP_SIZES) if settings.step_size is None else 1)
    rungs = _rungs(_arms(settings.iterations))
    return walks * GRADIENT / settings.segments + _dropped(rungs) * rung_length(settings.iterations), sum(rungs)


def _opened(settings: Trajectory, arm: StartEpochs) -> Trajectory:
    """Start epochs that grow from their first half over the first half of the iterations, in DATM's way."""
    half = arm.first + math.ceil((arm.stop - arm.first) / 2)
    opening = (half, max(1, settings.iterations // 2))
    return replace(settings, start_epochs=(arm.first, arm.stop), opening=opening)
