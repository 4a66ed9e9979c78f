"""What --window auto measures, chooses and keeps."""

from dataclasses import replace

import pytest
import torch

from potstill import config, files
from potstill.config import WindowConfig
from potstill.errors import Diverged, PotstillError
from potstill.report import run_page
from potstill.runs import api, loop, measure
from potstill.runs import run as stages
from tests.conftest import tiny


def auto(**changes):
    base = tiny(
        ipc=2,
        window={"mode": "auto"},
        expert={"epochs": 7, "count": 2},
        distil={"iterations": 16, "inner_steps": 4, "lr_images": 100.0},
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = stages.open_run(auto(), tmp_path_factory.mktemp("auto"))
    seen = []
    for stage in (stages.train_experts, stages.distil, stages.evaluate):
        results = api.exhaust(stage(run), seen.append)
    return run, seen, results


def row(start, *losses):
    """A survey's row of one span: step sizes 1 and 2, inner steps 5 and 10."""
    keys = [(a, n) for a in (1.0, 2.0) for n in (5, 10)]
    entries = [
        {"step_size": a, "inner_steps": n, "expert_epochs": 2, "loss": loss}
        for (a, n), loss in zip(keys, losses, strict=True)
    ]
    return {"start": start, "losses": entries}


def test_a_run_finds_its_window_and_goes_on_from_the_winner(finished):
    run, seen, results = finished
    record = files.read_json(run.folder / "difficulty.json")
    found = record["settings"]
    assert len(record["survey"]) == len(measure.starts(run.config, run.trajectories)) == 5
    assert found["window"]["mode"] == "given"
    assert 0 <= found["window"]["start"] < found["window"]["initial"] <= found["window"]["stop"] <= 6
    assert results["config"]["window"] == found["window"]
    assert results["config"]["distil"]["lr_images"] == found["distil"]["lr_images"] > 0
    lines = stages.read_metrics(run.folder / "metrics.jsonl")
    raced = max(entry["iteration"] for entry in record["rounds"] if entry["band"] == record["winner"])
    assert [line["iteration"] for line in lines] == list(range(raced, 16))
    assert all(found["window"]["start"] <= line["start_epoch"] < found["window"]["stop"] for line in lines)
    assert any(event["stage"] == "difficulty" for event in seen)


def test_the_report_explains_the_choice(finished):
    run, _, _ = finished
    text = run_page.write(run.folder).read_text()
    assert "How the difficulty was found" in text
    assert text.count("<figcaption>") == 8


def test_an_interrupted_search_ends_in_the_same_set(finished, tmp_path):
    run, _, _ = finished
    begun = stages.Run(run.config, tmp_path, run.experts_folder)
    stages.open_run(run.config, tmp_path, run.experts_folder)
    events = stages.distil(begun)
    for event in events:
        if event["stage"] == "difficulty" and "round" in event.get("doing", ""):
            break
    next(events)
    events.close()
    for leftover in ("checkpoint.safetensors",):  # as after a kill that left no checkpoint
        (tmp_path / leftover).unlink()
    distilled = api.exhaust(stages.distil(begun))
    from potstill.data.distilled import load

    assert distilled.images.equal(load(run.folder).images)


def test_settle_takes_the_step_size_that_explains_most():
    surveyed = [row(0, 0.9, 0.7, 0.7, 0.3), row(5, 0.9, 0.8, 0.8, 0.5)]
    found, limit = measure.settle(tiny(), surveyed)
    assert (found.distil.step_size, found.distil.inner_steps, found.distil.expert_epochs) == (2.0, 10, 2)
    assert limit == 5


def test_settle_takes_half_of_the_steps_where_they_do_as_well():
    found, _ = measure.settle(tiny(), [row(0, 0.9, 0.31, 0.32, 3.0)])
    assert (found.distil.step_size, found.distil.inner_steps) == (2.0, 5)


def test_parts_that_cannot_be_followed_are_left_out():
    surveyed = [row(0, 0.9, 0.9, 0.9, 0.5), row(4, 0.9, 0.9, 0.9, 0.9), row(9, 1.2, 1.3, 1.4, 2.0)]
    assert measure.settle(tiny(), surveyed)[1] == 4


def test_bands_cover_what_can_be_followed_from_easy_to_hard(finished):
    run, _, _ = finished
    long = replace(run.config, distil=replace(run.config.distil, iterations=1000))
    found = measure.bands(5, long, run.trajectories)
    assert [(band.start, band.stop) for band in found] == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]
    assert [(band.start, band.stop) for band in measure.bands(0, long, run.trajectories)] == [(0, 1)]
    few = measure.bands(5, run.config, run.trajectories)  # a short run has no iterations to spare
    assert [(band.start, band.stop) for band in few] == [(0, 2), (2, 4), (4, 6)]


