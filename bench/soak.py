"""Endurance: runs killed without warning again and again, and memory over many iterations.

    python -m bench.soak                                     200 kills, 2000 iterations
    python -m bench.soak --kills 5 --iterations 100          a small form
    python -m bench.soak --record records/soak-NAME.json     keep what was measured

A run that is killed at a random moment, continued and killed again, until it ends by itself, must leave the very set
and metrics of a run that nobody disturbed.
"""

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from potstill import files
from potstill.data.distilled import FILE
from potstill.machine import commit, environment

RUN = shlex.split(
    "run --method datm rat-bptt --network.width 8 --expert.count 2 --expert.epochs 4 --checkpoint-seconds 0.2 "
    "--compile no --datm.iterations 40 --datm.start-epochs 0 2 --datm.expert-epochs 1 --datm.inner-steps 5 "
    "--rat-bptt.iterations 20 --rat-bptt.unroll 10 --rat-bptt.window 4 --rat-bptt.real-batch 100 "
    "--evaluation.protocol quick --evaluation.epochs 5 --evaluation.full-epochs 1"
)
LEFT = (FILE, "metrics.jsonl")  # what must be the same, byte for byte
EVERY = 100  # iterations between two looks at the memory


def soak(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Runs killed so many times in all, each compared with the undisturbed one when it has ended.

    Interrupted by Ctrl-C, it tells what it has found so far.
    """
    length, expected = _undisturbed(folder / "whole"), _digests(folder / "whole")
    draws, done, runs, different = random.Random(seed), 0, 0, []
    with contextlib.suppress(KeyboardInterrupt):
        while done < kills:
            killed = folder / f"killed-{runs}"
            while done < kills and _killed(killed, draws.uniform(0.3, 0.9) * length):
                done += 1
                print(f"{done} kills, {runs} runs ended", file=sys.stderr, flush=True)
            _undisturbed(killed)
            runs += 1
            different += [name for name, digest in _digests(killed).items() if digest != expected[name]]
            shutil.rmtree(killed)
    return {"kills": done, "runs": runs, "different": different, "seconds_undisturbed": length}


def _undisturbed(folder: Path) -> float:
    """Seconds of a run to its end."""
    began = time.perf_counter()
    if _start(folder).wait() != 0:
        raise SystemExit(f"{folder}: the run that was killed does not continue")
    return time.perf_counter() - began


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "potstill", *RUN, "--out", str(folder)]
    silent, alone = subprocess.DEVNULL, {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=silent, stderr=silent, env=alone)


def _killed(folder: Path, seconds: float) -> bool:
    """Whether the run was still going when it was killed."""
    process = _start(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0
    return False


def _digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in LEFT}


def memory(iterations: int, folder: Path) -> dict[str, Any]:
    """Peak resident bytes of this process while a run goes on, by iteration."""
    from potstill.runs import run, stage
    from potstill.runs.api import run_to_completion
    from potstill.runs.settings import configure

    settings = configure("digits", 1, changes={
        "expert": {"count": 2, "epochs": 6}, "evaluations": 1, "network": {"width": 8}, "compile": "no",
        "evaluation": {"protocol": "quick", "epochs": 3, "full_epochs": 1},
        "datm": {"iterations": iterations, "start_epochs": (0, 2), "inner_steps": 10, "expert_epochs": 1},
    })  # fmt: skip
    peaks: dict[int, int] = {}

    def look(event: dict[str, Any]) -> None:
        if event["stage"] == "distilling" and event["done"] % EVERY == 0:
            peaks.setdefault(event["done"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    with run.opened(settings, folder / "long") as job:
        run_to_completion(run.train_experts(job))
        run_to_completion(stage.distil(job), look)
    warm = {done: peak for done, peak in peaks.items() if done >= EVERY}
    growth = max(warm.values()) - min(warm.values()) if warm else 0  # fewer iterations than between two looks
    return {"iterations": iterations, "peak_bytes": peaks, "growth_bytes": growth}


def main() -> None:
    """Soak, and print or keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "kills": soak(given.kills, given.seed, Path(folder)),
            "memory": memory(given.iterations, Path(folder)), "seed": given.seed,
            "commit": commit(), "environment": environment(torch.device("cpu")),
        }  # fmt: skip
    print(files.plain(found))
    if given.record:
        files.write_json(given.record, found)
    raise SystemExit(1 if found["kills"]["different"] else 0)


if __name__ == "__main__":
    main()
