"""Speed and memory of the inner loop, of experts and of evaluation, ours against the plain reference.

    python -m bench              the small set, under five minutes
    python -m bench --full       longer and float32 cases too
    python -m bench --growth     how time and memory grow with steps, batch and width
    python -m bench --record records/bench-NAME.json     keep what was measured

Ours and the reference run in turn in the same process, a pair a round; what is printed is the median of each and of the
ratio.  Each case has a process of its own, for its own peak of memory.  One JSON line a case goes to stdout.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import cases
from bench.cases import CUDA, FULL, REHEARSAL, SMALL, Bench
from bench.limits import limits
from potstill import files
from potstill.adjoint import engine
from potstill.adjoint.unroll import KEEP_BYTES
from potstill.machine import commit, environment, peak_memory, wait

GROWTH = [(steps, batch, width) for width in (64, 128) for batch in (10, 100, 1000) for steps in (10, 40, 100)]


def compare(case: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of ours and of the reference over interleaved rounds, after one that does not count."""
    base = peak_memory(device)
    ours, reference = {**SMALL, **FULL, **CUDA, **REHEARSAL}[case](Bench(device))
    began = time.perf_counter()
    ours()
    wait(device)
    first = time.perf_counter() - began
    peak = peak_memory(device)
    sides = {"ours": ours, "reference": reference}
    try:
        reference()
    except torch.OutOfMemoryError:  # the graph of a long unroll at a large batch fits into no memory
        del sides["reference"]
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(rounds):
        for name, action in sides.items():
            wait(device)
            began = time.perf_counter()
            action()
            wait(device)
            seconds[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["reference"], strict=False)]
    return {
        "case": case,
        "ratio": statistics.median(ratios) if ratios else None,  # None where the reference runs out of memory
        "ours": statistics.median(seconds["ours"]),
        "reference": statistics.median(seconds["reference"]) if ratios else None,
        "first": first,
        "seconds": seconds,
        "peak_bytes_of_ours": peak - base,
        "peak_bytes": peak_memory(device) - base,
    }


def grow(steps: int, batch: int, width: int, device: torch.device) -> dict[str, Any]:
    """Seconds and memory of one iteration of ours, after short ones that compile, with and without what is kept."""
    warm, _ = cases.iteration(Bench(device), batch, 1, width)
    for keep in (KEEP_BYTES, 0):
        warm(keep=keep)
    base = peak_memory(device)
    ours, _ = cases.iteration(Bench(device), batch, steps, width)
    began = time.perf_counter()
    ours()
    wait(device)
    seconds = time.perf_counter() - began
    parameters = Bench(device).networks(width)[2].numel()
    return {
        "case": "growth", "steps": steps, "batch": batch, "width": width, "seconds": seconds,
        "peak_bytes_above_one_step": peak_memory(device) - base,
        "weights_bytes": 4 * parameters * (steps + 1),
    }  # fmt: skip


def one(given: argparse.Namespace) -> None:
    """One case, in this process."""
    engine.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.grow:
        found = grow(*given.grow, device)
    elif given.limits:
        found = {"case": "limits", **limits(device)}
    else:
        found = compare(given.case, given.rounds, device)
    print(json.dumps({**found, "environment": environment(device)}))


def apart(*arguments: str) -> dict[str, Any]:
    """One case, in a process of its own."""
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout.strip().splitlines()[-1], flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ratios(full: bool, rounds: int) -> Iterator[dict[str, Any]]:
    """Ours against the reference, case by case, and the machine's limits."""
    tell(f"{'case':40} {'ours':>10} {'reference':>10} {'faster':>8} {'first call':>11} {'peak, ours':>11}")
    for case in [*SMALL, *(FULL if full else []), *(CUDA if torch.cuda.is_available() else [])]:
        yield (found := apart("--case", case, "--rounds", str(rounds)))
        against = "       out of memory"
        if found["ratio"]:
            against = f"{found['reference'] * 1e3:7.0f} ms {found['ratio']:7.2f}×"
        tell(
            f"{case:40} {found['ours'] * 1e3:7.0f} ms {against} "
            f"{found['first']:9.1f} s {found['peak_bytes_of_ours'] / 1e6:8.0f} MB"
        )
    yield (found := apart("--limits"))
    for name, speed in found.items():
        if isinstance(speed, float):
            tell(f"at most: {name:45} {speed / 1e9:7.0f} × 10⁹")


def growth() -> Iterator[dict[str, Any]]:
    """Time and memory of one iteration over steps, batch and width."""
    tell(f"{'steps':>6} {'batch':>6} {'width':>6} {'iteration':>11} {'a step':>9} {'memory':>9} {'weights':>9}")
    for steps, batch, width in GROWTH:
        yield (found := apart("--grow", str(steps), str(batch), str(width)))
        tell(
            f"{steps:6} {batch:6} {width:6} {found['seconds']:9.2f} s {found['seconds'] / steps * 1e3:6.0f} ms "
            f"{found['peak_bytes_above_one_step'] / 1e6:6.0f} MB {found['weights_bytes'] / 1e6:6.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer and float32 cases too; eight minutes on two cores")
    parser.add_argument("--growth", action="store_true", help="growth instead; half an hour on two cores")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved pairs of each case (default: %(default)s)")
    parser.add_argument("--record", type=Path, help="write all that was measured to this JSON file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--limits", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--grow", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case or given.limits or given.grow:
        one(given)
        return
    ran_from = commit()
    lines = list(growth() if given.growth else ratios(given.full, given.rounds))
    if given.record:
        files.write_json(given.record, {"commit": ran_from, "lines": lines})


if __name__ == "__main__":
    main()