def test_a_band_that_diverges_loses(finished, tmp_path, monkeypatch):
    run, _, _ = finished
    iterate = loop.iterate

    def diverging(config, problem, experts, derivatives, state):
        if config.window.start > 0:
            raise Diverged("distilling diverged 20 times in a row")
        yield from iterate(config, problem, experts, derivatives, state)

    monkeypatch.setattr(measure.loop, "iterate", diverging)
    begun = stages.open_run(run.config, tmp_path, run.experts_folder)
    api.exhaust(stages.distil(begun))
    assert begun.settled.window.start == 0


def test_settings_that_were_chosen_are_left_alone(finished):
    run, _, _ = finished
    chosen = replace(run.config, distil=replace(run.config.distil, step_size=0.07, expert_epochs=1, lr_logits=3.0))
    state = loop.begin(chosen, run.problem, run.trajectories)
    race = measure.Race(chosen, run.problem, run.trajectories, difficulty_derivatives(run), None, run.folder)
    surveyed = [{"start": 0, "losses": measure.survey(race, state, 0)}]
    settled, _ = measure.settle(chosen, surveyed)
    assert (settled.distil.step_size, settled.distil.expert_epochs) == (0.07, 1)
    assert measure.scale_free(replace(chosen, window=WindowConfig(0, 2)), race, state)["lr_logits"] == 3.0


def test_step_sizes_are_tried_around_that_of_the_experts_at_hand(finished):
    run, _, _ = finished
    others = replace(run.config, expert=replace(run.config.expert, step_size=7.0))  # not what the store holds
    state = loop.begin(run.config, run.problem, run.trajectories)
    race = measure.Race(others, run.problem, run.trajectories, difficulty_derivatives(run), None, run.folder)
    tried = {entry["step_size"] for entry in measure.survey(race, state, 0)}
    assert tried == {factor * run.config.expert.step_size for factor in measure.STEP_SIZES}


def test_what_was_given_is_kept_though_it_equals_its_default():
    measured = tiny(window=WindowConfig(mode="auto"), distil={"cooldown": 0.0, "lr_images": 100.0})
    kept = measure.keep(measured, ["lr_images", "cooldown", "iterations"])
    assert kept.distil.given == ("cooldown", "lr_images")
    assert measure._cooldown(measured) == measure.COOLDOWN
    assert measure._cooldown(kept) == 0.0
    assert [measure._chosen(config, "lr_images") for config in (measured, kept)] == [False, True]


