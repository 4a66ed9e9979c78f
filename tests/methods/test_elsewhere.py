"""Every method on a device that is not the CPU, as far as that can be seen without one."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from potstill.methods import METHODS, convex, rcig
from potstill.runs import forecast, loop, record, run, stage, state
from potstill.runs.api import run_to_completion
from tests.conftest import tiny
from tests.devices import ELSEWHERE, pretended

ITERATIONS = 1
SMALL = {
    "iterations": ITERATIONS, "batch_size": 10, "real_batch": 10, "inner_steps": 2, "solve_steps": 2, "unroll": 5,
    "window": 3, "radius": 1, "hessian_rank": 2, "network_steps": 2, "inner_epochs": 1, "frequencies": 8,
    "expert_epochs": 2, "start_epochs": (0, 2), "step_size": 0.05, "lr_logits": 5.0, "lr_step_size": 1e-5,
}  # fmt: skip


def elsewhere(*names, **changes):
    """Settings of methods whose whole run takes as few operations as can be."""
    own = {name: {item.name: SMALL[item.name] for item in dataclasses.fields(METHODS[name].settings)
                  if item.name in SMALL} for name in names}  # fmt: skip
    changes = {"device": str(ELSEWHERE), "expert": {"keep_all": True}, "evaluations": 1, "snapshots": 0, **changes}
    return tiny(names, **{name: given for name, given in own.items() if given}, **changes)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Experts that every method can use, trained elsewhere."""
    folder = tmp_path_factory.mktemp("experts")
    with pretended():
        run_to_completion(run.train_experts(run.open_run(elsewhere("datm"), folder)))
    return folder / "experts"


@pytest.mark.parametrize("name", METHODS)
def test_it_distils_and_resumes(name, experts, tmp_path):
    with pretended():
        job = run.open_run(elsewhere(name), tmp_path / "run", experts)
        assert job.problem.train.images.device == ELSEWHERE
        distilled = run_to_completion(stage.distil(job))
        assert bool(distilled.images.isfinite().all())
        if METHODS[name].loss is None:
            return
        method, ctx = METHODS[name], job.context(0)
        own = replace(job.settings.stages[0], iterations=2 * ITERATIONS)
        read, _ = state.load_state(tmp_path / "run" / "checkpoint.safetensors", ELSEWHERE)
        (*_, (last, _)) = loop.iterate(method, ctx, own, read)
        assert last.variables["images"].device == ELSEWHERE


def test_step_sizes_of_rcig_are_reviewed_after_a_checkpoint():
    with pretended():  # a checkpoint brings floats to the device, and leaves counts where they are
        memory = {
            rcig.RUNS: torch.full((2, 3), convex.REVIEW).to(ELSEWHERE),
            rcig.STEP_SIZES: torch.ones(2).to(ELSEWHERE),
        }
        found = rcig.counted(memory, torch.ones(2, 3, dtype=torch.int64))[rcig.STEP_SIZES]
    assert found.tolist() == pytest.approx([0.9, 0.9])


def test_a_run_of_two_stages_is_measured_and_evaluated(tmp_path):
    datm = {"iterations": 8, "inner_steps": 2, "labels": "learned"}  # its start epochs and rates are found
    rat = {"iterations": 2, "unroll": 8, "window": 2, "pool": 2, "real_batch": 40}
    given = tiny(
        ("datm", "rat-bptt"), device=str(ELSEWHERE), network={"norm": "batch"}, expert={"epochs": 5},
        datm={**datm, "start_epochs": None, "lr_images": None}, **{"rat-bptt": rat},
    )  # fmt: skip
    with pretended():
        job = run.open_run(given, tmp_path / "run")
        run_to_completion(run.train_experts(job))
        results = run_to_completion(record.evaluate(job, run_to_completion(stage.distil(job))))
    assert results["environment"]["device"] == str(ELSEWHERE)


def test_derivatives_along_the_layers_stay_there(as_compiled, experts, tmp_path):
    with pretended():
        job = run.open_run(elsewhere("datm", compile="yes"), tmp_path / "run", experts)
        assert job.context(0).derivatives.compiled
        assert bool(run_to_completion(stage.distil(job)).images.isfinite().all())


@pytest.mark.parametrize("name", ["datm", "ncfm", "kip"])
def test_it_is_forecast(name):
    with pretended():
        found = forecast.forecast(elsewhere(name))
    assert found["seconds"]["distilling"] > 0
