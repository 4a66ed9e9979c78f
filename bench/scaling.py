"""How a comparison scales: tasks a minute by workers, what a task costs beside its work, and what that means for many.

    python -m bench.scaling                                      about four minutes alone
    python -m bench.scaling --data data                          DATM's cells on many workers as well: sixteen minutes
    python -m bench.scaling --empty 200 --small                  a small form
    python -m bench.scaling --record records/scaling-NAME.json   keep what was measured

On paper, from what was measured: DATM's twelve cells (a hundred experts a dataset, a set and five networks a cell),
scheduled on many workers.  A set is one task, so that its length bounds what workers can gain.  Where Tiny ImageNet is
not there, its cells are timed on noise of its shape.
"""

import argparse
import heapq
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill import files
from potstill.evaluation.protocol import EvaluationConfig
from potstill.machine import commit, environment
from potstill.networks.architectures import NetworkConfig
from potstill.runs import forecast
from potstill.runs.api import run_to_completion
from potstill.runs.settings import Settings, configure
from potstill.studies import execute, task

WORKERS = (1, 2)
ON_PAPER = (8, 64, 512)
TINY = "tiny-imagenet"
IPCS = {"cifar10": (1, 10, 50, 500, 1000), "cifar100": (1, 10, 50, 100), TINY: (1, 10, 50)}
CLASSES, IMAGES, FEWER = 200, 500, 60  # of Tiny ImageNet, images of each; and how many are made up


@dataclass(frozen=True)
class Empty:
    """A task that only leaves its record: all it costs is what every task costs."""

    number: int
    needs: tuple[str, ...] = ()
    label: str = field(default="nothing")
    kind: str = field(default="nothing")

    @property
    def key(self) -> str:
        return f"empty-{self.number}"

    def done(self, folder: Path) -> bool:
        return (folder / self.key).exists()

    def perform(self, folder: Path) -> Any:
        yield {"stage": "nothing", "done": 0, "total": 1}
        files.write_json(folder / self.key, {"number": self.number})


def seconds(tasks: Sequence[task.Task], folder: Path, executor: execute.Executor) -> float:
    """Of all tasks, once the executor's workers stand."""
    with closing(executor):
        run_to_completion(execute.execute([Empty(-1 - n) for n in range(2 * executor.capacity())], folder, executor))
        began = time.perf_counter()
        failed = run_to_completion(execute.execute(tasks, folder, executor))
        spent = time.perf_counter() - began
    assert not failed, failed
    assert all(one.done(folder) for one in tasks)
    return spent


def rates(small: bool) -> dict[str, Any]:
    """Tasks a minute of each kind, by workers of one thread each: the digits' own network."""
    settings = _settings(small)
    before = task.expert_tasks(settings, 0)
    sets = [task.set_task(replace(settings, seed=seed), before) for seed in range(len(before))]
    config = NetworkConfig(**vars(task.problem_of(settings).network_config))
    figures = [task.FigureTask(one.settings, config, one, number) for number, one in enumerate(sets)]
    found: dict[str, Any] = {}
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as name:
            os.environ["POTSTILL_CACHE"] = f"{name}/cache"  # nothing is taken from the round before
            for kind, tasks in {"experts": before, "sets": sets, "figures": figures}.items():
                torch.set_num_threads(workers)  # shared out: one a worker
                spent = seconds(tasks, Path(name), execute.Processes(workers))
                found.setdefault(kind, {})[str(workers)] = 60 * len(tasks) / spent
                print(f"{kind} with {workers} workers: {60 * len(tasks) / spent:.1f} a minute", flush=True)
    return found


def _settings(small: bool) -> Settings:
    count, epochs, iterations = (2, 2, 2) if small else (8, 30, 20)
    evaluation = EvaluationConfig("quick", epochs=5 if small else 300)
    return configure("digits", 10, None, {
        "method": "datm", "datm": {"iterations": iterations}, "expert": {"count": count, "epochs": max(epochs, 15)},
        "evaluation": evaluation, "evaluations": 1, "snapshots": 0, "compile": "no",
    })  # fmt: skip


