"""One contract for every method of the dict: what each must keep so that the loop, the report and the user can rely on
it.

A new method is held to it without a line here; ``SMALL`` makes the costly ones cheap.
"""

import dataclasses
import itertools
import json
from dataclasses import replace

import pytest
import torch

import potstill
from potstill import files, ranks
from potstill.data.distilled import decode
from potstill.methods import METHODS
from potstill.runs import loop, run, settings, stage, state
from potstill.runs.api import run_to_completion
from tests.conftest import tiny

ITERATIONS = 8
SMALL = {
    "batch_size": 20, "inner_steps": 4, "expert_epochs": 2, "step_size": 0.05, "start_epochs": (0, 2),
    "real_batch": 200, "unroll": 30, "window": 12, "inner_step_size": 0.01, "lr_logits": 5.0, "lr_step_size": 1e-5,
    "radius": 2, "hessian_rank": 16, "hessian_change": 100.0, "solve_steps": 4, "pool_steps": 3, "cooldown": 0.0,
    "cross_entropy": 0.0,  # whose weight follows the networks' training
    "temperature": 1.0, "memory_rate": 0.05,  # windows as the policy places them that was published
}  # fmt: skip
LEARNERS = [name for name, method in METHODS.items() if method.loss is not None]


def small(name, **more):
    """Settings of a method whose whole run takes seconds."""
    fields = {item.name for item in dataclasses.fields(METHODS[name].settings)}
    values = {key: value for key, value in {**SMALL, "iterations": ITERATIONS}.items() if key in fields}
    changes = {name: {**values, **more}} if fields else {}
    return tiny(name, ipc=2, expert={"keep_all": True}, **changes)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Experts that every method can use."""
    folder = tmp_path_factory.mktemp("experts")
    job = run.open_run(small("datm"), folder)
    run_to_completion(run.train_experts(job))
    return folder / "experts"


def begun(name, experts, tmp_path, **more):
    """A method's context, its settings with nothing open, and its first state."""
    job = run.open_run(small(name, **more), tmp_path / "run", experts)
    method, ctx, own = METHODS[name], job.context(0), job.settings.stages[0]
    begin = method.begin(ctx, own, None)
    if method.open_fields(own):
        own, _ = run_to_completion(method.measure(ctx, own, begin, None, {}, lambda: None))
    return method, ctx, own, state.begin(method, own, begin)


def states(method, ctx, own, first, count=ITERATIONS):
    return [s for s, _ in itertools.islice(loop.iterate(method, ctx, own, first), count)]


def same(one, other):
    """Whether the values are; on a GPU a checkpoint may bring small ones to it that a method keeps on the CPU."""
    return one.keys() == other.keys() and all(torch.equal(one[name].cpu(), other[name].cpu()) for name in one)


@pytest.mark.parametrize("name", LEARNERS)
def test_it_is_finite_repeatable_and_resumes_bit_for_bit(name, experts, tmp_path):
    given = begun(name, experts, tmp_path)
    found = states(*given)
    assert all(bool(tensor.isfinite().all()) for tensor in found[-1].variables.values())
    assert any(not torch.equal(found[-1].variables[key], given[3].variables[key]) for key in given[3].variables)
    assert same(found[-1].variables, states(*given)[-1].variables)
    found[3].save(tmp_path / "checkpoint.safetensors", {})
    read, _ = state.load_state(tmp_path / "checkpoint.safetensors", given[1].problem.device)
    resumed = states(*given[:3], read)[-1]
    assert same(found[-1].variables, resumed.variables)
    assert same(found[-1].memory, resumed.memory)
    assert all(same(found[-1].moments[key], resumed.moments[key]) for key in resumed.moments)


