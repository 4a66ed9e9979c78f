"""Tasks: their addresses, and what they leave in the store."""

import gc
import json
import weakref
from dataclasses import replace

import pytest

from potstill import files
from potstill.data.distilled import FILE
from potstill.errors import Diverged
from potstill.evaluation import controls
from potstill.networks.architectures import NetworkConfig
from potstill.runs import stage
from potstill.runs.api import run_to_completion
from potstill.studies import execute, task
from potstill.training import trajectories
from tests.conftest import tiny

DM = {"iterations": 2, "real_batch": 20}


def set_of(**changes):
    settings = tiny("dm", **{"dm": DM, "snapshots": 0, **changes})
    return task.set_task(settings, task.expert_tasks(settings, 0))


def followed(**changes):
    settings = tiny("datm", **{"datm": {"iterations": 2}, "snapshots": 0, **changes})
    return task.set_task(settings, task.expert_tasks(settings, 0))


def figure_of(made, number=0, **network):
    config = NetworkConfig(**{"width": 8, "depth": 2, **network})
    return task.FigureTask(made.settings, config, made, number)


def test_an_address_changes_with_all_that_the_set_depends_on():
    keys = {
        set_of().key, set_of(ipc=2).key, set_of(seed=1).key, set_of(dm={**DM, "iterations": 3}).key,
        set_of(network={"width": 4, "depth": 2}).key, followed().key, followed(expert={"epochs": 5}).key,
        followed(expert={"count": 3}).key,
    }  # fmt: skip
    assert len(keys) == 8
    assert set_of(evaluation={"step_size": "chosen"}).key not in keys
    assert set_of(evaluation={"epochs": 400}).key not in keys, "sets are chosen by networks of as many"
    assert set_of().key == set_of(device="cpu", checkpoint_seconds=1.0).key, "which changes no number"
    assert set_of().key == set_of(expert={"epochs": 5}).key, "for it needs no experts"


def test_an_address_of_a_figure_changes_with_set_network_protocol_and_number():
    one = figure_of(set_of())
    keys = {
        one.key, figure_of(set_of(), 1).key, figure_of(set_of(seed=1)).key, figure_of(set_of(), width=4).key,
        figure_of(set_of(evaluation={"epochs": 4})).key, replace(one, made_from=None).key,
    }  # fmt: skip
    assert len(keys) == 6


def test_sets_of_several_seeds_share_their_experts():
    first, second = followed(), followed(seed=1)
    assert [one.key for one in first.experts] == [one.key for one in second.experts]
    assert first.needs == tuple(one.key for one in first.experts)
    assert len({one.key for one in first.experts}) == 2
    assert set_of().experts == ()


def test_a_task_is_done_once_and_leaves_its_record(tmp_path):
    made = set_of()
    shown = figure_of(made)
    for one in (made, shown):
        assert not one.done(tmp_path)
        assert run_to_completion(task.perform(one, tmp_path)) is None
        assert one.done(tmp_path)
    record = json.loads((task.set_folder(tmp_path, made.key) / task.SET).read_text())
    assert record["images"] == 10
    assert record["iterations"] == 2
    assert record["seconds"]["distilling"] > 0
    assert record["seconds"]["experts"] is None
    figure = json.loads(task.figure_path(tmp_path, shown.key).read_text())
    assert 0 <= figure["accuracy"] <= 1
    before = task.figure_path(tmp_path, shown.key).stat().st_mtime_ns
    run_to_completion(task.perform(shown, tmp_path))
    assert task.figure_path(tmp_path, shown.key).stat().st_mtime_ns == before


@pytest.mark.parametrize("damaged", ['{"accuracy"', "[]", "{}", '{"accuracy": 0.5, "checksum": "0"}'])
def test_a_damaged_figure_is_made_anew(tmp_path, damaged):
    made = set_of()
    one = figure_of(made)
    run_to_completion(execute.execute([made, one], tmp_path))
    known = task.accuracy_of(tmp_path, one.key)
    task.figure_path(tmp_path, one.key).write_text(damaged)
    assert not one.done(tmp_path)
    assert run_to_completion(execute.execute([made, one], tmp_path)) == {}
    assert task.accuracy_of(tmp_path, one.key) == known


def test_one_expert_is_trained_by_one_task(tmp_path):
    first, second = followed().experts
    assert run_to_completion(task.perform(second, tmp_path)) is None
    assert second.done(tmp_path)
    assert not first.done(tmp_path)


def test_what_another_process_does_is_left_to_it(tmp_path):
    made = followed()
    expert, shown = made.experts[0], figure_of(made)
    folder = task.experts_folder(tmp_path, expert.store_key)
    figure = task.figure_path(tmp_path, shown.key)
    locks = {
        expert: trajectories.lock_path(folder, 0), made: task.set_folder(tmp_path, made.key) / ".lock",
        shown: figure.with_suffix(".lock"),
    }  # fmt: skip
    for one, path in locks.items():
        path.parent.mkdir(parents=True)
        lock = files.take(path)
        assert run_to_completion(task.perform(one, tmp_path)) == task.HELD
        lock.release()
        assert not one.done(tmp_path)
    assert run_to_completion(task.perform(expert, tmp_path)) is None


def test_what_fails_is_told_and_tried_again(tmp_path, monkeypatch):
    one = figure_of(set_of())  # whose set is not there
    assert "there is no such file" in run_to_completion(task.perform(one, tmp_path))
    failures = run_to_completion(execute.execute([one], tmp_path))
    assert "there is no such file" in failures[one.key]
    assert task.why_failed(tmp_path, one.key) == failures[one.key]
    run_to_completion(task.perform(set_of(), tmp_path))
    assert run_to_completion(task.perform(one, tmp_path)) is None
    assert task.why_failed(tmp_path, one.key) is None


def test_what_diverges_leaves_the_last_set_and_says_so(tmp_path, monkeypatch):
    made = set_of()

    def diverging(run):
        yield from whole(run)
        raise Diverged("no step was taken.")

    whole = stage.distil
    monkeypatch.setattr(stage, "distil", diverging)
    assert run_to_completion(task.perform(made, tmp_path)) is None
    record = json.loads((task.set_folder(tmp_path, made.key) / task.SET).read_text())
    assert record["diverged"] == "no step was taken."
    assert (task.set_folder(tmp_path, made.key) / FILE).exists()


def test_the_full_set_is_a_figure_without_a_set(tmp_path):
    one = replace(figure_of(set_of()), made_from=None)
    assert one.needs == ()
    assert run_to_completion(task.perform(one, tmp_path)) is None
    assert files.read_json(task.figure_path(tmp_path, one.key))["accuracy"] > 0.1


def test_a_figure_equals_that_of_a_run(tmp_path):
    made = set_of()
    run_to_completion(task.perform(made, tmp_path))
    one = figure_of(made)
    run_to_completion(task.perform(one, tmp_path))
    who = task.evaluator_of(made.settings, one.network)
    from potstill.data.distilled import load
    from potstill.evaluation.evaluator import training_set_of

    found = training_set_of(load(task.set_folder(tmp_path, made.key)), who.config, who.problem.device)
    record = run_to_completion(controls.evaluate(who, found, 1, None, 0))
    assert (
        record["accuracy"]["distilled"]["per_seed"][0]
        == files.read_json(task.figure_path(tmp_path, one.key))["accuracy"]
    )


def test_what_tasks_worked_on_can_be_freed():
    made = set_of()
    before = weakref.ref(task.problem_of(made.settings))
    assert task.problem_of(made.settings) is before()
    task.forget()
    gc.collect()
    assert before() is None
