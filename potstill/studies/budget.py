"""How many iterations fill so many minutes: timed where the work will be done, and as crowded.

A timing is a task like any other.  Where several workers share a machine, and so its memory, as many of them time the
same at once: alone, each would be faster than it will be at work.
"""

import functools
from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import files, store
from potstill.evaluation.evaluator import Event
from potstill.evaluation.protocol import selecting
from potstill.runs import forecast
from potstill.runs.run import Run, inner_engine
from potstill.runs.settings import Settings, fixed_fields
from potstill.studies.task import problem_of

KIND = "budgets"


@dataclass(frozen=True)
class BudgetTask:
    """Timing a few iterations of a row, once for each store and kind of worker."""

    settings: Settings
    minutes: float  # of distilling a set
    threads: int  # of the worker
    neighbours: int  # workers of its machine, itself among them
    number: int  # among those that time the same at once

    @functools.cached_property
    def key(self) -> str:
        """Fingerprint of data, settings, minutes and worker, wherever the data lie."""
        return files.fingerprint(files.plain(self._identity))

    @functools.cached_property
    def _identity(self) -> list[Any]:
        settings, problem = self.settings, problem_of(self.settings)
        own = {name: value for name, value in fixed_fields(settings).items() if name != "dataset"}
        computed = [problem.device.type, str(problem.network.precision), settings.compile]
        where = [*computed, self.threads, self.neighbours, self.number]
        trial = vars(selecting(settings.evaluation))
        return ["timed as it computes", problem.dataset.fingerprint, files.plain(own), trial, self.minutes, where]

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing: experts that were never trained are followed as slowly."""
        return ()

    @property
    def label(self) -> str:
        """Methods and size."""
        return f"timing {'+'.join(self.settings.method)}, {self.settings.ipc} per class"

    @property
    def kind(self) -> str:
        """A budget."""
        return "budget"

    def done(self, folder: Path) -> bool:
        """Its record can be read."""
        return store.known_json(KIND, self.key, folder) is not None

    def perform(self, folder: Path) -> Generator[Event, None, None]:
        """Time it."""
        yield {"stage": "timing", "done": 0, "total": 1}
        store.once_json(KIND, self._identity, lambda: fitting(self.settings, self.minutes), folder, wait=False)


def timings(own: Settings, minutes: float, threads: int, neighbours: int) -> list[BudgetTask]:
    """The timings of a row, one for each worker of a machine."""
    return [BudgetTask(own, minutes, threads, neighbours, number) for number in range(neighbours)]


def settled(timed: Sequence[BudgetTask], folder: Path) -> tuple[Settings, list[str]]:
    """The settings with the iterations that the slowest timing of a row has found, and what one should know of them."""
    records = [found for task in timed if (found := store.known_json(KIND, task.key, folder)) is not None]
    found = max(records, key=lambda record: sum(record["each"]))
    own = timed[0].settings
    for number, assumed in enumerate(found["assumed"]):
        own = _assuming(own, number) if assumed else own
    stages = [
        replace(stage, iterations=count) if method.iterations(stage) else stage
        for method, stage, count in zip(own.methods, own.stages, found["iterations"], strict=True)
    ]
    return replace(own, stages=tuple(stages)), found["notes"]


def fitting(own: Settings, minutes: float) -> dict[str, Any]:
    """Iterations of each stage that take so many minutes together, and where there is no time to measure as well.

    Stages share the time as they would by their own iterations.
    """
    costs = [_cost(own, number) for number in range(len(own.stages))]
    whole = sum(cost.seconds for cost in costs)
    found: dict[str, Any] = {"iterations": [], "assumed": [], "each": [], "notes": []}
    for number, cost in enumerate(costs):
        seconds = 60 * minutes * cost.seconds / whole if whole else 0.0
        (count, cost), assumed = _most(own, number, seconds, cost) if cost.each else (0, cost), False
        if cost.each and not count and (assuming := _assuming(own, number)) != own:
            own, assumed = assuming, True
            count, cost = _most(own, number, seconds, _cost(own, number))
            found["notes"].append(
                f"{own.method[number]}: {seconds:.0f} s are too few to measure what suits this size; it is assumed. "
                "Give more --minutes."
            )
        if cost.each and not count:
            found["notes"].append(
                f"{own.method[number]}: an iteration takes {cost.each:.0f} s, more than the {seconds:.0f} s it has; "
                "give more --minutes."
            )
        found["iterations"].append(max(1, count) if cost.each else 0)
        found["assumed"].append(assumed)
        found["each"].append(cost.each)
    return found


def _cost(own: Settings, number: int) -> forecast.Cost:
    return forecast.distilling(Run(own, Path("."), Path("."), problem_of(own).dataset), number)  # read once


def _assuming(own: Settings, number: int) -> Settings:
    """The settings with as little left to measure in a stage as its method can do with."""
    assume = own.methods[number].assume
    return own if assume is None else _with_stage(own, number, assume(own.stages[number], own.expert.epochs))


def _with_stage(own: Settings, number: int, stage: Any) -> Settings:
    """The settings with another stage in the place of one."""
    return replace(own, stages=(*own.stages[:number], stage, *own.stages[number + 1 :]))


def _most(own: Settings, number: int, seconds: float, cost: forecast.Cost) -> tuple[int, forecast.Cost]:
    """The most iterations of a stage that fit, and what they cost.

    Compiling does not pay in a job as short as that, perhaps; then its iterations take longer, and are timed as they
    will be.  Where not even one fits, the first timing stands.
    """
    count = _count(own, number, seconds, cost)
    as_long = _with_stage(own, number, replace(own.stages[number], iterations=max(1, count)))
    if count and inner_engine(as_long, problem_of(own), number)[0].compiled != cost.compiled:
        cost = replace(_cost(as_long, number), trial=cost.trial)
        count = _count(own, number, seconds, cost)
    return count, cost


def _count(own: Settings, number: int, seconds: float, cost: forecast.Cost) -> int:
    """Iterations at this cost, with the measuring that they repay."""
    stage, probe = own.stages[number], own.methods[number].probe
    assert probe is not None

    def takes(iterations: int) -> float:
        return cost.each * iterations + cost.measuring(probe(replace(stage, iterations=iterations)))

    return bisect_right(range(1, 2 + int(seconds / cost.each)), seconds, key=takes)
