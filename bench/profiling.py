"""Where the time of an inner step goes: convolutions, generated code, the rest; ours and the reference's.

python -m bench.profiling            at batch 10 and at one micro-batch of 25
"""

import json
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cases import CLASSES, LONG, SHAPE, Bench
from potstill.adjoint import engine
from potstill.adjoint.derivatives import Derivatives, eager
from potstill.machine import timed
from potstill.networks.losses import label_loss

REPEATS = 10
KINDS = {  # what a profiled name belongs to; the first that fits
    "convolution": ("convolution",),
    "norm": ("group_norm",),
    "pooling": ("pool",),
    "matrix product": ("addmm", "aten::mm"),
    "generated code": ("CompiledFxGraph",),
}


def profiled(derivatives: Derivatives, bench: Bench, batch: int) -> dict[str, Any]:
    """Milliseconds of gradient and directional derivative of a batch, and the shares of both together."""
    *_, theta = bench.networks(128)
    images, logits = bench.batch(batch)
    direction = torch.randn(len(theta), device=bench.device)

    def gradient() -> Any:
        return derivatives.gradient(theta, images, logits)

    _, kept = gradient()

    def directional() -> Any:
        return derivatives.directional(theta, images, logits, direction, kept)

    found = {"gradient_ms": 1e3 * timed(gradient, bench.device, REPEATS)}
    found["directional_ms"] = 1e3 * timed(directional, bench.device, REPEATS)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])
    with profile(activities=activities) as seen:
        for _ in range(REPEATS):
            gradient(), directional()
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in seen.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "other")
        shares[kind] += event.self_cpu_time_total + getattr(event, "self_device_time_total", 0.0)
    total = sum(shares.values())
    return {**found, "shares": {kind: round(share / total, 3) for kind, share in shares.items()}}


def main() -> None:
    engine.keep_freed_memory()
    bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    ours, obvious, _ = bench.networks(128)
    for batch in (10, 25):
        fast, _ = engine.inner_derivatives(ours, SHAPE, batch, LONG, "auto", batch)
        for name, derivatives in (("ours", fast), ("reference", eager(label_loss(obvious)))):
            found = {"batch": batch, "path": name, "classes": CLASSES, **profiled(derivatives, bench, batch)}
            print(json.dumps(found), flush=True)
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares"].items() if share > 0.005)
            print(
                f"batch {batch:4} {name:10} gradient {found['gradient_ms']:6.1f} ms, with its adjoint "
                f"{found['gradient_ms'] + found['directional_ms']:6.1f} ms: {shares}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
