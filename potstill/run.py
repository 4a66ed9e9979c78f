"""A run on disk, resumable at every stage: experts → distilling → evaluation, each a generator of events.

runs/NAME/
  config.json              what was asked for
  experts/                 trajectories (or another folder, shared between runs)
  start.safetensors        images and logits before the first iteration
  metrics.jsonl            a line an iteration
  checkpoint.safetensors   the state of distilling
  distilled.safetensors    the best set so far
  results.json             figures, times, environment
  report.html              all of it to look at
"""

import dataclasses
import json
import math
import platform
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import artefacts, distillation, engine, evaluation, experts, trajectories, window
from potstill.config import Config, as_dict
from potstill.distillation import State
from potstill.distilled import FILE, Distilled
from potstill.distilled import load as load_distilled
from potstill.errors import PotstillError
from potstill.evaluation import PROTOCOLS, Event, Judge
from potstill.methods import trajectory
from potstill.problem import Problem, prepare
from potstill.trajectories import Trajectories
from potstill.unroll import Derivatives

# What may change between two sittings of one run: it bears on no number of the distilled set.
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
    def trajectories(self) -> Trajectories:
        """The experts, held to this run's dataset, transform and network, and its window to their snapshots."""
        store = trajectories.open_store(self.experts_folder, experts.subject(self.problem))
        epochs = store.identity["expert"]["epochs"]
        span = self.config.distil.expert_epochs
        window.check(self.config.window, span, store.epochs, epochs, str(self.experts_folder))
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
    wanted = artefacts.plain(as_dict(config))
    if path.exists():
        found = artefacts.read_json(path)["config"]
        if lines := artefacts.differences(_bound(found), _bound(wanted)):
            raise PotstillError(
                f"{folder}: holds a run that differs in {'; '.join(lines)}. Give the same settings to continue it, or "
                "another --out."
            )
    artefacts.write_json(path, {"version": artefacts.VERSION, "config": wanted})
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
    if config.distil.step_size <= 0:
        raise PotstillError(f"distil.step_size {config.distil.step_size}: the inner step size is positive; raise it.")
    if config.distil.micro_batch is not None and config.distil.micro_batch < 1:
        raise PotstillError(f"distil.micro_batch {config.distil.micro_batch}: at least 1 is needed, or leave it out.")
    evaluation.protocol_of(config.evaluation)


