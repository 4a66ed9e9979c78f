"""Automatic difficulty: which part of the experts' path a set of this size can follow, found by measuring.

A survey asks how much of each part the set explains before anything is learned: the matching loss by start epoch,
over inner steps, expert epochs and step sizes (a student's path is walked once for all of them).  Parts that it cannot
follow at all are left out; the rest is cut into bands from easy to hard.  The bands then race: each distils for a few
iterations at rates that move images and labels by the same small fraction, whatever the data; the worse half on
validation images drops out, and the winner's iterations are the first of the run.

A setting that was given, or differs from its default, was chosen by someone and is left as it is.
"""

import math
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files, seeds
from potstill.adjoint.derivatives import Derivatives
from potstill.adjoint.unroll import unroll
from potstill.config import MEASURED, Config, DistilConfig, WindowConfig
from potstill.errors import Diverged
from potstill.evaluation.evaluator import Evaluator, Event, TrainingSet, validation_accuracy
from potstill.methods.trajectory import draw_steps
from potstill.networks import flat
from potstill.runs import loop
from potstill.runs.loop import State
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories

FILE = "difficulty.json"
STARTS = 8  # start epochs that are surveyed, evenly spaced
STEP_SIZES = (0.5, 1.0, 2.0)  # of the student, in step sizes of the experts
SPANS = (1, 2, 3)  # epochs of the expert (M)
STEP_PARTS = (0.5, 1.0)  # of the inner steps (N)
FOLLOWS = 0.97  # matching loss below which a part can be followed at all
AS_GOOD = 0.02  # loss that half as many inner steps may cost
BANDS, FEW_BANDS = 5, 3  # the latter where a round would be shorter than SHORTEST
LOST = 0.15  # of the iterations that may be spent on bands that drop out
SHORTEST = 4  # iterations that a band runs before the worse half drops out
GRADIENT = 3 / 11  # of the time of an inner step with its adjoint, roughly
SAMPLES = 2  # segments whose gradients set the rates
MOVES = {
    "images": 0.05,
    "logits": 0.005,
    "step_size": 0.02,
}  # root mean square of a first step, over that of what moves
COOLDOWN = 0.5
TOTAL = STARTS + BANDS + BANDS // 2  # of the progress bar


@dataclass(frozen=True)
class Race:
    """What the bands need to run: all that distilling needs, and a judge."""

    config: Config
    problem: Problem
    experts: Trajectories
    derivatives: Derivatives
    judge: Evaluator
    folder: Path  # of what is found, piece by piece, so that an interrupted search goes on


def find(race: Race, start: State) -> Generator[Event, None, tuple[Config, State]]:
    """The configuration with window, steps and rates found, and the state that the winning band has reached.

    The measurements lie in folder/difficulty.json; whatever it already holds is not measured again.
    """
    path = race.folder / FILE
    if race.config.window.mode == "given":
        began = time.monotonic()
        rates = {**scale_free(race.config, race, start), "cooldown": _cooldown(race.config)}
        found = replace(race.config, distil=replace(race.config.distil, **rates))
        spent = time.monotonic() - began
        files.write_json(path, {"seconds": spent, "settings": files.plain(settings(found))})
        return found, start
    common = files.plain({"experts": race.experts.identity, "judge": asdict(race.judge.protocol)})
    fresh = {"survey": [], "rounds": [], "seconds": 0.0, **common}
    record: dict[str, Any] = files.read_json(path) if path.exists() else fresh
    record = record if all(record.get(name) == value for name, value in common.items()) else fresh
    for number, epoch in enumerate(starts(race.config, race.experts)):
        yield {"stage": "difficulty", "done": number, "total": TOTAL, "doing": f"matching loss from epoch {epoch}"}
        if number >= len(record["survey"]):
            began = time.monotonic()
            record["survey"].append({"start": epoch, "losses": survey(race, start, epoch)})
            record["seconds"] += time.monotonic() - began  # of all sittings, interrupted ones too
            files.write_json(path, record)
    config, limit = settle(race.config, record["survey"])
    entrants = bands(limit, config, race.experts)
    record |= {"limit": limit, "follows": FOLLOWS, "bands": [asdict(band) for band in entrants]}
    step_size = torch.full_like(start.step_size, config.distil.step_size)
    start = replace(start, step_size=step_size, previous=(start.images, start.logits, step_size))
    winner, state = yield from _race(replace(race, config=config), record, entrants, start)
    window = opening(entrants[winner], config.distil.iterations)
    found = replace(config, window=window, distil=replace(config.distil, **_rates(record, winner)))
    files.write_json(path, {**record, "winner": winner, "settings": files.plain(settings(found))})
    yield {"stage": "difficulty", "done": TOTAL, "total": TOTAL}
    return found, replace(state, seconds=0.0)  # counted with the search