def overhead(count: int) -> dict[str, float]:
    """Milliseconds of a task that does nothing, the workers idle beside it: what driver and store cost."""
    found = {}
    executors = {"processes": lambda: execute.Processes(2), "ray": lambda: execute.Ray("local")}
    for name, make in executors.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = 1000 * seconds([Empty(n) for n in range(count)], Path(folder), make()) / count
        print(f"an empty task by {name}: {found[name]:.2f} ms", flush=True)
    return found


def on_paper(data: Path) -> dict[str, Any]:
    """Hours until DATM's published cells are done, by workers like this machine; and worker hours in all."""
    jobs: list[tuple[str, float, list[str]]] = []
    cells = {}
    for dataset, ipcs in IPCS.items():
        names = [f"{dataset} expert {number}" for number in range(100)]
        for ipc in ipcs:
            cell = f"{dataset}-ipc{ipc}"
            found = cells[cell] = _seconds(data / dataset, ipc, cell)
            if ipc == ipcs[0]:
                jobs += [(name, found["experts"] / len(names), []) for name in names]
            jobs.append((cell, found["distilling"], names))
            jobs += [(f"{cell}, network {number}", found["evaluation"] / 5, [cell]) for number in range(5)]
            print(f"{cell}: {found['distilling'] / 3600:.1f} hours of distilling", flush=True)
    whole = sum(length for _, length, _ in jobs) / 3600
    hours = {str(workers): makespan(jobs, workers) / 3600 for workers in ON_PAPER}
    longest = max(length for _, length, _ in jobs) / 3600
    return {"worker_hours": whole, "hours": hours, "longest_hours": longest, "seconds_of_cells": cells}


def _seconds(data: Path, ipc: int, cell: str) -> dict[str, float]:
    """Of the experts, of distilling and of evaluation, as forecast."""
    if data.exists() or data.name != TINY:
        return dict(forecast.forecast(configure(str(data), ipc, cell))["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        noise = _noise(Path(folder))
        found = forecast.forecast(configure(str(noise), ipc, cell, {"transform": "standardise"}))["seconds"]
    return {**found, "experts": found["experts"] * IMAGES / FEWER}


def _noise(folder: Path) -> Path:
    """Fewer images of Tiny ImageNet's shape; the time of an expert grows with their number."""
    draws = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, each in {"train": FEWER, "test": 2}.items():
        arrays[f"{part}_images"] = draws.integers(0, 256, (each * CLASSES, 64, 64, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(each * CLASSES) % CLASSES
    path = folder / f"{TINY}.npz"
    np.savez(path, **arrays)
    return path


def makespan(jobs: Sequence[tuple[str, float, list[str]]], workers: int) -> float:
    """Seconds until all jobs (name, seconds, what they need) are done, longest first where several could begin."""
    needs = {name: set(before) for name, _, before in jobs}
    length = {name: seconds for name, seconds, _ in jobs}
    running: list[tuple[float, str]] = []
    waiting, now = set(needs), 0.0
    while waiting or running:
        ready = sorted((name for name in waiting if not needs[name]), key=lambda name: -length[name])
        for name in ready[: workers - len(running)]:
            waiting.remove(name)
            heapq.heappush(running, (now + length[name], name))
        now, ended = heapq.heappop(running)
        for before in needs.values():
            before.discard(ended)
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--empty", type=int, default=10_000, help="tasks that do nothing")
    parser.add_argument("--small", action="store_true", help="real tasks of a few steps")
    parser.add_argument(
        "--data", type=Path, help="folder of cifar10, cifar100 and perhaps tiny-imagenet, to say what DATM's cells cost"
    )
    parser.add_argument("--record", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    found = {"tasks_a_minute": rates(given.small), "overhead_ms": overhead(given.empty), "empty_tasks": given.empty}
    if given.data:
        found["datm_on_paper"] = on_paper(given.data)
    print(found)
    if given.record:
        told = {"commit": commit(), "environment": environment(torch.device("cpu"))}
        files.write_json(given.record, {**found, **told})


if __name__ == "__main__":
    main()
