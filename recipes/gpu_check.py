"""All that a GPU is wanted for, in eight minutes from a bare start, where one is lent for a quarter of an hour.

    python recipes/pack.py --dataset data/cifar10 --out build/cifar10-packed.npz     before; it is taken along
    python recipes/gpu_check.py --out OUT                                            there
    python recipes/gpu_check.py --out OUT --rehearse                                 on the CPU, with everything shrunk

tests     tests/test_cuda.py: what must hold on a GPU
contract  what every method must keep (tests/methods/test_contract.py), on the GPU
bench     an iteration against the plain reference: compiled, replayed as graphs, in bfloat16, and without any of them
cifar10   one image per class with the time that is left, by the recipe cifar10-ipc1

OUT/record.json holds what is known so far, whole at any moment: each test, each case, each stage.  A part that takes
longer than its share is ended, one that needs what is not installed says so, and the next one follows.  Needs this
checkout, PyTorch, NumPy, safetensors and filelock; pytest for the tests, Pillow for the packed images.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TOTAL = 470.0  # seconds of all parts
SHARES = {
    "tests": 100.0,
    "contract": 45.0,
    "bench": 125.0,
}  # of these, at most; what a part leaves goes to those after it
PACKED = ROOT / "build" / "cifar10-packed.npz"
WANTED = (
    "torch", "numpy", "safetensors", "filelock", "pytest", "xdist", "PIL", "sklearn", "scipy", "pyarrow", "datasets",
    "tyro", "rich", "matplotlib", "jinja2", "triton",
)  # fmt: skip
OUTCOME = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED)")
CASES = ("expert step, batch 256", "five networks, batch 10")  # beside those for CUDA
EVALUATING, SPARE = 0.35, 10.0  # fraction of the time left, and seconds, that distilling leaves to what follows it


@dataclass
class Check:
    """A check under way: where it writes, and when it has to end."""

    out: Path
    rehearse: bool
    seconds: float  # of all parts
    ends: float  # when they are over, of time.monotonic()
    record: dict[str, Any]

    def put(self, part: str, **found: Any) -> None:
        """Note what is known of a part, and write the record: beside, and renamed, without anything of ours to import.

        A machine that lacks what potstill needs gets a record too.
        """
        self.record.setdefault(part, {}).update(found)
        beside = self.out / ".record.json.tmp"
        beside.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.out / "record.json")

    def left(self, part: str) -> float:
        """Seconds that a part may take: its share of all, or what is left."""
        share = self.seconds * SHARES.get(part, TOTAL) / TOTAL
        return max(0.0, min(share, self.ends - time.monotonic()))


def follow(command: list[str], log: Path, seconds: float, each: Callable[[str], None], **variables: str) -> str:
    """Run a command, hand on what it prints line by line, and end it with all it started when its time is over.

    Returns:
        "done", "exit code N: the last line" or "ended after N s".
    """
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **variables}
    ends = time.monotonic() + seconds
    with log.open("ab") as written, log.open("rb") as read:
        read.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, stdout=written, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
        )  # fmt: skip
        rest, last = b"", ""
        while True:
            over, late = process.poll() is not None, time.monotonic() > ends
            *lines, rest = (rest + read.read()).split(b"\n")
            for line in lines:
                each(text := line.decode(errors="replace"))
                last = text.strip() or last
            if over or late:
                break
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):  # what it started may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one in the midst of a write may end later
            process.wait(5)
    if late and not over:
        return f"ended after {seconds:.0f} s"
    return "done" if process.returncode == 0 else f"exit code {process.returncode}: {last[:300]}"


# --- the parts -----------------------------------------------------------------------------------------------------


def machine(check: Check) -> None:
    """What is here: the GPU, PyTorch, and which packages are missing."""
    missing = [name for name in WANTED if importlib.util.find_spec(name) is None]
    check.put("machine", python=sys.version.split()[0], missing=missing)
    from potstill.machine import commit, environment
    from potstill.training.problem import choose_device

    device = choose_device("cpu" if check.rehearse else "cuda")
    check.put("machine", commit=commit(), **environment(device))


def _tested(check: Check, part: str, chosen: list[str], processes: int, **variables: str) -> None:
    """Run some tests, and note the outcome of each as soon as it is known."""
    outcomes: dict[str, str] = {}  # by the name of the test, for those that failed are listed again

    def each(line: str) -> None:
        found, name = OUTCOME.search(line), re.search(r"tests/\S+::\S+", line)
        if found and name:
            outcomes[name[0]] = found[1].lower()
            failed = [name for name, outcome in outcomes.items() if outcome in ("failed", "error")]
            check.put(part, counts=Counter(outcomes.values()), failed=failed)

    spread = ["-n", str(processes)] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=short",
               "--color=no", *spread, *chosen]  # fmt: skip
    seconds = check.left(part)
    check.put(part, ended=follow(command, check.out / "tests.log", seconds, each, **variables))


def tests(check: Check) -> None:
    """What must hold on a GPU."""
    variables = {"POTSTILL_CUDA_TESTS": "cpu"} if check.rehearse else {}
    _tested(check, "tests", ["tests/test_cuda.py"], 0 if check.rehearse else 6, **variables)


def contract(check: Check) -> None:
    """What every method must keep; on a machine with a GPU it runs there."""
    chosen = ["tests/methods/test_contract.py", "-k", "dm" if check.rehearse else "finite or add_up"]
    _tested(check, "contract", chosen, 0 if check.rehearse else 12)


def bench(check: Check) -> None:
    """Cases of the benchmark, those for CUDA first, each in a process of its own."""
    from bench import cases

    ends = time.monotonic() + check.left("bench")
    for case in cases.REHEARSAL if check.rehearse else [*cases.CUDA, *CASES]:
        printed: list[str] = []
        command = [sys.executable, "-m", "bench", "--case", case, "--rounds", "1" if check.rehearse else "3"]
        ended = follow(command, check.out / "bench.log", max(0.0, ends - time.monotonic()), printed.append)
        found = next((json.loads(line) for line in reversed(printed) if line.startswith('{"case"')), {})
        check.put("bench", **{case: {"ended": ended, **found}})
        if time.monotonic() > ends:
            return


def cifar10(check: Check) -> None:
    """One image per class, in a process of its own, which prints what it finds as JSON."""
    packed = Path(check.record["packed"])
    if not packed.is_file():
        check.put("cifar10", ended=f"{packed} is missing: pack it by recipes/pack.py, and take it along")
        return

    def each(line: str) -> None:
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                check.put("cifar10", **json.loads(line))

    seconds = check.left("cifar10")
    command = [sys.executable, __file__, "--out", str(check.out), "--packed", str(packed), "--distil", str(seconds)]
    log = check.out / "cifar10.log"
    check.put("cifar10", ended=follow([*command, *(["--rehearse"] if check.rehearse else [])], log, seconds, each))


PARTS: dict[str, Callable[[Check], None]] = {
    "machine": machine, "tests": tests, "contract": contract, "bench": bench, "cifar10": cifar10,
}  # fmt: skip


# --- CIFAR-10 at one image per class -------------------------------------------------------------------------------


def say(**found: Any) -> None:
    """Print what is known, for the process that follows."""
    print(json.dumps(found), flush=True)


def settings_for(folder: Path, rehearse: bool) -> Any:
    """Those of the recipe with fewer experts, and no full-set control."""
    from potstill.bounds import changed
    from potstill.runs import recipes

    settings = recipes.load_recipe("cifar10-ipc1").settings(dataset=str(folder))
    own = {
        "validation": 0.04, "snapshots": 0, "evaluations": 1, "device": "cpu" if rehearse else "cuda",
        "expert": {"count": 8}, "evaluation": {"full_seeds": 0, "seeds": 3},
        "compile": "no",
    }  # fmt: skip
    if not rehearse:
        return changed(settings, own)
    return changed(recipes.tiny(settings), {**own, "expert": {"count": 1}})


def seconds_an_iteration(job: Any) -> tuple[float, float]:
    """Of the first iteration, which compiles, and of those after it."""
    from potstill import machine
    from potstill.runs import loop, state

    method, own, ctx = job.settings.methods[0], job.settings.stages[0], job.context(0)
    start = state.begin(method, own, method.begin(ctx, own, None))
    spent = []
    for reached, _ in itertools.islice(loop.iterate(method, ctx, own, start), 4):
        machine.wait(job.problem.device)
        spent.append(reached.seconds)
    return spent[0], (spent[-1] - spent[0]) / max(1, len(spent) - 1)


def finished(events: Iterator[dict[str, Any]], name: str) -> Any:
    """What a stage returns; how far it is is told every few seconds, and its seconds at the end."""
    began = told = time.monotonic()
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            say(**{f"{name}_seconds": time.monotonic() - began})
            return end.value
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(**{name: f"{event.get('done')} of {event.get('total')}", "loss": event.get("loss")})


def distil(out: Path, packed: Path, seconds: float, rehearse: bool) -> None:
    """Unpack, train experts, and distil as many iterations as the time allows; the set lies in ``out``."""
    ends = time.monotonic() + seconds
    from potstill.bounds import changed
    from potstill.runs import record, run, stage
    from recipes import pack

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pack.unpack(packed, folder / "cifar10")
        settings = settings_for(folder / "cifar10", rehearse)
        job = run.open_run(settings, folder / "timed", folder / "experts")
        say(images=len(job.problem.train.labels), precision=str(job.problem.network.precision))
        experts = finished(run.train_experts(job), "experts")
        fast = replace(
            settings, compile="no" if rehearse else "yes"
        )  # of all that is trained, iterations alone repay it
        first, each = seconds_an_iteration(run.open_run(fast, folder / "fast", folder / "experts"))
        left = (1 - EVALUATING) * (ends - time.monotonic()) - SPARE - first
        most = settings.stages[0].iterations
        iterations = min(most, 2 if rehearse else max(10, int(left / each)))
        say(expert_accuracies=experts.accuracies, first_iteration=first, iteration=each, iterations=iterations)
        stages = (changed(settings.stages[0], {"iterations": iterations}),)
        job = run.open_run(replace(fast, stages=stages), folder / "run", folder / "experts")
        distilled = finished(stage.distil(job), "distilling")
        distilled.save(out / "distilled.safetensors", compact=True)
        job = run.open_run(replace(settings, stages=stages), folder / "run", folder / "experts")
        found = finished(record.evaluate(job, distilled), "evaluation")
        say(accuracy=found["accuracy"], protocol=found["protocol"], peak_memory_bytes=found["peak_memory_bytes"])


def main() -> None:
    """All parts, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--packed", type=Path, default=PACKED, help="data by recipes/pack.py (default: %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with everything shrunk")
    parser.add_argument(
        "--seconds", type=float, default=TOTAL, help="of all parts (default: %(default)s); more on a slow CPU"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--distil", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.distil:
        distil(given.out, given.packed, given.distil, given.rehearse)
        return
    check = Check(
        given.out, given.rehearse, given.seconds, time.monotonic() + given.seconds, {"packed": str(given.packed)}
    )
    for part in given.parts:
        began = time.monotonic()
        try:
            PARTS[part](check)
        except Exception as error:  # what one part lacks is no reason to leave the others out
            check.put(part, ended=f"{type(error).__name__}: {error}")
        check.put(part, part_seconds=round(time.monotonic() - began, 1))
        print(f"{part}: {check.record[part].get('ended', 'done')}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