def wanted(config: Config) -> bool:
    """Whether anything is to be found by measuring."""
    return "auto" in (config.window.mode, config.distil.rates)


def found_in(folder: Path) -> dict[str, Any] | None:
    """The finished record of a search; None where there is none."""
    record = files.read_json(folder / FILE) if (folder / FILE).exists() else {}
    return record if "settings" in record else None


def settings(config: Config) -> dict[str, Any]:
    """What was found, as settings."""
    return {"window": asdict(config.window), "distil": {name: getattr(config.distil, name) for name in MEASURED}}


def apply(config: Config, found: dict[str, Any]) -> Config:
    """The configuration with settings that were found, and so given."""
    return replace(
        config,
        window=WindowConfig(**found["window"]),
        distil=replace(config.distil, rates="given", **found["distil"]),
    )


def keep(config: Config, names: Iterable[str]) -> Config:
    """The configuration, noting which of its settings shall not be measured where anything is."""
    kept = set(config.distil.given) | set(MEASURED) & set(names)
    return replace(config, distil=replace(config.distil, given=tuple(sorted(kept))))


def _chosen(config: Config, name: str) -> bool:
    """Whether a setting of distilling was given or differs from its default."""
    return name in config.distil.given or getattr(config.distil, name) != getattr(DistilConfig(), name)


def _cooldown(config: Config) -> float:
    return config.distil.cooldown if _chosen(config, "cooldown") else COOLDOWN


# --- the survey ----------------------------------------------------------------------------------------------------


def starts(config: Config, experts: Trajectories) -> list[int]:
    """The start epochs to survey, from 0 to the last with an epoch after it."""
    last = experts.identity["expert"]["epochs"] - max(spans(config))
    return sorted({round(last * i / (STARTS - 1)) for i in range(STARTS)})


def spans(config: Config) -> tuple[int, ...]:
    """Epochs of the expert to survey."""
    return (config.distil.expert_epochs,) if _chosen(config, "expert_epochs") else SPANS


@torch.no_grad()
def survey(race: Race, start: State, epoch: int) -> list[dict[str, float]]:
    """Matching losses of the start from one epoch on, for every step size, number of inner steps and span.

    One walk of the student serves them all: its end is compared on the way and with several targets.
    """
    config, found = race.config, []
    device = race.problem.device
    begin = race.experts.segment(0, epoch, 0)[0].to(device)
    targets = [race.experts.segment(0, epoch, span)[1].to(device) for span in spans(config)]
    step_sizes = [factor * race.experts.identity["expert"]["step_size"] for factor in STEP_SIZES]
    steps = draw_steps(config, race.problem, len(start.images), seeds.generator(config.seed, "survey", epoch))
    loss = flat.label_loss(race.problem.network)
    for step_size in [config.distil.step_size] if _chosen(config, "step_size") else step_sizes:
        alpha = torch.tensor(step_size, device=device)
        theta, walked = begin, 0
        for part in (1.0,) if _chosen(config, "inner_steps") else STEP_PARTS:
            n = max(1, math.ceil(part * len(steps)))
            theta = unroll(
                theta, start.images, start.logits, alpha, steps[walked:n], loss, derivatives=race.derivatives,
                micro_batch=config.distil.micro_batch,
            )  # fmt: skip
            walked = n
            for span, target in zip(spans(config), targets, strict=True):
                apart = float((theta - target).square().sum() / (begin - target).square().sum())
                apart = apart if math.isfinite(apart) else 1e9
                found.append({"step_size": step_size, "inner_steps": n, "expert_epochs": span, "loss": apart})
    return found


