"""The two sides of a comparison, each a process that iterates when it is told to, on the same made-up material."""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.authors.cases import CASES, CLASSES, EPOCHS, Case
from bench.authors.turns import Side, Turns
from potstill import files
from potstill.adjoint import engine
from potstill.data import dataset
from potstill.methods.method import Context
from potstill.runs import loop, state
from potstill.runs.run import Run
from potstill.training import experts, trajectories
from potstill.training.trajectories import expert_path

EACH, TEST = 1500, 20  # training images of a class, a tenth of which ours keeps aside; test images
BLANK = (
    "wandb", "kornia", "h5py", "torch_optimizer", "torchnet", "scipy", "pandas", "matplotlib", "efficientnet_pytorch",
    "tqdm", "PIL",
)  # fmt: skip
"""Packages that their scripts import and do not call in an iteration: blanks where they are not installed."""


# --- what both work on ---------------------------------------------------------------------------------------------


def write_images(path: Path, each: int = EACH) -> None:
    """Made-up images (n, 32, 32, 3) uint8, a colour a class and noise: times do not depend on what they show."""
    draws = np.random.default_rng(0)
    held: dict[str, np.ndarray] = {}
    for part, count in (("train", each), ("test", TEST)):
        labels = np.repeat(np.arange(CLASSES), count)
        colours = draws.integers(60, 196, (CLASSES, 1, 1, 3))[labels]
        noise = 40 * draws.standard_normal((len(labels), 32, 32, 3), dtype=np.float32)
        held |= {f"{part}_images": (colours + noise).clip(0, 255).astype(np.uint8), f"{part}_labels": labels}
    np.savez(path, **held)


def snapshots(width: int) -> list[list[Tensor]]:
    """Parameters of an untrained expert by epoch, as ConvNet-D3 has them: it costs the same to follow it."""
    draws = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = []
    for channels in (3, width, width):
        shapes += [(width, channels, 3, 3), (width,), (width,), (width,)]
    shapes += [(CLASSES, width * 16), (CLASSES,)]
    found = [[0.05 * torch.randn(shape, generator=draws) for shape in shapes]]
    for _ in range(EPOCHS):
        found.append([x + 1e-3 * torch.randn(x.shape, generator=draws) for x in found[-1]])
    return found


def write_for_them(work: Path, width: int) -> None:
    """The expert as their codes read it: a buffer for trajectory matching, and a network's states for NCFM."""
    found = snapshots(width)
    for folder in ("CIFAR10_NO_ZCA", "CIFAR10"):
        where = work / "buffers" / folder / "ConvNet"
        where.mkdir(parents=True)
        torch.save([found], where / "replay_buffer_0.pt")
    names = [f"layers.{kind}.{d}.{part}" for d in range(3) for kind in ("conv", "norm") for part in ("weight", "bias")]
    names += ["classifier.weight", "classifier.bias"]
    (work / "pretrained" / "cifar10").mkdir(parents=True)
    for name, epoch in (("init", found[0]), ("trained", found[-1])):
        kept = dict(zip(names, epoch, strict=True))
        torch.save(kept, work / "pretrained" / "cifar10" / f"premodel0_{name}.pth.tar")


def write_for_us(run: Run, width: int) -> None:
    """The expert as ours reads it."""
    identity = experts.identity(run.settings.expert, run.problem, 0, run.settings.augment)
    trajectories.create(run.experts_folder, identity, range(EPOCHS + 1))
    flat = [torch.cat([x.flatten() for x in epoch]) for epoch in snapshots(width)]
    kept = {epoch: (theta, torch.empty(0)) for epoch, theta in enumerate(flat)}
    header = {"epoch": EPOCHS, "accuracy": 0.1, "seconds": 0.0, "identity": files.fingerprint(identity)}
    trajectories.write_expert(
        expert_path(run.experts_folder, 0), "expert", kept, flat[-1], torch.empty(0), header, "float32"
    )


# --- the sides -----------------------------------------------------------------------------------------------------


