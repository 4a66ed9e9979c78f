"""What DATM measures, chooses and keeps."""

from dataclasses import replace

import pytest
import torch

import potstill
from potstill import files
from potstill.errors import Diverged, PotstillError
from potstill.methods import METHODS, measure, rates, trajectory
from potstill.methods.start_epochs import StartEpochs
from potstill.report import run_page
from potstill.runs import loop, record, run, settings, stage
from potstill.runs.api import run_to_completion
from tests.conftest import tiny

OPEN = dict.fromkeys(measure.FIELDS)


def open_settings(**changes):
    return tiny(ipc=2, expert={"epochs": 7}, datm={**OPEN, "iterations": 16, **changes}, compile="no")


@pytest.fixture(scope="module", autouse=True)
def short_walks():
    """Four inner steps where nothing says how many."""
    patch = pytest.MonkeyPatch()
    patch.setattr(trajectory, "INNER_STEPS", 4)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short_walks):
    job = run.open_run(open_settings(), tmp_path_factory.mktemp("open"))
    seen = []
    run_to_completion(run.train_experts(job), seen.append)
    distilled = run_to_completion(stage.distil(job), seen.append)
    return job, seen, run_to_completion(record.evaluate(job, distilled), seen.append)


def measured(job):
    """What the run measured, and the settings it settled on."""
    found = record.history(job.folder)[1]["measured"]
    return found["datm"], settings.settled(job.settings, found).stages[0]


def begun(job, own):
    return trajectory.begin(job.context(0), own, None)


def row(start, *losses):
    """A row of the grid of one span: step sizes 1 and 2, inner steps 5 and 10."""
    keys = [(a, n) for a in (1.0, 2.0) for n in (5, 10)]
    entries = [
        {"step_size": a, "inner_steps": n, "expert_epochs": 2, "loss": loss}
        for (a, n), loss in zip(keys, losses, strict=True)
    ]
    return {"start": start, "losses": entries}


def test_a_run_finds_its_start_epochs_and_continues_from_the_winner(finished):
    job, seen, results = finished
    found, own = measured(job)
    assert len(found["grid"]) == len(measure.grid_epochs(job.context(0), job.settings.stages[0])) == 5
    assert METHODS["datm"].open_fields(own) == []
    first, stop = own.start_epochs
    assert 0 <= first < own.opening[0] <= stop <= 6
    assert results["config"]["stages"]["datm"] == files.plain(found["settings"])
    assert own.lr_images > 0
    lines = record.read_metrics(job.folder / "metrics.jsonl")
    ran = max(entry["iteration"] for entry in found["rungs"] if entry["arm"] == found["winner"])
    assert [line["iteration"] for line in lines] == list(range(ran, 16))
    assert all(first <= line["start_epoch"] < stop for line in lines)
    assert any(event["stage"] == "difficulty" for event in seen)


def test_the_report_explains_the_choice(finished):
    text = run_page.write(finished[0].folder).read_text()
    assert "How the difficulty was found" in text
    assert "Successive halving" in text


def test_a_killed_search_continues_and_ends_in_the_same_set(finished, tmp_path, monkeypatch):
    job, _, _ = finished
    again = run.open_run(job.settings, tmp_path, job.experts_folder)
    events = stage.distil(again)
    for event in events:
        if event["stage"] == "difficulty" and "rung" in event.get("doing", ""):
            break
    checkpoint = tmp_path / "checkpoint.safetensors"
    left = checkpoint.read_bytes()
    next(events)
    events.close()
    checkpoint.write_bytes(left)  # as after a kill
    monkeypatch.delattr(measure, "grid")  # which is not measured again
    distilled = run_to_completion(stage.distil(again))
    assert distilled.images.equal(potstill.load(job.folder).images)


def test_settle_takes_the_step_size_that_explains_most():
    found, limit = measure.settle(trajectory.Datm(), [row(0, 0.9, 0.7, 0.7, 0.3), row(5, 0.9, 0.8, 0.8, 0.5)])
    assert (found.step_size, found.inner_steps, found.expert_epochs) == (2.0, 10, 2)
    assert limit == 5


def test_settle_takes_half_of_the_steps_where_they_do_as_well():
    found, _ = measure.settle(trajectory.Datm(), [row(0, 0.9, 0.31, 0.32, 3.0)])
    assert (found.step_size, found.inner_steps) == (2.0, 5)


def test_parts_that_cannot_be_matched_are_left_out():
    rows = [row(0, 0.9, 0.9, 0.9, 0.5), row(4, 0.9, 0.9, 0.9, 0.9), row(9, 1.2, 1.3, 1.4, 2.0)]
    assert measure.settle(trajectory.Datm(), rows)[1] == 4


def test_arms_cover_what_can_be_matched_from_easy_to_hard():
    long, short = (trajectory.Datm(iterations=count, expert_epochs=1) for count in (1000, 16))
    found = measure.arms_of(5, long, 7)
    assert [(arm.first, arm.stop) for arm in found] == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]
    assert [(arm.first, arm.stop) for arm in measure.arms_of(0, long, 7)] == [(0, 1)]
    few = measure.arms_of(5, short, 7)  # a short run has no iterations to spare
    assert [(arm.first, arm.stop) for arm in few] == [(0, 2), (2, 4), (4, 6)]