def _bound(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that one run may not change."""
    bound = json.loads(json.dumps(config))
    for name in FREE:
        *parents, leaf = name.split(".")
        inside = bound
        for parent in parents:
            inside = inside[parent]
        inside.pop(leaf, None)
    bound["evaluation.selection"] = PROTOCOLS[config["evaluation"]["protocol"]].selection
    return bound


# --- the stages ----------------------------------------------------------------------------------------------------


def train_experts(run: Run) -> Generator[Event, None, Trajectories]:
    """Train the experts that the run's folder lacks."""
    yield from experts.train(run.config, run.problem, run.experts_folder)
    return run.trajectories


def distil(run: Run) -> Generator[Event, None, Distilled]:
    """Distil from the last checkpoint, or from the start; a checkpoint is left however this ends.

    The set is judged ``evaluations`` times, evenly spaced and at the start, on validation data (on test data under
    the protocol ``paper``); the best one is the result.
    """
    config, problem, store = run.config, run.problem, run.trajectories
    checkpoint = run.folder / "checkpoint.safetensors"
    if checkpoint.exists():
        state, header = distillation.load_state(checkpoint, problem.device)
        judged = header["judged"]
    else:
        state, judged = distillation.begin(config, problem, store), []
        tensors = {"images": state.images, "logits": state.logits}
        artefacts.save(run.folder / "start.safetensors", "start", tensors, {})
    _truncate_metrics(run.folder / "metrics.jsonl", state.iteration)
    derivatives, micro_batch = inner_engine(run)
    config = replace(config, distil=replace(config.distil, micro_batch=micro_batch))
    who = _selector(run)
    every = math.ceil(config.distil.iterations / config.distil.evaluations)
    total, saved = config.distil.iterations, time.monotonic()
    iterations = distillation.iterate(config, problem, store, derivatives, state)
    try:
        if not judged:
            yield {"stage": "distilling", "done": 0, "total": total, "doing": "judging the start"}
            judged = _judge(run, who, state, judged)
        with (run.folder / "metrics.jsonl").open("a") as lines:
            for state, metrics in iterations:
                lines.write(json.dumps(metrics) + "\n")
                lines.flush()
                if state.iteration % every == 0 or state.iteration == total:
                    judged = _judge(run, who, state, judged)
                if time.monotonic() - saved > config.distil.checkpoint_seconds:
                    state.save(checkpoint, {"judged": judged})
                    saved = time.monotonic()
                yield {"stage": "distilling", "done": state.iteration, "total": total, **metrics, "judged": judged[-1]}
    finally:
        if judged:
            state.save(checkpoint, {"judged": judged})
    return load_distilled(run.folder / FILE)


def _selector(run: Run) -> Judge:
    """Who chooses between the states of one run: quick networks, or the protocol's own under "paper"."""
    protocol = evaluation.protocol_of(run.config.evaluation)
    return _judge_of(run, protocol if protocol.selection == "test" else PROTOCOLS["quick"])


def _judge(run: Run, who: Judge, state: State, judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge a state; write it as the run's set if none before was better.  Returns the list with this one added."""
    if judged and judged[-1]["iteration"] == state.iteration:
        return judged
    split = who.protocol.selection
    accuracy = evaluation.judge_state(who, state.images, state.logits, float(state.step_size), split)
    if all(accuracy >= earlier["accuracy"] for earlier in judged):
        _as_distilled(run, state, accuracy, split).save(run.folder / FILE)
    return [*judged, {"iteration": state.iteration, "accuracy": accuracy, "on": split}]


def _as_distilled(run: Run, state: State, accuracy: float, selection: str) -> Distilled:
    problem, config = run.problem, run.config
    config = replace(config, device="auto", compile="auto")  # the machine is not part of what the set is
    return Distilled(
        images=state.images,
        logits=state.logits,
        labels=state.labels,
        step_size=float(state.step_size),
        transform=problem.transform,
        classes=problem.dataset.classes,
        recipe={"network": as_dict(problem.network_config), "augment": list(config.augment)},
        provenance={
            "config": as_dict(replace(config, evaluation=type(config.evaluation)())),
            "dataset": {"name": problem.dataset.name, "fingerprint": problem.dataset.fingerprint},
            "iteration": state.iteration,
            "chosen_on": selection,
            "chosen_with_accuracy": accuracy,
        },
    )


def _judge_of(run: Run, protocol: evaluation.Protocol) -> Judge:
    return evaluation.judge(run.problem, run.problem.network_config, protocol, run.config.augment, run.config.compile)


def evaluate(run: Run) -> Generator[Event, None, dict[str, Any]]:
    """Final figures of the run's set and its controls, written to results.json."""
    config = run.config
    protocol = evaluation.protocol_of(config.evaluation)
    who = _judge_of(run, protocol)
    distilled = load_distilled(run.folder / FILE)
    found = yield from evaluate_set(run.problem, distilled, config, who, run.experts_folder)
    if protocol.selection == "test":  # the paper's figure: the best of all evaluations, not a fresh one
        found["accuracy"]["distilled"] = evaluation.interval([distilled.provenance["chosen_with_accuracy"]])
    results = summary(run, run.problem, distilled, found, who)
    artefacts.write_json(run.folder / "results.json", results)
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
    return (yield from evaluation.evaluate(who, distilled, config.ipc, soft, full_seeds, identity))


def summary(
    run: Run, problem: Problem, distilled: Distilled, found: dict[str, Any], who: Judge
) -> dict[str, Any]:  # fmt: skip
    """results.json: the contract for scripts."""
    config, accuracy = run.config, found["accuracy"]
    full = accuracy.get("full", {}).get("mean")
    n, total = len(distilled), len(problem.dataset.train.labels) + len(problem.dataset.val.labels)
    checkpoint = run.folder / "checkpoint.safetensors"
    header: dict[str, Any] = {}
    if checkpoint.exists():
        _, header = artefacts.load(checkpoint, distillation.KIND)
    return {
        "dataset": problem.dataset.name,
        "ipc": config.ipc,
        "method": config.method,
        "network": who.config.name,
        "protocol": dataclasses.asdict(who.protocol),
        "accuracy": accuracy,
        "recovered": accuracy["distilled"]["mean"] / full if full else None,
        "images": n,
        "compression": n / total,
        "seconds": {
            "experts": _expert_seconds(run.experts_folder),
            "distill": header.get("seconds"),
            "evaluate": found["seconds"],
        },
        "peak_memory_bytes": peak_memory(problem.device),
        "iterations": {name: header.get(name) for name in ("iteration", "skipped", "rolled_back")},
        "judged": header.get("judged"),
        "chosen": {"iteration": distilled.provenance["iteration"], "on": distilled.provenance["chosen_on"]},
        "step_size": distilled.step_size,
        "config": as_dict(config),
        "dataset_fingerprint": problem.dataset.fingerprint,
        "environment": environment(problem.device),
        "version": artefacts.VERSION,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """The machine, as far as it bears on numbers and times."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": str(device),
        "processor": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def peak_memory(device: torch.device) -> int:
    """Most memory used so far: of the device where it counts its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _expert_seconds(folder: Path) -> float | None:
    path = folder / trajectories.MANIFEST
    return artefacts.read_json(path).get("seconds") if path.exists() else None


def _truncate_metrics(path: Path, iteration: int) -> None:
    """Drop lines of iterations that will be run again, and a last line that a crash cut short."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["iteration"] < iteration]
    artefacts.write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


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
    config, problem = run.config, run.problem
    batch = min(config.distil.batch_size, config.ipc * len(problem.dataset.classes))
    images = batch * config.distil.inner_steps * config.distil.iterations
    return engine.inner_derivatives(
        problem.network, problem.dataset.shape, batch, images, config.compile, config.distil.micro_batch
    )
