"""What a run leaves for scripts and pages: metrics.jsonl, a line an iteration, and results.json, its figures."""

import dataclasses
import json
import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files, ranks
from potstill.data.distilled import Distilled
from potstill.evaluation import controls, memorisation, statistics
from potstill.evaluation.evaluator import Evaluator, Event, training_set_of
from potstill.evaluation.protocol import protocol_of
from potstill.machine import environment, peak_memory
from potstill.methods import soft_labels
from potstill.methods.method import Method
from potstill.runs.run import Run
from potstill.runs.settings import Settings, as_dict, from_dict, settled
from potstill.runs.state import KIND
from potstill.training import experts, trajectories
from potstill.training.trajectories import Trajectories

METRICS = "metrics.jsonl"
NEAREST = "nearest.safetensors"  # the training images that the set's images come nearest to, drawn on the page
NEAREST_KIND = "nearest training images"


def evaluate(run: Run, distilled: Distilled) -> Generator[Event, None, dict[str, Any]]:
    """Final figures of the run's set and its controls, written to results.json."""
    who = run.evaluator(protocol_of(run.settings.evaluation))
    store = trajectories.find(run.experts_folder, experts.subject(run.problem))
    found = yield from evaluate_set(who, distilled, run.settings, store)
    if who.protocol.selection == "test":  # the paper's figure: the best of all evaluations, not a fresh one
        found["accuracy"]["distilled"] = statistics.interval([distilled.provenance["chosen_with_accuracy"]])
    results = summary(run, who, distilled, found, store)
    if ranks.first():
        nearest = memorisation.pictures(results["memorisation"], run.problem)
        files.write_tensors(run.folder / NEAREST, NEAREST_KIND, nearest, {})
        files.write_json(run.folder / "results.json", results)
    return results


def evaluate_set(
    who: Evaluator, distilled: Distilled, settings: Settings, store: Trajectories | None, alone: bool = False
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Figures of any set beside its controls (or ``alone``); the soft-label control where experts are available."""
    problem, labels, identity = who.problem, None, None
    if store is not None:
        count = min(settings.expert.count, len(store))
        identity = [store.identity, count]

        def labels(rows: Tensor) -> Tensor:
            images, truth = problem.train.images[rows], problem.train.labels[rows]
            return soft_labels.mean_logits(problem, store, count, images, truth).softmax(1)

    found = training_set_of(distilled, who.config, problem.device)
    full = settings.evaluation.full_seeds
    return (yield from controls.evaluate(who, found, settings.ipc, labels, full, identity, alone))


def summary(
    run: Run, who: Evaluator, distilled: Distilled, found: dict[str, Any], store: Trajectories | None
) -> dict[str, Any]:  # fmt: skip
    """results.json: the contract for scripts."""
    header, log = history(run.folder)
    problem, settings, accuracy = who.problem, settled(run.settings, log.get("measured", {})), found["accuracy"]
    full = accuracy.get("full", {}).get("mean")
    n, total = len(distilled), len(problem.dataset.train.labels) + len(problem.dataset.val.labels)
    took = spent(header, log, distilled) if header else None
    memory, machine = peak(log, problem.device), environment(problem.device)
    return files.stamped({
        "dataset": problem.dataset.name,
        "data_notes": list(problem.dataset.notes),
        "ipc": settings.ipc,
        "method": list(settings.method),
        "stages": [told(method, stage) for method, stage in zip(settings.methods, settings.stages, strict=True)],
        "network": who.config.name,
        "network_settings": dataclasses.asdict(who.config),  # perhaps another than the config's, which distilled
        "protocol": dataclasses.asdict(who.protocol),
        "accuracy": accuracy,
        "kept": found["kept"],
        "confusion": found["confusion"],
        "recovered": accuracy["distilled"]["mean"] / full if full else None,
        "images": n,
        "full_images": len(problem.dataset.train.labels),
        "compression": n / total,
        "seconds": {
            "experts": None if store is None else store.seconds,
            "distill": took.distilling + took.choosing if took else None,
            "evaluate": found["seconds"],
        },
        "peak_memory_bytes": memory,
        "iterations": {name: header.get(name) for name in ("iteration", "skipped", "rolled_back")}
        | ({"iteration": took.iterations} if took else {}),
        "validation": log.get("evaluated", []),
        "measured": log.get("measured", {}),
        "experts": distilled.provenance["experts"],
        "chosen": {"iteration": distilled.provenance["iteration"], "on": distilled.provenance.get("chosen_on")},
        "step_size": distilled.step_size,
        "step_sizes": distilled.provenance.get("step_sizes", []),
        "memorisation": memorisation.summary(memorisation.examine(distilled, problem)),
        "config": as_dict(settings),
        "dataset_fingerprint": problem.dataset.fingerprint,
        "environment": {
            **machine, "precision": str(problem.network.precision).split(".")[1],
            "processes": ranks.world(),
        },
    })  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """What distilling a set took."""

    iterations: int  # of all stages
    distilling: float  # seconds, what searches for open settings and for a step size took included
    choosing: float  # seconds of evaluating sets on the way


def spent(header: dict[str, Any], log: dict[str, Any], distilled: Distilled) -> Spent:
    """What a set took, by the :func:`history` of its run."""
    searches = sum(found["seconds"] for found in log.get("measured", {}).values())
    step_size = distilled.provenance.get("choosing_seconds", 0.0)
    iterations = header["before"] + header["iteration"]
    return Spent(iterations, header["seconds"] + searches + step_size, log["evaluation_seconds"])


def peak(log: dict[str, Any], device: torch.device) -> int:
    """Most memory that any session of a run used, in bytes."""
    return max(log.get("peak_memory_bytes", 0), peak_memory(device))


def told(method: Method, stage: Any) -> dict[str, Any]:
    """What a page needs to know of a stage, so that it knows no method by name."""
    return {
        "name": method.name, "title": method.title, "citation": method.citation, "loss": method.loss_label,
        "metrics": dict(method.metrics), "iterations": method.iterations(stage),
    }  # fmt: skip


def history(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and log of a run's checkpoint; both empty where a set lies alone."""
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        return {}, {}
    _, header = files.read_tensors(checkpoint, KIND)
    return header, header["log"]


def truncate_metrics(path: Path, iteration: int) -> None:
    """Drop lines of iterations that will be run again, and a last line that a crash cut short."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["iteration"] < iteration]
    files.write_bytes(path, "".join(files.as_json(line) + "\n" for line in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, up to one that is damaged; what was not finite is not a number."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("iteration"), int):
            break
        lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def upgrade(results: dict[str, Any]) -> dict[str, Any]:
    """results.json of a run of any earlier version as of today."""
    results = {"kept": {}, "memorisation": None, "confusion": None, **results}
    if "stages" in results:
        return results
    settings = from_dict(results["config"])
    stages = [told(method, stage) for method, stage in zip(settings.methods, settings.stages, strict=True)]
    return {
        **results, "method": list(settings.method), "stages": stages, "validation": results["judged"], "measured": {},
        "data_notes": [],
        "config": as_dict(settings),
    }  # fmt: skip