def settle(config: Config, surveyed: Sequence[dict[str, Any]]) -> tuple[Config, int]:
    """Inner steps, expert epochs and step size that explain most over all parts, and the last start that is followed.

    Losses above 1, where standing still is better, count as 1.  Half of the inner steps are enough where they explain
    nearly as much.
    """
    keys = ("inner_steps", "expert_epochs", "step_size")
    choices = [{key: entry[key] for key in keys} for entry in surveyed[0]["losses"]]
    columns = list(zip(*([entry["loss"] for entry in row["losses"]] for row in surveyed), strict=True))
    means = [sum(min(loss, 1.0) for loss in column) / len(column) for column in columns]
    best = min(means)
    fewest = min(
        choice["inner_steps"] for choice, mean in zip(choices, means, strict=True) if mean <= best + AS_GOOD
    )  # fmt: skip
    index = min((i for i, c in enumerate(choices) if c["inner_steps"] == fewest), key=lambda i: means[i])
    follows = [row["start"] for row in surveyed if row["losses"][index]["loss"] < FOLLOWS]
    chosen = {**choices[index], "cooldown": _cooldown(config)}
    return replace(config, distil=replace(config.distil, **chosen)), max(follows, default=0)


# --- the race ------------------------------------------------------------------------------------------------------


