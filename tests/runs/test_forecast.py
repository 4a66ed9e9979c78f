"""What a run would cost: the counts behind the seconds."""

from dataclasses import replace

import pytest

from potstill.methods import METHODS, trajectory
from potstill.runs import forecast, run
from tests.conftest import tiny


def test_sets_evaluated_are_those_of_distilling_by_every_step_size_tried():
    assert forecast.sets_evaluated(tiny()) == 2 + 1
    assert forecast.sets_evaluated(tiny(evaluation={"step_size": "chosen"})) == (2 + 1) * 6
    assert forecast.sets_evaluated(tiny(evaluations=0)) == 0
    assert forecast.sets_evaluated(tiny(evaluations=0, evaluation={"step_size": "chosen"})) == 6  # the last set alone


@pytest.mark.parametrize("method", [*((name,) for name in METHODS), ("datm", "rat-bptt")])
def test_every_method_can_be_forecast(method):
    early = {"start_epochs": (0, 2)}  # of experts of four epochs
    own = {name: early for name in method if hasattr(METHODS[name].settings(), "start_epochs")}
    given = tiny(method, **own)
    found, needed = forecast.forecast(given), given.methods[0].needs(given.stages[0]) is not None
    assert found["seconds"]["evaluation"] > 0
    assert (found["seconds"]["experts"] > 0) == needed
    assert (found["disk_bytes"]["experts"] > 0) == needed
    assert found["memory_bytes"] > 0


def test_distilling_costs_its_inner_steps_and_what_measuring_adds(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "timed", lambda work, device: (work(), 1.0)[1])  # each iteration timed takes a second
    given = tiny(datm={"iterations": 30, "inner_steps": 10})
    job = run.Run(given, tmp_path, tmp_path)
    assert forecast.distilling(job, 0).seconds == pytest.approx(30 * 10 / 2)  # two inner steps are timed
    stage = replace(given.stages[0], start_epochs=None)
    open_job = run.Run(replace(given, stages=(stage,)), tmp_path, tmp_path)
    probe = METHODS["datm"].probe(stage)
    assert probe.measuring > 0
    assert forecast.distilling(open_job, 0).seconds > (30 + probe.measuring) * 10 / 2
    assert probe.vectors == trajectory.steps_of(stage) + 1


def test_networks_see_all_pictures_of_a_set_and_controls_one_a_slot(tmp_path, monkeypatch):
    """A network's epoch is one step of the whole set, which takes as many seconds as it has images."""
    monkeypatch.setattr(forecast, "_training_step", lambda run, batch, images_in_all, rho=0.0: batch)
    given = tiny("rat-bptt", **{"rat-bptt": {"pictures": 2}}, evaluation={"full_seeds": 0, "epochs": 3, "seeds": 5})
    job = run.Run(given, tmp_path, tmp_path)
    assert forecast._choosing(job) == forecast.sets_evaluated(given) * 2 * 3 * 40
    assert forecast._evaluating(job) == 5 * 3 * (40 + 2 * 10)


def test_a_pool_is_kept_in_the_checkpoint(tmp_path):
    job = run.Run(tiny(("datm", "rat-bptt")), tmp_path, tmp_path)
    assert forecast.distilling(job, 0).memory_bytes == 0
    assert "inner steps plain, in float32" in forecast.distilling(job, 0).engine


@pytest.mark.parametrize(("method", "timed"), [("dsa", 1), ("cafe", 5), ("at-bptt", 5), ("dm", 1)])
def test_the_mean_of_those_iterations_counts_that_differ_from_the_first(method, timed, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "timed", lambda work, device: (work(), 60.0)[1])
    ran: list[int] = []
    own = METHODS[method]
    remembered = [{}]

    def loss(ctx, settings, variables, memory, labels, iteration):
        assert remembered[-1].keys() <= memory.keys(), "an iteration remembers the one before"
        ran.append(iteration)
        outcome = own.loss(ctx, settings, variables, memory, labels, iteration)
        remembered.append(outcome.memory)
        return outcome

    monkeypatch.setitem(METHODS, method, replace(own, loss=loss))
    given = tiny((method,))
    cost = forecast.distilling(run.Run(given, tmp_path, tmp_path), 0)
    assert cost.each == pytest.approx(60 / timed)
    assert len(ran) == timed
    assert (0 in ran) == (method in ("at-bptt", "dm"))
