"""What must hold on a GPU.  ``recipes/gpu_check.py`` runs these there, and rehearses them on the CPU."""

import os
import warnings
from dataclasses import replace
from itertools import islice

import pytest
import torch

import potstill
from potstill.adjoint.derivatives import compiled, eager
from potstill.methods import METHODS
from potstill.networks.losses import label_loss
from potstill.runs import loop, run, state
from potstill.runs.api import run_to_completion
from tests.adjoint.test_unroll import BOTH, LEAVES, Setting, relative
from tests.methods.test_elsewhere import elsewhere

DEVICE = os.environ.get("POTSTILL_CUDA_TESTS", "cuda" if torch.cuda.is_available() else "")
pytestmark = pytest.mark.skipif(not DEVICE, reason="needs a CUDA GPU; POTSTILL_CUDA_TESTS=cpu rehearses it")
LEARNERS = [name for name, method in METHODS.items() if method.loss is not None]
EXACT = ("colour", "crop", "cutout", "flip")  # PyTorch adds up the gradient of the other two in any order on CUDA


def placed(setting):
    """A setting of the unroll's tests on the device."""
    for name in ("images", "logits", "alpha"):
        setattr(setting, name, getattr(setting, name).detach().to(DEVICE).requires_grad_())
    setting.theta, setting.target = setting.theta.to(DEVICE), setting.target.to(DEVICE)
    setting.steps = [
        replace(step, rows=step.rows.to(DEVICE), drawing=step.drawing.to(DEVICE)) for step in setting.steps
    ]
    return setting


@BOTH
def test_exact_equals_direct_in_float64(inner):
    setting = placed(Setting(inner=inner))
    setting.theta.requires_grad_()
    direct = setting.gradients(LEAVES, adjoint="direct")
    assert direct[0].device.type == torch.device(DEVICE).type
    assert max(relative(setting.gradients(LEAVES), direct)) < 1e-10


def test_it_computes_what_the_cpu_does():
    here, there = Setting().gradients(), placed(Setting()).gradients()
    assert max(relative([tensor.cpu() for tensor in there], here)) < 1e-10


@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_equals_plain(graphs):
    warnings.filterwarnings("error", message="compiling failed")  # which would run plainly, and prove nothing
    setting = placed(Setting(batch=2, steps=3))
    derivatives = compiled(setting.loss, graphs)
    expected = setting.gradients(derivatives=eager(setting.loss))
    for _ in range(4):  # graphs are recorded at the second call, and replayed from the third on
        assert max(relative(setting.gradients(derivatives=derivatives), expected)) < 1e-10


@pytest.mark.parametrize("fast", [False, True])
def test_low_precision_stays_near_float32(fast):
    warnings.filterwarnings("error", message="compiling failed")
    reference, found = (placed(Setting(dtype=torch.float32, batch=2, steps=3)) for _ in range(2))
    found.network = replace(found.network, precision=torch.bfloat16)
    found.loss = label_loss(found.network)
    low = found.gradients(derivatives=compiled(found.loss) if fast else eager(found.loss))
    for one, full in zip(low, reference.gradients(), strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), full.flatten(), 0) > 0.99


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    run_to_completion(run.train_experts(run.open_run(elsewhere("datm", device=DEVICE), folder)))
    return folder / "experts"


@pytest.mark.parametrize("name", METHODS)
def test_one_iteration_is_finite(name, experts, tmp_path):
    job = run.open_run(elsewhere(name, device=DEVICE), tmp_path / "run", experts)
    method, ctx, own = METHODS[name], job.context(0), job.settings.stages[0]
    begun = method.begin(ctx, own, None)
    if method.loss is None:
        assert bool(begun.variables["images"].isfinite().all())
        return
    if method.open_fields(own):
        own, _ = run_to_completion(method.measure(ctx, own, begun, None, {}, lambda: None))
    (reached, metrics), *_ = loop.iterate(method, ctx, own, state.begin(method, own, begun))
    assert reached.rolled_back == 0
    assert metrics["loss"] == pytest.approx(metrics["loss"])  # not NaN
    assert all(bool(tensor.isfinite().all()) for tensor in reached.variables.values())
    assert reached.variables["images"].device.type == torch.device(DEVICE).type


@pytest.mark.parametrize("operations", [EXACT, ("scale", "rotate")])
@pytest.mark.parametrize("name", ["datm", "dm", "rcig"])
def test_it_resumes(name, operations, experts, tmp_path):
    """Bit for bit, except where the sum of an augmentation's gradient has no order."""
    job = run.open_run(elsewhere(name, device=DEVICE), tmp_path / "run", experts)
    method, ctx = METHODS[name], replace(job.context(0), augment=operations)
    own = replace(job.settings.stages[0], iterations=6)
    found = [s for s, _ in loop.iterate(method, ctx, own, state.begin(method, own, method.begin(ctx, own, None)))]
    found[2].save(tmp_path / "checkpoint.safetensors", {})
    read, _ = state.load_state(tmp_path / "checkpoint.safetensors", torch.device(DEVICE))
    (*_, (resumed, _)) = islice(loop.iterate(method, ctx, own, read), 3)
    for key, value in found[-1].variables.items():
        if operations == EXACT:
            assert torch.equal(resumed.variables[key], value), key
        else:
            assert torch.allclose(resumed.variables[key], value, rtol=1e-3, atol=1e-4), key


def test_a_whole_run_is_better_than_guessing(tmp_path):
    distilled = potstill.distill(
        "digits", 1, out=tmp_path / "run", device=DEVICE, network={"width": 16}, expert={"count": 2, "epochs": 15},
        evaluations=1, evaluation={"epochs": 50}, datm={"iterations": 20}, progress=False,
    )  # fmt: skip
    found = potstill.evaluate(distilled, "digits", device=DEVICE, progress=False, epochs=100, seeds=2, controls=False)
    assert found["distilled"]["mean"] > 0.2