def specification(case: Case, code: Path, work: Path, width: int) -> dict[str, Any]:
    """What ``theirs.py`` is told."""
    root = code / case.repository
    return {
        "root": str(root), "script": str(root / case.script), "images": str(work / "images.npz"),
        "arguments": [argument.replace("{work}", str(work)) for argument in case.arguments], "blank": BLANK,
        "own_module": case.own_module, "replaced": case.constants(width), "each": case.each,
        "given": case.given,
        "values": CLASSES * case.ipc * 3 * 32 * 32,
    }  # fmt: skip


def theirs(case: Case, code: Path, work: Path, width: int, python: str) -> Side:
    """Their script, waiting for its turns."""
    write_for_them(work, case.width(width))
    (work / "config.yaml").write_text(case.config.replace("{work}", str(work)))
    files.write_json(work / "theirs.json", specification(case, code, work, width))
    command = [python, str(Path(__file__).parent / "theirs.py"), str(work / "theirs.json")]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    return Side(command, work, work / "theirs.log", {**_threads(), **alone})


def ours(name: str, work: Path, width: int) -> Side:
    """Our iterations, waiting for their turns."""
    command = [sys.executable, "-m", "bench.authors", "--ours", name, "--work", str(work), "--width", str(width)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return Side(command, work, work / "ours.log", {**_threads(), "PYTHONPATH": paths})


def _threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def take_turns(case: Case, work: Path, width: int) -> None:
    """Iterate as a run does, an iteration a turn."""
    turns = Turns()
    engine.keep_freed_memory()
    held = np.load(work / "images.npz")
    train, test = ((held[f"{part}_images"], held[f"{part}_labels"]) for part in ("train", "test"))
    run = Run(case.settings(width), work / "run", work / "run" / "experts", dataset.load(train, test=test))
    if run.needs is not None:
        run.experts_folder.mkdir(parents=True)
        write_for_us(run, case.width(width))
    (method,), (settings,) = run.settings.methods, run.settings.stages
    ctx: Context = run.context(0)
    if still_open := method.open_fields(settings):
        raise ValueError(f"{case.method}: {', '.join(still_open)} would be measured before the first iteration")
    begun = state.begin(method, settings, method.begin(ctx, settings, None))
    for _ in loop.iterate(method, ctx, settings, begun):
        turns.mark()


# --- comparing -----------------------------------------------------------------------------------------------------


def compare(name: str, code: Path, width: int, python: str, rounds: int, each: int = EACH) -> dict[str, Any]:
    """Seconds of an iteration of theirs and of ours, in turn, after two of each that do not count.

    Raises:
        RuntimeError: one of them ended, with the last lines that it wrote.
    """
    case, work = CASES[name], Path(tempfile.mkdtemp(prefix="potstill-bench-"))
    sides: dict[str, Side] = {}
    try:
        write_images(work / "images.npz", each)
        for side, start in (
            ("ours", lambda: ours(name, work, width)), ("theirs", lambda: theirs(case, code, work, width, python)),
        ):  # fmt: skip
            sides[side] = start()
            sides[side].ready()
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side, process in sides.items():
                spent = process.turn()
                seconds[side] += [spent] if number else []
    finally:
        for process in sides.values():
            process.close()
        shutil.rmtree(work)
    return {**described(name, code, width), **summary(seconds)}


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in milliseconds, and how many times as long theirs takes."""
    middle = {side: statistics.median(found) for side, found in seconds.items()}
    return {
        "theirs_ms": 1000 * middle["theirs"], "ours_ms": 1000 * middle["ours"],
        "ratio": middle["theirs"] / middle["ours"], "seconds": seconds,
    }  # fmt: skip


def described(name: str, code: Path, width: int) -> dict[str, Any]:
    """What a line of the record says beside its times."""
    case = CASES[name]
    return {
        "case": name, "method": case.method, "shape": f"ConvNet-D3 of width {case.width(width)}, 3 × 32 × 32, "
        f"{CLASSES} classes; {case.shape}", "repository": case.repository, "script": case.script,
        "commit": commit_of(code / case.repository), "arguments": list(case.arguments), "config": case.config,
        "constants": case.constants(width), "changed": case.changed,
    }  # fmt: skip


def commit_of(folder: Path) -> str | None:
    """The commit of a clone; None where it is none."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
