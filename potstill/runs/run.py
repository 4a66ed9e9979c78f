"""A run on disk, resumable at every stage: experts → distilling → evaluation, each a generator of events.

runs/NAME/
  config.json              what was asked for
  experts/                 trajectories (or another folder, shared between runs)
  start.safetensors        images and logits before the first iteration
  measure.json          what --window auto measured and chose (difficulty/ holds the states of its race)
  metrics.jsonl            a line an iteration
  snapshots/               some of the images now and then, to see how they change
  checkpoint.safetensors   the state of distilling
  distilled.safetensors    the best set so far
  results.json             figures, times, environment
  report.html              all of it to look at
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from potstill import files
from potstill.adjoint import engine
from potstill.adjoint.derivatives import Derivatives
from potstill.config import Config, as_dict
from potstill.data.distilled import FILE, Distilled
from potstill.data.distilled import load as load_distilled
from potstill.errors import PotstillError
from potstill.evaluation import evaluator
from potstill.evaluation.evaluator import PROTOCOLS, Event, Judge
from potstill.machine import environment, peak_memory
from potstill.methods import start_epochs, trajectory
from potstill.runs import loop, measure, snapshots
from potstill.runs.loop import State
from potstill.training import experts, trajectories
from potstill.training.problem import Problem, prepare
from potstill.training.trajectories import Trajectories

logger = logging.getLogger(__name__)

# What may change between two sittings of one run: it bears on how the set is computed and judged, not on what it is.
FREE = ("device", "compile", "evaluation", "distil.checkpoint_seconds", "expert.keep_all")


@dataclass(frozen=True)
class Run:
    """A configuration in a folder; the stages below work on it."""

    config: Config
    folder: Path
    experts_folder: Path

    @cached_property
    def problem(self) -> Problem:
        """Data, transform and network; read at first use."""
        return prepare(self.config)

    @property
    def settled(self) -> Config:
        """The configuration, with window, steps and rates as ``--window auto`` found them."""
        found = measure.found_in(self.folder) if measure.wanted(self.config) else None
        return measure.apply(self.config, found["settings"]) if found else self.config

    @property
    def trajectories(self) -> Trajectories:
        """The experts, held to this run's dataset, transform and network, and its window to their snapshots."""
        store = trajectories.open_store(self.experts_folder, experts.subject(self.problem))
        epochs = store.identity["expert"]["epochs"]
        span = self.config.distil.expert_epochs
        start_epochs.check(self.config.window, span, store.epochs, epochs, str(self.experts_folder))
        if len(store) < self.config.expert.count:
            raise PotstillError(
                f"{self.experts_folder}: holds {len(store)} finished experts, but {self.config.expert.count} are asked "
                "for; train the rest with `potstill experts`, or lower --expert.count."
            )
        return store


def open_run(config: Config, folder: Path, experts_folder: Path | None = None) -> Run:
    """Begin a run in a folder, or go on with the one that is there.

    Raises:
        PotstillError: the folder holds a run of another configuration (the differing fields are named), or the
            configuration contradicts itself.
    """
    check(config)
    path = folder / "config.json"
    for leftover in (*folder.glob(".*.tmp"), *(folder / "experts").glob(".*.tmp")):  # of a killed process
        leftover.unlink()
    wanted = files.plain(as_dict(config))
    if path.exists() and any((folder / name).exists() for name in ("checkpoint.safetensors", FILE)):
        found = files.read_json(path)["config"]
        if lines := files.differences(_bound(found), _bound(wanted)):
            raise PotstillError(
                f"{folder}: holds a run that differs in {'; '.join(lines)}. Give the same settings to continue it, or "
                "another --out."
            )
    files.write_json(path, {"version": files.VERSION, "config": wanted})
    return Run(config, folder, experts_folder or folder / "experts")