@pytest.mark.parametrize("name", LEARNERS)
def test_its_own_loss_falls(name, experts, tmp_path):
    method, ctx, own, first = begun(name, experts, tmp_path, iterations=30)
    last = states(method, ctx, own, first, 30)[-1]

    def loss(of):  # over the same draws, before and after
        outcomes = [method.loss(ctx, own, of.variables, first.memory, of.labels, k) for k in range(ITERATIONS)]
        return sum(float(outcome.loss.detach()) for outcome in outcomes)

    assert loss(last) < 0.98 * loss(first)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_gradients_of_two_processes_add_up_to_that_of_one(name, experts, tmp_path):
    method, ctx, own, first = begun(name, experts, tmp_path)
    whole, gradients = loop.differentiate(method, ctx, own, first)
    shares = [loop.differentiate(method, replace(ctx, rank=rank, world=2), own, first) for rank in (0, 1)]
    assert float(sum(o.loss.detach() for o, _ in shares)) == pytest.approx(float(whole.loss.detach()), rel=1e-4)
    for key, gradient in gradients.items():
        total = sum(g[key] for _, g in shares)
        assert float((total - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-12, key
    assert all(same(whole.memory, outcome.memory) for outcome, _ in shares)


@pytest.mark.parametrize("name", ["datm", "mct", "rat-bptt", "at-bptt", "at-bptt-plus"])
def test_students_train_on_the_pictures_of_a_slot_as_they_decode(name, experts, tmp_path):
    method, ctx, own, first = begun(name, experts, tmp_path, pictures=2)
    found, gradients = loop.differentiate(method, ctx, own, first)
    slots = first.variables["images"].clone().requires_grad_()
    decoded = decode(slots, 2)
    apart = {key: x.repeat_interleave(4, 0) if x.dim() == 2 else x for key, x in first.variables.items()}
    of_decoded = replace(
        first, variables={**apart, "images": decoded.detach()}, labels=first.labels.repeat_interleave(4)
    )
    alike, expected = loop.differentiate(method, ctx, replace(own, pictures=1), of_decoded)
    assert float(found.loss.detach()) == pytest.approx(float(alike.loss.detach()), rel=1e-6)
    (back,) = torch.autograd.grad(decoded, slots, expected.pop("images"))
    assert torch.allclose(gradients.pop("images"), back, rtol=1e-4, atol=1e-7)
    for key, gradient in gradients.items():
        summed = expected[key].unflatten(0, (-1, 4)).sum(1) if gradient.dim() == 2 else expected[key]
        assert torch.allclose(gradient, summed, rtol=1e-4, atol=1e-7), key


@pytest.mark.parametrize("name", ["datm", "rat-bptt", "at-bptt"])
def test_several_processes_decide_by_the_whole_loss(name, experts, tmp_path, monkeypatch):
    method, ctx, own, first = begun(name, experts, tmp_path, threshold=1.5)
    for factor, accepted in ((1e-3, True), (1e3, False)):
        monkeypatch.setattr(ranks, "total", lambda value, factor=factor: factor * value)
        outcome, _ = loop.differentiate(method, replace(ctx, rank=0, world=2), own, first)
        assert outcome.accept == accepted


@pytest.mark.parametrize("name", METHODS)
def test_its_settings_survive_json_and_its_cells_build(name):
    given = small(name)
    assert settings.from_dict(json.loads(json.dumps(settings.as_dict(given)))) == given
    for cell in {**METHODS[name].published, **METHODS[name].tuned}:
        built = settings.defaults("mine", None, (name,), settings.name_of(cell))
        assert built.ipc == cell[1]
        settings.check(built)
    refining = settings.defaults("mine", 1, ("random" if name != "random" else "herding", name)).stages[1]
    assert isinstance(refining, METHODS[name].settings)


@pytest.mark.parametrize("name", METHODS)
def test_its_help_names_every_field_and_no_other_method(name, capsys):
    from potstill.cli import main

    assert main.main(["run", "--method", name, "--help"]) == 0
    out = capsys.readouterr().out
    for item in dataclasses.fields(METHODS[name].settings):
        assert f"--{name}.{item.name.replace('_', '-')}"[:40] in out.replace("--" + name + ".no-", "--" + name + ".")
    for other in METHODS:
        assert other == name or f"--{other}." not in out


@pytest.mark.parametrize("name", METHODS)
def test_its_set_is_made_loads_and_trains(name, experts, tmp_path):
    job = run.open_run(small(name), tmp_path / "run", experts)
    distilled = run_to_completion(stage.distil(job))
    read = potstill.load(tmp_path / "run")
    assert read.images.equal(distilled.images)
    assert read.labels.bincount().tolist() == [2] * 10
    network = potstill.train(read, epochs=3, device="cpu")
    assert network(read.transform(job.problem.dataset.test.images[:5])).shape == (5, 10)
    if METHODS[name].loss is None:
        assert torch.equal(job.problem.train.labels[read.rows], read.labels)
        assert torch.equal(job.problem.train.images[read.rows], read.images)
    assert files.read_json(tmp_path / "run" / "config.json")["config"]["method"] == [name]
