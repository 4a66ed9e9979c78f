"""The digits' set at one image per class, bit for bit: what a change of the structure must not move.

A sum of floats depends on the order in which a processor adds, so the hash is kept by processor; on others the test is
skipped, and says for which one to add a line.
"""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from potstill.runs.api import run_to_completion
from potstill.runs.run import open_run, train_experts
from potstill.runs.settings import configure
from potstill.runs.stage import distil

GOLDEN = {  # processor, what PyTorch uses of it, PyTorch → SHA-256 of images and logits (CPU, one thread, float32)
    "GenuineIntel 6 167 AVX512 2.13.0+cpu": "13f29c1b887c809d361a14b166f8bf20addbdbb2bc07bb82fa3d8d1b5eb137cb",
}


def processor():
    """Vendor, family and model where Linux tells them."""
    path = Path("/proc/cpuinfo")
    lines = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", path.read_text(), re.M)) if path.exists() else {}
    return " ".join(lines.get(name, "?") for name in ("vendor_id", "cpu family", "model"))


def test_the_set_is_the_same_bit_for_bit(tmp_path):
    machine = f"{processor()} {torch.backends.cpu.get_cpu_capability()} {torch.__version__}"
    if machine not in GOLDEN:
        pytest.skip(f"no hash is known for {machine}")
    settings = configure(
        "digits", 1,
        changes={
            "device": "cpu", "precision": "float32", "compile": "no", "evaluations": 2,
            "expert": {"count": 4, "epochs": 10},
            "datm": {"iterations": 40, "start_epochs": (0, 3), "labels": "learned"},
        },
    )  # fmt: skip
    run = open_run(settings, tmp_path)
    run_to_completion(train_experts(run))
    distilled = run_to_completion(distil(run))
    digest = hashlib.sha256()
    for tensor in (distilled.images, distilled.targets):
        digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == GOLDEN[machine]
