"""Backpropagation through training: its students, its gradient, and what happens to a student that leads astray."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from potstill.adjoint import engine
from potstill.adjoint.derivatives import eager
from potstill.adjoint.inner import Adam, Sgd
from potstill.adjoint.unroll import unroll, unroll_with_moments
from potstill.data import augment
from potstill.errors import PotstillError
from potstill.methods import METHODS, at_bptt, bptt, pool, trajectory
from potstill.methods.method import Experts, Start
from potstill.networks import flat
from potstill.networks.losses import loss_for, soft_cross_entropy
from potstill.runs import loop, run, settings, state
from potstill.runs.api import run_to_completion
from tests.conftest import tiny

METHOD = METHODS["rat-bptt"]
REFINING = {
    **METHOD.refining, "iterations": 12, "window": 10, "unroll": 40, "real_batch": 200, "inner_step_size": 0.05,
    "lr_images": 0.5, "lr_labels": 0.1, "lr_step_size": 1e-5, "cooldown": 0.0,
}  # fmt: skip
PAPER = {
    "iterations": 12, "window": 4, "unroll": 9, "real_batch": 200, "batch_size": 20, "lr_images": 1e-2,
    "lr_labels": 1e-3, "lr_step_size": 0.0, "inner_step_size": 1e-3,
}  # fmt: skip


def setting(tmp_path, form, seed=0, **more):
    """A context, settings and first state from random real images with soft labels."""
    asked = tiny("rat-bptt", ipc=2, seed=seed, **{"rat-bptt": {**form, **more}})
    ctx, own = run.open_run(asked, tmp_path).context(0), asked.stages[0]
    rows = torch.cat([(ctx.problem.train.labels == label).nonzero().flatten()[:2] for label in range(10)])
    labels = ctx.problem.train.labels[rows]
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(3)) + 3 * torch.eye(10)[labels]
    start = Start(ctx.problem.train.images[rows], logits, "logits", labels, 0.05)
    return ctx, own, state.begin(METHOD, own, bptt.begin(ctx, own, start))


def of(given, memory, iteration):
    ctx, own, first = given
    return bptt.real_loss(ctx, own, first.variables, memory, first.labels, iteration)


def test_a_student_that_does_not_move_explains_as_much_as_guessing(tmp_path):
    ctx, own, first = setting(tmp_path, REFINING, threshold=2.0)
    still = replace(first, variables={**first.variables, "step_size": torch.zeros(())})
    for k in range(4):
        found = of((ctx, own, still), first.memory, k)
        assert float(found.loss) == pytest.approx(1.0, abs=0.05)
        assert torch.equal(found.memory[f"student.{k}"], ctx.fresh("student network", k))


@pytest.mark.parametrize("most", [10, 11, 15, 19, 40, 67])
@pytest.mark.parametrize("seed", range(3))
def test_students_continue_up_to_the_longest_unroll_and_are_followed_by_fresh_ones(tmp_path, most, seed, monkeypatch):
    given = setting(tmp_path, REFINING, seed, unroll=most)
    window, size, memory = 10, 8, given[2].memory
    walked = []

    def counted(theta, *, images, steps, last, **_):
        walked.append((len(steps), last))
        return theta + 0 * images.sum()

    monkeypatch.setattr(bptt, "unroll", counted)
    taken, begun = [], [0] * size
    for k in range(8 * size):
        number, before = k % size, memory
        found = of(given, before, k)
        memory, (steps, last) = found.memory, walked.pop()
        taken.append(found.metrics["steps_taken"])
        assert last == window
        assert taken[-1] == int(before[pool.STEPS][number]) + steps
        assert all(memory[f"student.{i}"] is before[f"student.{i}"] for i in range(size) if i != number)
        if int(before[pool.STEPS][number]) == 0:
            begun[number] += 1
        else:
            assert steps == window
    assert window <= min(taken)
    assert most - window < max(taken) <= most
    assert min(begun) > 1
    assert max(taken[:size]) - min(taken[:size]) >= (most - window) // 2  # spread from the start


@pytest.mark.parametrize("form", [REFINING, PAPER])
def test_a_student_is_the_network_that_plain_training_gives(tmp_path, form):
    ctx, own, first = given = setting(tmp_path, form)
    k = 2
    found = of(given, first.memory, k)
    draws = ctx.draws("student", k)
    theta, taken, lead = bptt._student(ctx, own, first.memory, k, draws)
    assert taken == 0
    assert lead > 0
    targets, kind = first.variables[own.labels], bptt.kind(own)
    steps = trajectory.draw_steps(ctx, own.batch_size, lead + own.window, 20, draws)
    step_size = bptt.step_size_of(ctx, own, first.variables)
    expected = unroll(
        theta, first.variables["images"], targets, step_size, steps, loss_for(ctx.problem.network, kind),
        inner=Adam() if own.inner == "adam" else Sgd(), adjoint="direct",
    ).detach()  # fmt: skip
    assert found.metrics["steps_taken"] == len(steps)
    images, truth = bptt.real_batch(ctx, own, draws)
    loss = soft_cross_entropy(ctx.problem.network(expected, images), truth) / len(images) / math.log(10)
    assert float(found.loss.detach()) == pytest.approx(float(loss), abs=1e-4)
    if own.pool:
        assert torch.allclose(found.memory["student.2"], expected, atol=1e-5)


def test_the_window_may_see_the_set_as_it_is(tmp_path):
    given = ctx, own, first = setting(tmp_path, REFINING, augment_window=False)
    found, draws, images = of(given, first.memory, 2), ctx.draws("student", 2), first.variables["images"]
    theta, taken, lead = bptt._student(ctx, own, first.memory, 2, draws)
    steps = bptt._steps(ctx, own, lead, len(images), draws)
    seen = [augment.apply(images[step.rows], step.drawing) - images[step.rows] for step in steps]
    assert [bool(change.any()) for change in seen[lead:]] == [False] * own.window
    assert sum(bool(change.any()) for change in seen[:lead]) > lead / 2
    before = unroll(
        theta, images, first.variables["logits"], first.variables["step_size"], steps[:lead],
        loss_for(ctx.problem.network, "logits"), adjoint="direct",
    ).detach()  # fmt: skip
    assert (taken, found.metrics["steps_taken"]) == (0, lead + own.window)
    assert torch.allclose(found.memory["student.2"], before, atol=1e-5)  # it goes on from before the window
    assert of(given, found.memory, 2).metrics["steps_taken"] == lead + 2 * own.window
    with pytest.raises(PotstillError, match="augment_window False: is not of at-bptt"):
        METHODS["at-bptt"].check(at_bptt.AtBptt(augment_window=False), "at-bptt", ctx.augment)


SHORT = {**REFINING, "unroll": 20}
BY_POLICY = {"unroll": 12, "window": 10, "radius": 1, "real_batch": 50}


@pytest.mark.parametrize(("name", "form"), [("rat-bptt", REFINING), ("rat-bptt", PAPER), ("at-bptt", BY_POLICY)])
def test_students_may_begin_as_the_experts_did(tmp_path, name, form):
    method, asked = METHODS[name], tiny(name, ipc=1, **{name: {**form, "student_epochs": 1}})
    fresh = replace(asked.stages[0], student_epochs=None)
    assert run.expert_needs(asked) == Experts(range(2))
    assert run.expert_needs(replace(asked, stages=(fresh,))) is None
    job = run.open_run(asked, tmp_path)
    run_to_completion(run.train_experts(job))
    ctx, own = job.context(0), asked.stages[0]
    early = [ctx.experts.snapshot(expert, epoch)[0] for expert in range(2) for epoch in range(2)]
    drawn = [[torch.equal(bptt.beginning(ctx, own, k), theta) for theta in early] for k in range(24)]
    assert [sum(row) for row in drawn] == [1] * 24
    assert all(any(row[number] for row in drawn) for number in range(4))
    first = state.begin(method, own, method.begin(ctx, own, None))
    losses = [
        float(method.loss(ctx, one, first.variables, first.memory, first.labels, 1).loss) for one in (own, own, fresh)
    ]
    assert losses[0] == losses[1] != losses[2]


CLEAN = {"augment_window": False}


@pytest.mark.parametrize(
    "form", [REFINING, SHORT, {**REFINING, **CLEAN}, {**SHORT, **CLEAN}, PAPER, {**PAPER, "place": "end"}]
)
def test_a_forecast_counts_the_steps_that_are_taken(tmp_path, form, monkeypatch):
    ctx, own, first = setting(tmp_path, form, iterations=48, threshold=None)
    walked, memory = [], first.memory

    def counted(theta, *, images, steps, last=None, **_):
        walked.append(len(steps) - (last or 0))
        return theta + 0 * images.sum()

    monkeypatch.setattr(bptt, "unroll", counted)
    for k in range(48):
        memory = of((ctx, own, first), memory, k).memory
    assert sum(walked) == pytest.approx(48 * bptt._leading(own) + bptt._warm_up(own), rel=0.25)


def test_a_student_goes_on_from_before_the_narrowest_window(tmp_path):
    given = setting(tmp_path, REFINING, **CLEAN, window=1, unroll=9, threshold=None)
    memory = given[2].memory
    for k in range(16):
        memory = of(given, memory, k).memory
    assert int(memory[pool.STEPS][0]) == 2


def test_narrower_students_take_longer_steps_of_adam(tmp_path):
    ctx, own, _ = setting(tmp_path, PAPER)
    width = ctx.problem.network_config.width
    assert float(bptt.step_size_of(ctx, replace(own, inner_step_size=None), {})) == pytest.approx(1e-3 * 128 / width)
    assert float(bptt.step_size_of(ctx, replace(own, inner_step_size=0.002), {})) == pytest.approx(0.002)
    learned = torch.tensor(0.3)
    assert bptt.step_size_of(ctx, own, {"step_size": learned}) is learned


def doubled(ctx):
    """The same in float64."""
    problem = ctx.problem
    network = flat.flat_network(problem.network_config, problem.dataset.shape, 10, precision=torch.float64)
    double = replace(problem, network=network)
    double.__dict__["train"] = replace(problem.train, images=problem.train.images.double())
    return replace(ctx, problem=double)


@pytest.mark.parametrize("form", [REFINING, PAPER])
def test_it_differentiates_through_the_steps_of_the_window(tmp_path, form, monkeypatch):
    """Float64, against the graph of all steps of the window, with Adam's moments carried into it."""
    ctx, own, first = setting(tmp_path, form)
    ctx = doubled(ctx)
    first = replace(first, variables={name: x.double() for name, x in first.variables.items()})
    monkeypatch.setattr(type(ctx), "fresh", lambda self, *at: self.problem.network.fresh(7).double())
    ctx = replace(ctx, derivatives=eager(
        loss_for(ctx.problem.network, bptt.kind(own))))  # fmt: skip
    _, swept = loop.differentiate(METHOD, ctx, own, first)
    lead = bptt._student(ctx, own, first.memory, 0, ctx.draws("student", 0))[2]

    def by_the_graph(theta, images, targets, step_size, steps, loss, *, inner, **_):
        leaves, how, moments = (images, targets, step_size), {"inner": inner, "adjoint": "direct"}, None
        if lead:
            theta, moments = unroll_with_moments(theta, *leaves, steps[:lead], loss, **how)
            theta, moments = theta.detach(), moments.detach()
        return unroll(theta, *leaves, steps[lead:], loss, moments=moments, **how)

    monkeypatch.setattr(bptt, "unroll", by_the_graph)
    _, oracle = loop.differentiate(METHOD, ctx, own, first)
    for name in oracle:
        assert torch.allclose(swept[name], oracle[name], rtol=1e-7, atol=1e-12), name


