"""Shared by all tests: a cache of their own, and tiny problems."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

os.environ["POTSTILL_CACHE"] = tempfile.mkdtemp(prefix="potstill-tests-")  # before anything reads it
os.environ["OMP_NUM_THREADS"] = "1"  # for what the tests start; the networks here are too small for more

import torch

from potstill.methods import METHODS
from potstill.networks import functional, norm
from potstill.runs.settings import Settings, configure

torch.set_num_threads(1)

KEPT = Path(__file__).parent / "kept" / "0.1.0"  # runs that version 0.1.0 made
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler, g++ or clang++"
)


@pytest.fixture(autouse=True)
def the_same_draws():
    """Tensors that a test draws without a generator of its own: else one in hundreds of runs fails by rounding."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """CIFAR-10 and CIFAR-100, where the project's data folder is at hand."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the folder shared/data with CIFAR beside the checkout")
    return REAL_DATA


def tiny(method=("datm",), **changes) -> Settings:
    """Settings whose whole run takes seconds; changes as for ``configure``, merged into the small ones."""
    small = {
        "network": {"width": 8, "depth": 2},
        "expert": {"count": 2, "epochs": 4, "batch_size": 128, "step_size": 0.05},
        "evaluation": {"protocol": "quick", "epochs": 3, "full_epochs": 1},
        "evaluations": 2,
        "datm": {"iterations": 6, "inner_steps": 4, "lr_images": 10.0, "start_epochs": (0, 2), "labels": "learned"},
    }
    method = (method,) if isinstance(method, str) else tuple(method)
    for name in [name for name in small if name.replace("_", "-") in METHODS and name not in method]:
        del small[name]
    for name, value in changes.items():
        small[name] = {**small.get(name, {}), **value} if isinstance(value, dict) else value
    ipc, preset = small.pop("ipc", 1), small.pop("preset", None)
    dataset = small.pop("dataset", "digits")
    return configure(dataset, ipc, preset, {"method": method, **small})


@pytest.fixture
def as_compiled(monkeypatch):
    """What is compiled, run as it is; instance norm by its formula, for PyTorch's has no tangent in this layout."""
    monkeypatch.setattr(functional, "instance_norm", norm.in_one_pass)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def arrays(tmp_path):
    """A writer of small .npz datasets: arrays(images, labels, **more) → path."""

    def write(images, labels, **more) -> str:
        path = tmp_path / "data.npz"
        np.savez(path, images=np.asarray(images), labels=np.asarray(labels), **more)
        return str(path)

    return write
