"""Speed and memory of the inner loop and of training, ours against the plain reference in the same process.

    python -m bench            the small set, a few minutes
    python -m bench --full     larger batches as well

The reference is the definition: float32, eager, the graph of the whole unroll, as public code has it.  Both are run in
turn, a pair a round; what is printed is the median of each and of the ratio.  One JSON line a case goes to stdout.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from potstill import augment, engine, functional, seeds
from potstill.config import DSA, NetworkConfig
from potstill.functional import label_loss, target_loss
from potstill.run import environment, peak_memory
from potstill.unroll import InnerStep, unroll

SHAPE, CLASSES = (3, 32, 32), 10


def students(width: int, device: torch.device) -> tuple[functional.FlatNetwork, functional.FlatNetwork, torch.Tensor]:
    """The network as ours computes it, as the reference does, and parameters."""
    config = NetworkConfig(width=width, depth=3)
    obvious = functional.flat_network(config, SHAPE, CLASSES, device)
    precision = engine.choose_precision("auto", device, obvious, SHAPE)
    ours = functional.flat_network(config, SHAPE, CLASSES, device, precision)
    return ours, obvious, functional.initial(config, SHAPE, CLASSES, 0).to(device)


def iteration(batch: int, steps: int, width: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A whole iteration: unroll, matching loss, gradients in images, logits and step size."""
    ours, obvious, theta = students(width, device)
    draws = seeds.generator(0, "bench")
    images = torch.randn(batch, *SHAPE, generator=draws).to(device).requires_grad_()
    logits = torch.randn(batch, CLASSES, generator=draws).to(device).requires_grad_()
    alpha = torch.tensor(0.01, device=device, requires_grad=True)
    drawn = [
        InnerStep(torch.arange(batch, device=device), augment.draw(DSA, batch, SHAPE[1:], draws).to(device))
        for _ in range(steps)
    ]
    derivatives, micro_batch = engine.inner_derivatives(ours, SHAPE, batch, 1e9, "auto", None)

    def run(loss: Any, **how: Any) -> Any:
        end = unroll(theta, images, logits, alpha, drawn, loss, **how)
        return torch.autograd.grad((end - theta).square().sum(), (images, logits, alpha))

    return (
        lambda: run(label_loss(ours), derivatives=derivatives, micro_batch=micro_batch),
        lambda: run(label_loss(obvious), adjoint="direct"),
    )


def training(batch: int, width: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The gradient of one step of an expert."""
    ours, obvious, theta = students(width, device)
    draws = seeds.generator(0, "bench")
    images = torch.randn(batch, *SHAPE, generator=draws).to(device)
    targets = torch.eye(CLASSES, device=device)[torch.arange(batch, device=device) % CLASSES]
    fast = engine.training_gradient(ours, SHAPE, batch, 1e9, "auto")
    plain = engine.mean_gradient(target_loss(obvious))
    return lambda: fast(theta, images, targets), lambda: plain(theta, images, targets)


CASES: dict[str, Callable[[torch.device], tuple[Callable[[], Any], Callable[[], Any]]]] = {
    "iteration, batch 10, 5 steps": lambda device: iteration(10, 5, 128, device),
    "expert step, batch 256": lambda device: training(256, 128, device),
    "evaluation step, batch 10": lambda device: training(10, 128, device),
}
FULL: dict[str, Callable[[torch.device], tuple[Callable[[], Any], Callable[[], Any]]]] = {
    "iteration, batch 100, 2 steps": lambda device: iteration(100, 2, 128, device),
    "iteration, batch 10, 40 steps": lambda device: iteration(10, 40, 128, device),
}


def measure(case: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of ours and of the reference over interleaved rounds, after one that does not count."""
    ours, reference = {**CASES, **FULL}[case](device)
    began = time.perf_counter()
    ours()
    first = time.perf_counter() - began
    reference()
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(rounds):
        for name, action in (("ours", ours), ("reference", reference)):
            began = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["reference"], strict=True)]
    return {
        "case": case,
        "ratio": statistics.median(ratios),
        "ours": statistics.median(seconds["ours"]),
        "reference": statistics.median(seconds["reference"]),
        "first": first,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="larger batches and more steps as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    engine.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.case:
        print(json.dumps({**measure(given.case, given.rounds, device), "environment": environment(device)}))
        return
    print(f"{'case':32} {'ours':>10} {'reference':>10} {'faster':>8} {'first call':>11}", file=sys.stderr)
    for case in [*CASES, *(FULL if given.full else [])]:  # each in a process of its own, for its own peak memory
        command = [sys.executable, "-m", "bench", "--case", case, "--rounds", str(given.rounds)]
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
        found = json.loads(line)
        print(line, flush=True)
        print(
            f"{case:32} {found['ours'] * 1e3:7.0f} ms {found['reference'] * 1e3:7.0f} ms {found['ratio']:7.1f}× "
            f"{found['first']:9.1f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