def test_the_mean_loss_in_chunks_is_that_of_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "at_once", lambda *network: 5)
    ctx = doubled(setting(tmp_path, REFINING)[0])
    theta = ctx.problem.network.fresh(1).double().requires_grad_()
    images, targets = ctx.problem.train.images[:23], torch.eye(10).double()[ctx.problem.train.labels[:23]]
    whole = soft_cross_entropy(ctx.problem.network(theta, images), targets) / 23
    chunks = bptt.mean_loss(ctx, theta, images, targets)
    assert float(chunks.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    (ours,), (oracle,) = (torch.autograd.grad(3 * loss, theta) for loss in (chunks, whole))
    assert torch.allclose(ours, oracle, rtol=1e-10, atol=1e-14)


def test_with_batch_norm_the_real_images_are_not_taken_apart(tmp_path, monkeypatch):
    ctx = setting(tmp_path, REFINING)[0]
    monkeypatch.setattr(engine, "SMALL_BATCH", 5)
    monkeypatch.setattr(engine, "CACHE_BATCH", {"cpu": 5})
    config = replace(ctx.problem.network_config, norm="batch")
    network = flat.flat_network(config, ctx.problem.dataset.shape, 10)
    ctx = replace(ctx, problem=replace(ctx.problem, network=network))
    theta, images = network.fresh(1), ctx.problem.train.images[:23]
    targets = torch.eye(10)[ctx.problem.train.labels[:23]]
    whole = soft_cross_entropy(network(theta, images), targets) / 23
    assert float(bptt.mean_loss(ctx, theta, images, targets)) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("limits", [{"threshold": 0.1}, {}])
def test_a_student_that_led_astray_is_reset(tmp_path, limits, monkeypatch):
    """The one loss in which student 2 takes part is above the threshold, or no number."""
    ctx, own, first = setting(tmp_path, REFINING, **limits)
    mean_loss, calls = bptt.mean_loss, itertools.count()

    def wild(*given):
        value = 0.001 if next(calls) != 2 else 0.5 if limits else float("nan")
        return mean_loss(*given) * value

    monkeypatch.setattr(bptt, "mean_loss", wild)
    states = [s for s, _ in itertools.islice(loop.iterate(METHOD, ctx, own, first), 4)]
    counted = "skipped" if limits else "rolled_back"
    assert [getattr(s, counted) for s in states] == [0, 0, 1, 1]
    assert [int(s.memory[pool.STEPS][2]) for s in states] == [0] * 4
    assert all(int(states[-1].memory[pool.STEPS][number]) > 0 for number in (0, 1, 3))
    stays = states[1] if limits else states[0]  # nothing is stepped on, or the step before is undone
    assert torch.equal(states[2].variables["images"], stays.variables["images"])


def test_windows_and_pools_that_cannot_be_are_refused():
    for changes, words in (
        ({"window": 9, "unroll": 8}, "window 9: is among the 8 steps"),
        ({"pool": 4, "inner": "adam"}, "pool 4: students that continue keep no moments of Adam"),
    ):
        with pytest.raises(PotstillError, match=words):
            settings.check(tiny("rat-bptt", **{"rat-bptt": changes}))


def test_noise_has_the_published_norm_and_raw_labels_begin_one_hot(tmp_path):
    asked = tiny("rat-bptt", ipc=2, **{"rat-bptt": PAPER})
    ctx = run.open_run(asked, tmp_path).context(0)
    begun = bptt.begin(ctx, asked.stages[0], None)
    assert torch.allclose(begun.variables["images"].flatten(1).norm(dim=1), torch.ones(20), atol=1e-5)
    assert torch.equal(begun.variables["raw"], torch.eye(10).repeat_interleave(2, 0))
    assert "step_size" not in begun.variables  # Adam's is no step size for SGD


def test_rates_that_are_not_given_are_relative(tmp_path):
    for form, names in ((PAPER, ("lr_images", "lr_labels")), (REFINING, bptt.MEASURED)):
        ctx, own, first = setting(tmp_path / own_name(form), {**form, **dict.fromkeys(bptt.MEASURED)})
        begun = bptt.begin(ctx, own, Start(first.variables["images"], first.variables[own.labels], own.labels,
                                           first.labels, 0.05))  # fmt: skip
        measuring = METHODS["rat-bptt"].measure(ctx, own, begun, None, {}, lambda: None)
        with pytest.raises(StopIteration) as end:
            next(measuring)
        found, arm = end.value.value
        assert arm is None
        assert all(getattr(found, name) > 0 for name in names)
        assert METHOD.open_fields(found) == []


def own_name(form):
    return form.get("inner", "adam")


@pytest.mark.parametrize("form", [PAPER, REFINING])
def test_a_moving_average_of_all_that_is_learned_is_the_result(tmp_path, form):
    """Its decay is that of so short a run."""
    ctx, own, first = setting(tmp_path, form, average=0.99)
    averaged, value = dict(first.variables), 1 - 1 / (0.4 * 12)
    for reached, _ in loop.iterate(METHOD, ctx, own, first):
        averaged = {name: value * averaged[name] + (1 - value) * x for name, x in reached.variables.items()}
        last = reached
    found = state.as_start(last, METHOD, own)
    assert torch.allclose(found.images, averaged["images"], atol=2e-6)
    assert torch.allclose(found.targets, averaged[own.labels], atol=2e-6)
    assert float((found.images - last.variables["images"]).abs().max()) > 5e-5
