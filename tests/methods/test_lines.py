"""Straight paths: their ends are the experts', their points between lie where each tensor had moved to."""

import pytest
import torch

from potstill.errors import PotstillError
from potstill.methods import lines
from potstill.runs import run
from potstill.runs.api import run_to_completion
from tests.conftest import tiny


def test_points_lie_on_the_line_as_far_along_as_the_tensor_had_moved(tmp_path):
    job = run.open_run(tiny("mct", mct={"start_epochs": (0, 2)}), tmp_path)
    run_to_completion(run.train_experts(job))
    ctx, experts = job.context(0), job.experts
    sizes = list(ctx.problem.network.sizes)
    first, last = lines.segment(ctx, 0, 0, 4)
    assert torch.equal(first, experts.snapshot(0, 0)[0])
    assert torch.allclose(last, experts.last(0)[0], atol=1e-6)
    found = lines.segment(ctx, 0, 1, 3)
    steps = [experts.snapshot(0, e + 1)[0] - experts.snapshot(0, e)[0] for e in range(4)]
    for epoch, point in ((1, found[0]), (3, found[1])):
        for number, part in enumerate(point.split(sizes)):
            a, b = first.split(sizes)[number], last.split(sizes)[number]
            norms = [float(step.split(sizes)[number].norm()) for step in steps]
            share = sum(norms[:epoch]) / max(sum(norms), 1e-12)
            assert torch.allclose(part, a + share * (b - a), atol=1e-5)


def test_start_epochs_beyond_the_experts_are_refused_before_any_work(tmp_path):
    for method in ("mct", "selmatch"):
        job = run.open_run(tiny(method, **{method: {"start_epochs": (0, 4), "expert_epochs": 2}}), tmp_path / method)
        with pytest.raises(PotstillError, match="snapshots of epochs 0 to 5 are needed"):
            run_to_completion(run.train_experts(job))