def test_the_window_opens_from_its_half():
    assert measure.opening(WindowConfig(4, 10), 200) == WindowConfig(4, 10, 7, 100)
    assert measure.opening(WindowConfig(3, 4), 200).initial == 4


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_scale_free_rates_move_by_the_same_part(finished, scale):
    """Whatever the size of the gradients, a first step moves images and logits by the same part of their size."""
    run, _, _ = finished
    given = replace(run.config, window=WindowConfig(0, 2))
    state = loop.begin(given, run.problem, run.trajectories)

    class Scaled:
        gradient = staticmethod(difficulty_derivatives(run).gradient)

        @staticmethod
        def directional(*tensors):
            return tuple(scale * tensor for tensor in difficulty_derivatives(run).directional(*tensors))

    one_step = replace(given, distil=replace(given.distil, inner_steps=1))
    race = measure.Race(one_step, run.problem, run.trajectories, Scaled(), None, run.folder)
    rates = measure.scale_free(one_step, race, state)
    _, gradients, *_ = loop.differentiate(one_step, run.problem, run.trajectories, Scaled(), state)
    moved = rates["lr_images"] * gradients[0].square().mean().sqrt() / state.images.square().mean().sqrt()
    assert 0.3 * measure.MOVES["images"] < float(moved) < 3 * measure.MOVES["images"]


def difficulty_derivatives(run):
    from potstill.adjoint.derivatives import plain
    from potstill.networks.flat import label_loss

    return plain(label_loss(run.problem.network))


def test_rates_alone_can_be_found(finished, tmp_path):
    run, _, _ = finished
    given = replace(run.config, window=WindowConfig(1, 3), distil=replace(run.config.distil, rates="auto"))
    only = stages.open_run(given, tmp_path, run.experts_folder)
    api.exhaust(stages.distil(only))
    assert only.settled.window == WindowConfig(1, 3)
    assert only.settled.distil.lr_images != given.distil.lr_images
    assert only.settled.distil.rates == "given"


def test_short_experts_are_refused():
    with pytest.raises(PotstillError, match="raise --expert.epochs to 5"):
        list(stages.experts.train(auto(expert=config.ExpertConfig(epochs=3)), None, None))


def test_a_span_that_leaves_nothing_to_choose_is_refused():
    for span, words in ((7, "leave no start to choose"), (0, "at least 1 epoch")):
        given = auto(distil=replace(auto().distil, expert_epochs=span))
        with pytest.raises(PotstillError, match=words):
            list(stages.experts.train(given, None, None))


def test_the_forecast_counts_what_the_search_did(finished):
    """Iterations of bands that drop out, and sets that are judged, as the finished search recorded them."""
    run, _, _ = finished
    record = measure.found_in(run.folder)
    iterations, judged = measure.effort(run.config)
    winner = [entry for entry in record["rounds"] if entry["band"] == record["winner"]]
    ran = sum(len(entry["losses"]) for entry in record["rounds"])
    walked = measure.STARTS * len(measure.STEP_SIZES) * measure.GRADIENT
    assert judged == len(record["rounds"])
    assert iterations == pytest.approx(walked + ran - sum(len(entry["losses"]) for entry in winner))
    assert measure.effort(config.PRESETS["digits-ipc1"]) == (0.0, 0)


def test_experts_without_every_snapshot_are_refused(tmp_path):
    given = replace(auto(), window=WindowConfig(0, 2))
    run = stages.open_run(given, tmp_path / "a")
    api.exhaust(stages.train_experts(run))
    with pytest.raises(PotstillError, match="does not keep that of epoch 4"):
        _ = stages.Run(auto(), tmp_path / "b", run.experts_folder).trajectories


def test_data_without_a_preset_is_measured():
    found = config.default("some/folder", 3)
    assert (found.window.mode, found.distil.rates) == ("auto", "auto")
    assert measure.wanted(found)
    assert not measure.wanted(config.default("digits", 3))


def test_torch_is_seeded_apart(finished):
    """The search draws from counters alone: nothing else on the machine changes it."""
    run, _, _ = finished
    state = loop.begin(run.config, run.problem, run.trajectories)
    race = measure.Race(run.config, run.problem, run.trajectories, difficulty_derivatives(run), None, run.folder)
    torch.manual_seed(1)
    first = measure.survey(race, state, 2)
    torch.manual_seed(2)
    assert measure.survey(race, state, 2) == first