def test_an_arm_that_diverges_loses(finished, tmp_path, monkeypatch):
    job, _, _ = finished
    iterate = loop.iterate

    def diverging(method, ctx, own, state):
        if own.start_epochs[0] > 0:
            raise Diverged("diverged 20 times in a row")
        yield from iterate(method, ctx, own, state)

    monkeypatch.setattr(loop, "iterate", diverging)
    again = run.open_run(job.settings, tmp_path, job.experts_folder)
    run_to_completion(stage.distil(again))
    assert measured(again)[1].start_epochs[0] == 0


def test_settings_that_were_given_are_left_alone(finished):
    job, _, _ = finished
    own = replace(job.settings.stages[0], step_size=0.07, expert_epochs=1, lr_logits=3.0)
    ctx = job.context(0)
    rows = [{"start": 0, "losses": measure.grid(ctx, own, begun(job, own), 0)}]
    settled, _ = measure.settle(own, rows)
    assert (settled.step_size, settled.expert_epochs) == (0.07, 1)
    found = measure.missing_rates(ctx, replace(settled, start_epochs=(0, 2)), begun(job, own))
    assert found["lr_logits"] == 3.0
    assert found["lr_images"] > 0


def test_step_sizes_are_tried_around_that_of_the_experts_available(finished):
    job, _, _ = finished
    own = job.settings.stages[0]
    tried = {entry["step_size"] for entry in measure.grid(job.context(0), own, begun(job, own), 0)}
    assert tried == {factor * job.settings.expert.step_size for factor in measure.STEP_SIZES}


def test_the_start_epochs_open_from_their_half():
    own = trajectory.Datm(iterations=200)
    assert measure._opened(own, StartEpochs(4, 10)).opening == (7, 100)
    assert measure._opened(own, StartEpochs(3, 4)).opening == (4, 100)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_scale_free_rates_move_by_the_same_fraction(finished, scale):
    """Whatever the size of the gradients, a first step moves images and logits by the same fraction of their size."""
    job, _, _ = finished
    own, ctx = replace(job.settings.stages[0], start_epochs=(0, 2)), job.context(0)
    start = begun(job, own)

    def scaled(*given):
        found = trajectory.matching_loss(*given)
        return replace(found, loss=scale * found.loss)

    found = rates.scale_free(ctx, own, start, scaled, ["images", "logits"])
    leaves = {name: x.detach().requires_grad_() for name, x in start.variables.items()}
    gradient = torch.autograd.grad(scaled(ctx, own, leaves, {}, start.labels, 0).loss, leaves["images"])[0]
    moved = found["images"] * gradient.square().mean().sqrt() / leaves["images"].square().mean().sqrt()
    assert 0.3 * rates.RELATIVE_STEP["images"] < float(moved.detach()) < 3 * rates.RELATIVE_STEP["images"]


def test_rates_alone_can_be_found(finished, tmp_path):
    job, _, _ = finished
    given = open_settings(start_epochs=(1, 3))
    only = run.open_run(given, tmp_path, job.experts_folder)
    run_to_completion(stage.distil(only))
    _, own = measured(only)
    assert own.start_epochs == (1, 3)
    assert own.lr_images > 0
    assert METHODS["datm"].open_fields(own) == []


def test_short_experts_are_refused(tmp_path):
    job = run.open_run(tiny(expert={"epochs": 3}, datm=OPEN), tmp_path)
    run_to_completion(run.train_experts(job))
    with pytest.raises(PotstillError, match="raise --expert.epochs to 5"):
        run_to_completion(stage.distil(job))


def test_the_effort_is_what_the_search_did(finished):
    """Iterations of arms that drop out, and sets that are evaluated, as the finished search recorded them."""
    job, _, _ = finished
    found, _ = measured(job)
    iterations, evaluated = measure.effort(job.settings.stages[0])
    winner = [entry for entry in found["rungs"] if entry["arm"] == found["winner"]]
    ran = sum(len(entry["losses"]) for entry in found["rungs"])
    walked = measure.GRID_EPOCHS * len(measure.STEP_SIZES) * measure.GRADIENT
    assert evaluated == len(found["rungs"])
    assert iterations == pytest.approx(walked + ran - sum(len(entry["losses"]) for entry in winner))
    assert measure.effort(tiny().stages[0]) == (0.0, 0)


def test_experts_without_every_snapshot_are_refused(tmp_path):
    job = run.open_run(tiny(expert={"epochs": 7}), tmp_path / "a")
    run_to_completion(run.train_experts(job))
    with pytest.raises(PotstillError, match="does not keep the snapshot of epoch 4"):
        _ = run.Run(open_settings(), tmp_path / "b", job.experts_folder).experts


def test_the_search_draws_from_counters_alone(finished):
    job, _, _ = finished
    own, ctx = job.settings.stages[0], job.context(0)
    torch.manual_seed(1)
    first = measure.grid(ctx, own, begun(job, own), 2)
    torch.manual_seed(2)
    assert measure.grid(ctx, own, begun(job, own), 2) == first