def _race(
    race: Race, record: dict[str, Any], entrants: Sequence[WindowConfig], start: State
) -> Generator[Event, None, tuple[int, State]]:  # fmt: skip
    """Successive halving (Jamieson and Talwalkar, AISTATS 2016) on validation accuracy: the winner and its state."""
    number, states = 0, dict.fromkeys(range(len(entrants)), start)
    while True:
        scores: dict[int, float] = {}
        for band in states:
            done = min(STARTS + BANDS * number + len(scores), TOTAL - 1)
            first, last = entrants[band].start, entrants[band].stop - 1
            yield {
                "stage": "difficulty", "done": done, "total": TOTAL,
                "doing": f"epochs {first}–{last}, round {number + 1}",
            }  # fmt: skip
            states[band], scores[band] = _run(race, record, entrants[band], band, number, states[band])
            files.write_json(race.folder / FILE, record)
        best = sorted(scores, key=lambda band: -scores[band])[: max(1, len(scores) // 2)]
        if len(best) == 1:
            return best[0], states[best[0]]
        states = {band: states[band] for band in sorted(best)}
        number += 1


def bands(limit: int, config: Config, experts: Trajectories) -> list[WindowConfig]:
    """Windows from easy to hard over the start epochs 0 to ``limit``; fewer where there are few iterations to spare."""
    limit = min(limit, experts.identity["expert"]["epochs"] - config.distil.expert_epochs)
    count = _bands(config)
    edges = sorted({round((limit + 1) * i / count) for i in range(count + 1)})
    return [WindowConfig(first, stop) for first, stop in pairwise(edges)]


def _bands(config: Config) -> int:
    return BANDS if LOST * config.distil.iterations >= SHORTEST * _losers(_rounds(BANDS)) else FEW_BANDS


def _rounds(count: int) -> list[int]:
    """How many bands run in each round."""
    return [] if count < 2 else [count, *_rounds(count // 2)]


def _losers(rounds: Sequence[int]) -> int:
    """Rounds of single bands that the winner did not run."""
    return sum(running - 1 for running in rounds)


def round_length(config: Config) -> int:
    """Iterations that a band runs before the worse half drops out."""
    iterations = config.distil.iterations
    affordable = int(LOST * iterations / _losers(_rounds(_bands(config))))
    return max(1, min(max(SHORTEST, affordable), iterations // SHORTEST))


def effort(config: Config) -> tuple[float, int]:
    """What finding the difficulty costs beyond a run: inner steps walked without an adjoint, and iterations that are
    lost with bands that drop out, both in iterations; and sets that are judged.
    """
    if config.window.mode == "given":
        return 0.0, 0
    walks = STARTS * (1 if _chosen(config, "step_size") else len(STEP_SIZES))
    rounds = _rounds(_bands(config))
    return walks * GRADIENT + _losers(rounds) * round_length(config), sum(rounds)


def opening(window: WindowConfig, iterations: int) -> WindowConfig:
    """The window that opens from its first half over the first half of the iterations, in DATM's way."""
    half = window.start + math.ceil((window.stop - window.start) / 2)
    return replace(window, initial=half, expand=max(1, iterations // 2))


def _run(
    race: Race, record: dict[str, Any], window: WindowConfig, band: int, number: int, state: State
) -> tuple[State, float]:  # fmt: skip
    """One round of one band: its state and its accuracy on validation images; read back where it was run before."""
    path = race.folder / "difficulty" / f"band{band}-round{number}.safetensors"
    for entry in record["rounds"]:
        if (entry["band"], entry["round"]) == (band, number) and path.exists():
            return loop.load_state(path, race.problem.device)[0], entry["accuracy"]
    began, length = time.monotonic(), round_length(race.config)
    config = replace(race.config, window=window, distil=replace(race.config.distil, polish=0))
    rates = scale_free(config, race, state) if number == 0 else _rates(record, band)
    config = replace(config, distil=replace(config.distil, **rates))
    losses: list[float] = []
    going = loop.iterate(config, race.problem, race.experts, race.derivatives, replace(state, in_a_row=0))
    try:
        for reached, metrics in islice(going, length):
            state = reached
            losses.append(metrics["loss"])
        training_set = TrainingSet(state.images, state.logits.softmax(1), step_size=float(state.step_size))
        accuracy = validation_accuracy(race.judge, training_set)
    except Diverged:  # it diverged again and again: this part is not for this set
        accuracy = 0.0
    state.save(path, {})
    record["seconds"] += time.monotonic() - began
    record["rounds"].append(
        {"band": band, "round": number, "iteration": state.iteration, "losses": losses, "accuracy": accuracy, **rates}
    )
    return state, accuracy


def scale_free(config: Config, race: Race, state: State) -> dict[str, Any]:
    """Outer rates at which a first step moves images, logits and step size by a set fraction of their size.

    The size of a gradient depends on the data, the number of images and the part that is matched over orders of
    magnitude; some segments say what it is here.
    """
    config = replace(config, distil=replace(config.distil, polish=0))
    norms: list[list[float]] = []
    for iteration in range(SAMPLES):
        replayed = replace(state, iteration=iteration)
        _, gradients, *_ = loop.differentiate(config, race.problem, race.experts, race.derivatives, replayed)
        norms.append([_rms(gradient) for gradient in gradients])
    means = [sum(column) / len(column) for column in zip(*norms, strict=True)]
    sizes = (_rms(state.images), _rms(state.logits), float(state.step_size))
    names = ("lr_images", "lr_logits", "lr_step_size")
    rates = [
        move * size / mean if mean > 0 and math.isfinite(mean) else 0.0
        for move, size, mean in zip(MOVES.values(), sizes, means, strict=True)
    ]
    return {
        name: getattr(config.distil, name) if _chosen(config, name) else rate
        for name, rate in zip(names, rates, strict=True)
    }


def _rates(record: dict[str, Any], band: int) -> dict[str, Any]:
    """The outer rates that a band found in its first round."""
    first = next(entry for entry in record["rounds"] if (entry["band"], entry["round"]) == (band, 0))
    return {name: first[name] for name in ("lr_images", "lr_logits", "lr_step_size")}


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().mean().sqrt())