def check(config: Config) -> None:
    """Refuse values that no stage could use, before any work is done."""
    if config.ipc < 1:
        raise PotstillError(f"ipc {config.ipc}: a set holds at least 1 image per class; raise --ipc.")
    at_least_one = {
        "distil.iterations": config.distil.iterations, "distil.inner_steps": config.distil.inner_steps,
        "distil.batch_size": config.distil.batch_size, "distil.evaluations": config.distil.evaluations,
        "expert.count": config.expert.count, "expert.epochs": config.expert.epochs,
        "expert.batch_size": config.expert.batch_size, "network.width": config.network.width,
        "network.depth": config.network.depth or 1,
    }  # fmt: skip
    for name, value in at_least_one.items():
        if value < 1:
            raise PotstillError(f"{name} {value}: at least 1 is needed; raise --{name.replace('_', '-')}.")
    optional = {
        "distil.micro_batch": config.distil.micro_batch, "distil.label_experts": config.distil.label_experts,
        "resize": config.resize,
    }  # fmt: skip
    for name, number in optional.items():
        if number is not None and number < 1:
            raise PotstillError(f"{name} {number}: at least 1 is needed, or leave it out.")
    if config.distil.step_size <= 0:
        raise PotstillError(f"distil.step_size {config.distil.step_size}: the inner step size is positive; raise it.")
    if not 0 <= config.distil.cooldown <= 1:
        raise PotstillError(f"distil.cooldown {config.distil.cooldown}: a fraction of the iterations, from 0 to 1.")
    if not 0 <= config.distil.polish <= config.distil.iterations:
        raise PotstillError(
            f"distil.polish {config.distil.polish}: the iterations that polish are among the "
            f"{config.distil.iterations} of --distil.iterations; give 0 to all of them."
        )
    if config.distil.polish and config.distil.horizon < config.distil.inner_steps:
        raise PotstillError(
            f"distil.horizon {config.distil.horizon}: a student takes {config.distil.inner_steps} inner steps in every "
            "iteration that polishes; raise --distil.horizon, or lower --distil.inner-steps."
        )
    if config.distil.mirror and "flip" not in config.augment:
        raise PotstillError("distil.mirror: the experts see no mirrored images; leave it out, or augment by flip.")
    check_choices(config)
    if evaluator.protocol_of(config.evaluation).selection == "test" and config.evaluation.step_size == "chosen":
        raise PotstillError("evaluation.step_size chosen: the protocol paper trains with the learned one; choose one.")


def check_choices(config: Any, prefix: str = "") -> None:
    """Refuse values outside the choices of a field; the command line does so itself, Python does not."""
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            check_choices(value, f"{prefix}{name}.")
            continue
        several = get_origin(hints[name]) is tuple
        kind = get_args(hints[name])[0] if several else hints[name]
        for one in value if several else (value,):
            if get_origin(kind) is Literal and one not in get_args(kind):
                raise PotstillError(f"{prefix}{name} {one!r}: choose among {', '.join(get_args(kind))}.")


