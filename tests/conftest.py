"""Shared by all tests: a cache of their own, and tiny problems."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

os.environ["POTSTILL_CACHE"] = tempfile.mkdtemp(prefix="potstill-tests-")  # before anything reads it
os.environ["OMP_NUM_THREADS"] = "1"  # for what the tests start; the networks here are too small for more

import torch

from potstill import config
from potstill.networks import functional, norm

torch.set_num_threads(1)

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler, g++ or clang++"
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """CIFAR-10 and CIFAR-100, where the project's data folder is at hand."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the folder shared/data with CIFAR beside the checkout")
    return REAL_DATA


def tiny(**changes) -> config.Config:
    """A configuration whose whole run takes seconds."""
    base = config.PRESETS["digits-ipc1"]
    base = replace(
        base,
        network=config.NetworkConfig(width=8, depth=2),
        expert=config.ExpertConfig(count=2, epochs=4, batch_size=128, step_size=0.05),
        window=config.WindowConfig(0, 2),
        distil=replace(base.distil, iterations=6, inner_steps=4, evaluations=2, lr_images=10.0),
        evaluation=config.EvaluationConfig(protocol="quick", epochs=3, full_epochs=1),
    )
    for name, value in changes.items():
        base = replace(base, **{name: replace(getattr(base, name), **value) if isinstance(value, dict) else value})
    return base


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
