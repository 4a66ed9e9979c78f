"""What is fast on this machine, and what is missing."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from potstill import machine, store
from potstill.adjoint import engine
from potstill.data import hub
from potstill.process import COMPILER_CACHE
from potstill.training.problem import choose_device
from potstill.version import VERSION

HUB_SECONDS = 3.0  # until the hub answers
ROOMY = 4e9  # bytes of memory and of disk that the published network on CIFAR takes on two cores
SIZE = {"cpu": 1024, "mps": 2048, "cuda": 4096}  # of the square matrices that are multiplied
PACKAGES = {
    "datasets": "datasets of the Hugging Face Hub", "huggingface_hub": "hf://user/name, potstill push",
    "pyarrow": "Parquet files", "Pillow": "image files, pictures of sets", "scikit-learn": "the digits, k-means",
    "scipy": "95 % intervals", "matplotlib": "figures", "jinja2": "report pages", "tyro": "the command line",
    "rich": "tables and progress", "tensorboard": "--tensorboard", "ray": "potstill compare --ray",
    "onnx": "train --out net.onnx", "onnxscript": "train --out net.onnx",
}  # fmt: skip
"""Packages beside PyTorch, and what each is for: only that is missing where it is."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    here: str
    remark: str = ""  # what it means, or how to get it
    lacking: bool = False


def examine() -> list[Finding]:
    """Look at everything; takes a few seconds at most."""
    device = choose_device("auto")
    return [
        Finding("potstill", VERSION, f"Python {platform.python_version()} on {platform.system()}"),
        Finding("PyTorch", torch.__version__, _built_for()),
        *_devices(device),
        _bfloat16(device),
        _multiplying(device),
        _compiler(device),
        _threads(),
        _memory(),
        _disk(),
        _cache(),
        _compiler_cache(),
        _hub(),
        *_packages(),
    ]


# --- what computes -------------------------------------------------------------------------------------------------


def _built_for() -> str:
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"


def _devices(chosen: torch.device) -> Iterator[Finding]:
    """The device that `--device auto` takes, then every GPU."""
    name = machine.environment(chosen)["processor"]
    if chosen.type == "cpu":
        yield Finding("device", f"cpu ({name})", "no GPU that PyTorch can use: CIFAR takes hours")
    else:
        yield Finding("device", f"{chosen} ({name})", "--device auto takes it")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Finding(f"cuda:{number}", properties.name, f"{_gigabytes(properties.total_memory)} of memory")


def _bfloat16(device: torch.device) -> Finding:
    if engine.has_bfloat16_units(device):
        return Finding("bfloat16 units", "yes", "networks that are not very small use them")
    return Finding("bfloat16 units", "no", "all is computed in float32", lacking=True)


def _multiplying(device: torch.device) -> Finding:
    """Products of square matrices, measured: twice size³ operations each."""
    size, speeds = SIZE.get(device.type, 1024), {}
    for kind in (torch.float32, torch.bfloat16):
        try:
            one = torch.ones(size, size, device=device, dtype=kind)
            seconds = machine.timed(lambda one=one: one @ one, device)  # type: ignore[misc]
        except RuntimeError:  # not on this device
            continue
        speeds[kind] = 2 * size**3 / seconds
    told = ", ".join(f"{str(kind).removeprefix('torch.')} {speed / 1e9:.0f}" for kind, speed in speeds.items())
    return Finding("multiplying", f"{told} Gflop/s", f"matrices of {size}×{size}")


def _compiler(device: torch.device) -> Finding:
    if device.type == "cuda":
        return Finding("C++ compiler", engine.cpp_compiler() or "none", "not needed on a GPU")
    found = engine.cpp_compiler()
    if found is None:
        return Finding("C++ compiler", "none", "install g++ or clang++: long jobs are faster compiled", lacking=True)
    return Finding("C++ compiler", found, "long jobs compile their steps")


def _threads() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("threads", f"{torch.get_num_threads()} on {usable} cores", "OMP_NUM_THREADS changes it")


# --- room ----------------------------------------------------------------------------------------------------------


def _memory() -> Finding:
    total, free = memory()
    if total is None:
        return Finding("memory", "not known", "")
    here = _gigabytes(total) if free is None else f"{_gigabytes(free)} free of {_gigabytes(total)}"
    short = (free or total) < ROOMY
    return Finding("memory", here, "little: lower --micro-batch" if short else "", short)


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory that this process may use, and those that are free; None where the system does not say."""
    try:
        lines = (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        told = {name: 1024 * int(value.split()[0]) for name, value in lines if value.strip().endswith("kB")}
        total, free = told["MemTotal"], told["MemAvailable"]
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        except (AttributeError, OSError, ValueError):
            return None, None
    limit = _limit_of_the_container()
    return (total, free) if limit is None else (min(total, limit), min(free, limit))


def _limit_of_the_container() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return None


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    short = free < ROOMY
    return Finding("disk", f"{_gigabytes(free)} free here", "little: experts take gigabytes" if short else "", short)


def _cache() -> Finding:
    folder = store.cache_folder()
    if not _can_write(folder):
        return Finding("cache", f"{folder} cannot be written", "set POTSTILL_CACHE to a folder that can", lacking=True)
    held = sum(size for _, size in store.kept().values())
    return Finding("cache", f"{folder}, {_gigabytes(held)}", "potstill cache lists it")


def _compiler_cache() -> Finding:
    folder = os.environ.get(COMPILER_CACHE)
    if folder is None:
        return Finding("compiled code", "among temporary files", f"{COMPILER_CACHE} changes it")
    return Finding("compiled code", folder, "", lacking=not _can_write(Path(folder)))


def _can_write(folder: Path) -> bool:
    """Whether a file can be made in a folder, or in the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


# --- what else is there --------------------------------------------------------------------------------------------


def _hub() -> Finding:
    reason = hub.unreached(HUB_SECONDS)
    if reason is None:
        return Finding("Hugging Face", "reached", "datasets by name, hf://user/name")
    return Finding("Hugging Face", "not reached", f"{reason}", lacking=True)


def _packages() -> Iterator[Finding]:
    for name, purpose in PACKAGES.items():
        try:
            yield Finding(name, metadata.version(name), purpose)
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", purpose, lacking=True)