def _bound(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that one run may not change."""
    bound = json.loads(json.dumps(config))
    for name in FREE:
        *parents, leaf = name.split(".")
        inside = bound
        for parent in parents:
            inside = inside[parent]
        inside.pop(leaf, None)
    if "auto" not in (bound["window"]["mode"], bound["distil"]["rates"]) or not bound["distil"].get("given"):
        bound["distil"].pop("given", None)  # which says what not to measure
    selection = PROTOCOLS[config["evaluation"]["protocol"]].selection
    if selection == "test":  # whose figure is made while distilling
        bound["evaluation"] = {name: config["evaluation"][name] for name in ("epochs", "seeds")}
    return {**bound, "evaluation.selection": selection}


# --- the stages ----------------------------------------------------------------------------------------------------


def train_experts(run: Run) -> Generator[Event, None, Trajectories]:
    """Train the experts that the run lacks; experts of another run that are enough are taken as they are."""
    own = run.experts_folder in (run.folder, run.folder / "experts")
    if own or not _enough(run):
        yield from experts.train(run.config, run.problem, run.experts_folder)
    return run.trajectories


def _enough(run: Run) -> bool:
    if not (run.experts_folder / trajectories.MANIFEST).exists():
        return False
    return len(trajectories.open_store(run.experts_folder)) >= run.config.expert.count


def distil(run: Run) -> Generator[Event, None, Distilled]:
    """Distil from the last checkpoint, or from the start; a checkpoint is left however this ends.

    The set is judged ``evaluations`` times, evenly spaced and at the start, on validation data (on test data under
    the protocol ``paper``); the best one is the result.
    """
    problem, store = run.problem, run.trajectories
    if unlike := files.differences(store.identity, files.plain(experts.identity(run.config, problem))):
        logger.info("%s: these experts are taken as they are: %s", run.experts_folder, "; ".join(unlike))
    state, log = _resume(run, store)
    derivatives, micro_batch = inner_engine(run)
    config = replace(run.settled, distil=replace(run.settled.distil, micro_batch=micro_batch))
    who = _judge_of(run, evaluator.Protocol(**log.judge))
    total, saved = config.distil.iterations, time.monotonic()

    def due(times: int) -> bool:
        return times > 0 and (state.iteration % math.ceil(total / times) == 0 or state.iteration == total)

    try:
        if state.iteration == 0 and config.distil.snapshots:
            snapshots.keep(run.folder, problem.transform, state)
        # the start, or a judging that an interruption cut short
        if due(config.distil.evaluations) and not log.has(state.iteration):
            log = yield from _judge(run, who, state, log)
        if state.iteration == 0 and measure.wanted(run.config):
            config = replace(run.config, distil=replace(run.config.distil, micro_batch=micro_batch))
            race = measure.Race(config, problem, store, derivatives, who, run.folder)
            config, state = yield from measure.find(race, state)
            if due(config.distil.evaluations) and not log.has(state.iteration):
                log = yield from _judge(run, who, state, log)
            _checkpoint(run, state, log)
        with (run.folder / "metrics.jsonl").open("a") as lines:
            for next_state, metrics in loop.iterate(config, problem, store, derivatives, state):
                lines.write(json.dumps(metrics) + "\n")
                lines.flush()
                state = next_state
                if due(config.distil.snapshots):
                    snapshots.keep(run.folder, problem.transform, state)
                if due(config.distil.evaluations):
                    log = yield from _judge(run, who, state, log)
                if time.monotonic() - saved > config.distil.checkpoint_seconds:
                    _checkpoint(run, state, log)
                    saved = time.monotonic()
                judged = log.judged[-1]
                yield {"stage": "distilling", "done": state.iteration, "total": total, **metrics, "judged": judged}
    finally:
        _checkpoint(run, state, log)
    done = {"stage": "distilling", "done": total, "total": total}
    before, who = load_distilled(run.folder / FILE), _judge_of(run, selector(run.config))
    distilled = yield from settle_step_size(before, run.config.evaluation.step_size, who, done)
    if distilled is not before:
        distilled.save(run.folder / FILE)
    return distilled


def settle_step_size(
    distilled: Distilled, wanted: str, who: Judge, event: Event
) -> Generator[Event, None, Distilled]:  # fmt: skip
    """The set with the step size to train with: the student's own, or one chosen on validation images.

    ``event`` is told before each one tried.
    """
    tried = distilled.provenance.get("step_sizes", [])
    provenance = {**distilled.provenance, "step_sizes": []}
    if wanted == "chosen" and not tried:
        images, logits = (tensor.to(who.problem.device) for tensor in (distilled.images, distilled.logits))
        began = time.monotonic()
        learned = distilled.step_size or evaluator.CONTROL_STEP_SIZE
        provenance["step_sizes"] = yield from evaluator.step_sizes(who, images, logits, learned, event)
        provenance["choosing_seconds"] = time.monotonic() - began
        taken = _best(provenance["step_sizes"])
    elif wanted == "learned" and tried:
        taken = tried[0]
    else:
        return distilled
    provenance["chosen_with_accuracy"] = taken["accuracy"]
    return replace(distilled, step_size=taken["step_size"], provenance=provenance)


def _best(tried: list[dict[str, float]]) -> dict[str, float]:
    return max(tried, key=lambda entry: entry["accuracy"])


@dataclass(frozen=True)
class Log:
    """What a checkpoint tells beside the state."""

    experts: dict[str, Any]  # identity of the store, and how many of its experts are matched
    judge: dict[str, Any]  # the protocol by which states are judged, the same in every sitting
    step_size: str = "learned"  # with which networks train then, or "chosen"; so as well
    judged: tuple[dict[str, Any], ...] = ()  # {"iteration", "accuracy", "on"} of each judging
    judging_seconds: float = 0.0
    peak_memory_bytes: int = 0  # over all sittings

    def has(self, iteration: int) -> bool:
        """Whether the state after so many iterations was judged."""
        return any(entry["iteration"] == iteration for entry in self.judged)


def _resume(run: Run, store: Trajectories) -> tuple[State, Log]:
    """State and log of the last checkpoint, or of the start.

    Raises:
        PotstillError: the checkpoint comes from other experts (the differing fields are named).
    """
    checkpoint = run.folder / "checkpoint.safetensors"
    experts_now = files.plain({**store.identity, "count": run.config.expert.count})
    if not checkpoint.exists():
        state = loop.begin(run.config, run.problem, store)
        files.save(
            run.folder / "start.safetensors", "start", {"images": state.images, "logits": state.logits}, {}
        )  # fmt: skip
        _truncate_metrics(run.folder / "metrics.jsonl", 0)  # of a sitting that was killed before its first checkpoint
        return state, Log(experts_now, dataclasses.asdict(selector(run.config)), run.config.evaluation.step_size)
    state, header = loop.load_state(checkpoint, run.problem.device)
    found = header["log"]
    if lines := files.differences(found["experts"], experts_now):
        raise PotstillError(
            f"{run.folder}: was begun with other experts: {'; '.join(lines)}. Give the same --experts, or another "
            "--out."
        )
    _truncate_metrics(run.folder / "metrics.jsonl", state.iteration)
    return state, Log(**{"judge": dataclasses.asdict(selector(run.config)), **found, "judged": tuple(found["judged"])})


def _checkpoint(run: Run, state: State, log: Log) -> None:
    log = replace(log, peak_memory_bytes=max(log.peak_memory_bytes, peak_memory(run.problem.device)))
    state.save(run.folder / "checkpoint.safetensors", {"log": dataclasses.asdict(log)})


def selector(config: Config) -> evaluator.Protocol:
    """How the states of one run are judged: by quick networks, or as the protocol says under "paper".

    They never train longer than the networks of the final figures, or large sets would take more time to judge than to
    distil.
    """
    protocol, quick = evaluator.protocol_of(config.evaluation), PROTOCOLS["quick"]
    return protocol if protocol.selection == "test" else replace(quick, epochs=min(quick.epochs, protocol.epochs))


def _judge(run: Run, who: Judge, state: State, log: Log) -> Generator[Event, None, Log]:
    """Judge a state; write it as the run's set if none before was better.  Returns the log with this one added.

    Where networks shall train with a step size that is chosen, they do so here: with the learned one, a set that wants
    smaller steps would look worse than it is.
    """
    began = time.monotonic()
    split, learned = who.protocol.selection, float(state.step_size)
    event = {"stage": "distilling", "done": state.iteration, "total": run.config.distil.iterations, "doing": "judging"}
    if log.step_size == "chosen":
        tried = yield from evaluator.step_sizes(who, state.images, state.logits, learned, event)
    else:
        yield event
        accuracy = evaluator.judge_state(who, state.images, state.logits, learned, split)
        tried = [{"step_size": learned, "accuracy": accuracy}]
    accuracy = _best(tried)["accuracy"]
    if run.config.distil.keep == "last" or all(accuracy >= earlier["accuracy"] for earlier in log.judged):
        _as_distilled(run, state, log, tried, split).save(run.folder / FILE)
    entry = {"iteration": state.iteration, "accuracy": accuracy, "on": split}
    seconds = log.judging_seconds + time.monotonic() - began
    return replace(log, judged=(*log.judged, entry), judging_seconds=seconds)


def _as_distilled(run: Run, state: State, log: Log, tried: list[dict[str, float]], selection: str) -> Distilled:
    problem, config, best = run.problem, run.settled, _best(tried)
    config = replace(config, device="auto", compile="auto")  # the machine is not part of what the set is
    return Distilled(
        images=state.images,
        targets=state.logits,
        kind="logits",
        labels=state.labels,
        step_size=best["step_size"],
        transform=problem.transform,
        classes=problem.dataset.classes,
        recipe={"network": as_dict(problem.network_config), "augment": list(config.augment)},
        provenance={
            "config": as_dict(replace(config, evaluation=type(config.evaluation)())),
            "dataset": {"name": problem.dataset.name, "fingerprint": problem.dataset.fingerprint},
            "experts": log.experts,
            "iteration": state.iteration,
            "chosen_on": selection,
            "chosen_with_accuracy": best["accuracy"],
            "step_sizes": tried if len(tried) > 1 else [],
        },
    )


def _judge_of(run: Run, protocol: evaluator.Protocol) -> Judge:
    return evaluator.judge(run.problem, run.problem.network_config, protocol, run.config.augment, run.config.compile)


def evaluate(run: Run) -> Generator[Event, None, dict[str, Any]]:
    """Final figures of the run's set and its controls, written to results.json."""
    config = run.config
    protocol = evaluator.protocol_of(config.evaluation)
    who = _judge_of(run, protocol)
    distilled = load_distilled(run.folder / FILE)
    found = yield from evaluate_set(run.problem, distilled, config, who, run.experts_folder)
    if protocol.selection == "test":  # the paper's figure: the best of all evaluations, not a fresh one
        found["accuracy"]["distilled"] = evaluator.interval([distilled.provenance["chosen_with_accuracy"]])
    results = summary(run, run.problem, distilled, found, who)
    files.write_json(run.folder / "results.json", results)
    return results


def evaluate_set(
    problem: Problem, distilled: Distilled, config: Config, who: Judge, experts_folder: Path | None
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Figures of any set beside its controls; the soft-label control where its experts are at hand."""
    soft, identity = None, None
    if experts_folder is not None and (experts_folder / trajectories.MANIFEST).exists():
        store = trajectories.open_store(experts_folder, experts.subject(problem))
        count = min(config.expert.count, len(store))
        identity = [store.identity, count]

        def soft(rows: Tensor) -> Tensor:
            images, truth = problem.train.images[rows], problem.train.labels[rows]
            return trajectory.mean_logits(problem, store, count, images, truth).softmax(1)

    full_seeds = config.evaluation.full_seeds
    return (yield from evaluator.evaluate(who, distilled, config.ipc, soft, full_seeds, identity))


def summary(
    run: Run, problem: Problem, distilled: Distilled, found: dict[str, Any], who: Judge
) -> dict[str, Any]:  # fmt: skip
    """results.json: the contract for scripts."""
    config, accuracy = run.settled, found["accuracy"]
    full = accuracy.get("full", {}).get("mean")
    n, total = len(distilled), len(problem.dataset.train.labels) + len(problem.dataset.val.labels)
    header, log = _history(run.folder)
    search = measure.found_in(run.folder)
    searched = (search["seconds"] if search else 0.0) + distilled.provenance.get("choosing_seconds", 0.0)
    return {
        "dataset": problem.dataset.name,
        "ipc": config.ipc,
        "method": config.method,
        "network": who.config.name,
        "protocol": dataclasses.asdict(who.protocol),
        "accuracy": accuracy,
        "recovered": accuracy["distilled"]["mean"] / full if full else None,
        "images": n,
        "full_images": len(problem.dataset.train.labels),
        "compression": n / total,
        "seconds": {
            "experts": _expert_seconds(run.experts_folder),
            "distill": header["seconds"] + log["judging_seconds"] + searched if header else None,
            "evaluate": found["seconds"],
        },
        "peak_memory_bytes": max(log.get("peak_memory_bytes", 0), peak_memory(problem.device)),
        "iterations": {name: header.get(name) for name in ("iteration", "skipped", "rolled_back")},
        "judged": log.get("judged", []),
        "difficulty": search,
        "experts": distilled.provenance["experts"],
        "chosen": {"iteration": distilled.provenance["iteration"], "on": distilled.provenance["chosen_on"]},
        "step_size": distilled.step_size,
        "step_sizes": distilled.provenance.get("step_sizes", []),
        "config": as_dict(config),
        "dataset_fingerprint": problem.dataset.fingerprint,
        "environment": {**environment(problem.device), "precision": str(problem.network.precision).split(".")[1]},
        "version": files.VERSION,
    }


def _history(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and log of a run's checkpoint; both empty where a set lies alone."""
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        return {}, {}
    _, header = files.load(checkpoint, loop.KIND)
    return header, header["log"]


def _expert_seconds(folder: Path) -> float | None:
    path = folder / trajectories.MANIFEST
    return files.read_json(path).get("seconds") if path.exists() else None


def _truncate_metrics(path: Path, iteration: int) -> None:
    """Drop lines of iterations that will be run again, and a last line that a crash cut short."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["iteration"] < iteration]
    files.write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def inner_engine(run: Run) -> tuple[Derivatives, int | None]:
    """How the inner loop of this run is differentiated, and how many images at once."""
    config, problem = run.config, run.problem  # not as settled later, so that every sitting computes alike
    batch = min(config.distil.batch_size, config.ipc * len(problem.dataset.classes))
    images = batch * config.distil.inner_steps * config.distil.iterations
    return engine.inner_derivatives(
        problem.network, problem.dataset.shape, batch, images, config.compile, config.distil.micro_batch
    )
