"""Whole runs on disk: from nothing to results, killed and continued, and what may not change in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import potstill
from potstill import config, files
from potstill.config import WindowConfig
from potstill.errors import PotstillError
from potstill.report import run_page
from potstill.runs import api
from potstill.runs import run as stages
from tests.conftest import tiny


def go(config, folder, experts=None):
    run = stages.open_run(config, folder, experts)
    api.exhaust(stages.train_experts(run))
    api.exhaust(stages.distil(run))
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = go(tiny(), folder)
    return run, api.exhaust(stages.evaluate(run))


def test_results_keep_the_contract(finished):
    run, results = finished
    assert files.plain(results) == files.read_json(run.folder / "results.json")
    assert set(results) >= {
        "dataset", "ipc", "method", "network", "protocol", "accuracy", "recovered", "images", "compression", "seconds",
        "peak_memory_bytes", "config", "environment", "version",
    }  # fmt: skip
    assert set(results["accuracy"]) == {"distilled", "random", "random_soft", "full"}
    for figure in results["accuracy"].values():
        assert set(figure) == {"mean", "std", "ci95", "per_seed"}
        assert all(0 <= value <= 1 for value in figure["per_seed"])
    assert set(results["seconds"]) == {"experts", "distill", "evaluate"}
    assert all(seconds > 0 for seconds in results["seconds"].values())
    assert results["images"] == 10
    assert results["compression"] == pytest.approx(10 / 1438)
    assert results["environment"]["torch"] == torch.__version__


def test_metrics_have_a_line_an_iteration(finished):
    run, _ = finished
    lines = stages.read_metrics(run.folder / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == list(range(6))
    assert all(line["start_epoch"] in (0, 1) for line in lines)


def test_sets_are_judged_by_networks_that_train_no_longer_than_the_final_ones():
    assert stages.selector(tiny(evaluation={"epochs": None})).epochs == 300
    assert stages.selector(tiny(evaluation={"epochs": 67})).epochs == 67
    assert stages.selector(tiny(evaluation={"protocol": "paper"})).selection == "test"


def test_the_kept_set_is_the_best_judged(finished):
    run, results = finished
    judged = results["judged"]
    assert [j["iteration"] for j in judged] == [0, 3, 6]
    assert all(j["on"] == "validation" for j in judged)
    kept = potstill.load(run.folder).provenance
    assert kept["chosen_with_accuracy"] == max(j["accuracy"] for j in judged)


def test_a_finished_run_given_again_does_nothing_new(finished):
    run, results = finished
    before = (run.folder / "distilled.safetensors").read_bytes()
    again = go(tiny(), run.folder)
    assert (run.folder / "distilled.safetensors").read_bytes() == before
    found = api.exhaust(stages.evaluate(again))
    assert found["accuracy"] == results["accuracy"]


def test_the_step_size_can_be_chosen_on_validation_images_and_given_back(finished, tmp_path):
    first, results = finished
    folder, given = tmp_path / "run", first.config
    shutil.copytree(first.folder, folder)
    assert results["step_sizes"] == []
    chosen = replace(given, evaluation=replace(given.evaluation, step_size="chosen"))
    events = []
    run = stages.open_run(chosen, folder)
    distilled = api.exhaust(stages.distil(run), events.append)
    tried = distilled.provenance["step_sizes"]
    assert [entry["step_size"] / results["step_size"] for entry in tried] == pytest.approx([1, 0.5, 0.25, 0.125])
    best = max(tried, key=lambda entry: entry["accuracy"])
    assert distilled.step_size == best["step_size"]
    assert sum("training with step size" in event.get("doing", "") for event in events) == 4
    assert api.exhaust(stages.evaluate(run))["step_sizes"] == tried
    assert "chosen on validation images" in run_page.write(folder).read_text()
    assert api.exhaust(stages.distil(run)).provenance["step_sizes"] == tried  # and not tried again
    assert api.exhaust(stages.distil(stages.open_run(given, folder))).step_size == results["step_size"]


def test_another_configuration_in_the_same_folder_is_refused(finished):
    run, _ = finished
    with pytest.raises(PotstillError, match=r"differs in distil\.lr_images: 10\.0, not 11\.0; ipc|ipc: 1, not 2"):
        stages.open_run(tiny(ipc=2, distil={"lr_images": 11.0}), run.folder)
    with pytest.raises(PotstillError, match=r"evaluation\.selection: 'validation', not 'test'"):
        stages.open_run(tiny(evaluation={"protocol": "paper"}), run.folder)
    stages.open_run(tiny(evaluation={"seeds": 3}, device="cpu"), run.folder)  # bears on no number of the set
    stages.open_run(tiny(), run.folder)


def test_experts_can_be_shared(finished, tmp_path):
    run, _ = finished
    other = stages.open_run(tiny(ipc=2, seed=5), tmp_path, run.folder / "experts")
    assert api.exhaust(stages.train_experts(other)).folder == run.folder / "experts"
    distilled = api.exhaust(stages.distil(other))
    assert len(distilled) == 20
    assert not (tmp_path / "experts").exists()


def test_a_window_beyond_the_shared_experts_is_refused(finished, tmp_path):
    run, _ = finished
    with pytest.raises(PotstillError, match=r"window \[0, 40\) \+ 2 epochs exceeds the 5 snapshots"):
        api.exhaust(stages.distil(stages.open_run(tiny(window={"stop": 40}), tmp_path, run.folder / "experts")))
    with pytest.raises(PotstillError, match="holds 2 finished experts, but 9 are asked for"):
        api.exhaust(stages.distil(stages.open_run(tiny(expert={"count": 9}), tmp_path / "b", run.folder / "experts")))


def test_paper_protocol_reports_the_best_test_evaluation(tmp_path, finished):
    run, _ = finished
    paper = stages.open_run(tiny(evaluation={"protocol": "paper", "seeds": 1}), tmp_path, run.folder / "experts")
    api.exhaust(stages.distil(paper))
    results = api.exhaust(stages.evaluate(paper))
    assert results["protocol"]["selection"] == "test"
    assert all(j["on"] == "test" for j in results["judged"])
    assert results["accuracy"]["distilled"]["mean"] == max(j["accuracy"] for j in results["judged"])


@pytest.mark.parametrize(("changes", "word"), [
    ({"ipc": 0}, "ipc 0"), ({"distil": {"iterations": 0}}, "distil.iterations 0"),
    ({"distil": {"step_size": 0.0}}, "distil.step_size"), ({"expert": {"count": 0}}, "expert.count 0"),
    ({"distil": {"micro_batch": 0}}, "distil.micro_batch 0"),
])  # fmt: skip
def test_values_that_no_stage_could_use(tmp_path, changes, word):
    with pytest.raises(PotstillError) as error:
        stages.open_run(tiny(**changes), tmp_path / "x")
    assert word in str(error.value)
    assert not (tmp_path / "x").exists()


def test_more_images_than_a_class_has(tmp_path):
    with pytest.raises(PotstillError, match=r"ipc 500: class '\d' has only \d+ training images .* lower --ipc"):
        api.exhaust(stages.train_experts(stages.open_run(tiny(ipc=500), tmp_path)))


def test_the_paper_protocol_takes_the_learned_step_size():
    evaluation = config.EvaluationConfig(protocol="paper", step_size="chosen")
    with pytest.raises(PotstillError, match="the protocol paper trains with the learned one"):
        stages.check(tiny(evaluation=vars(evaluation)))


def test_unknown_device():
    with pytest.raises(PotstillError, match=r"device 'cuda:9': not available here|device 'warp'"):
        stages.prepare(tiny(device="cuda:9"))
    with pytest.raises(PotstillError, match="device 'warp': not available here"):
        stages.prepare(tiny(device="warp"))


# --- killed and continued ------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
from potstill.runs import api, run
from potstill.training import experts
from tests.conftest import tiny
experts.CHECKPOINT_SECONDS = 0.0
config = tiny(distil={"iterations": 40, "evaluations": 4, "checkpoint_seconds": 0.0}, expert={"epochs": 12})
job = run.open_run(config, Path(sys.argv[1]))
for stage in (run.train_experts, run.distil):
    api.exhaust(stage(job), lambda event: print(event["stage"], event["done"], flush=True))
"""


def started(folder):
    root = Path(__file__).parents[2]  # of the package tests
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, cwd=root)


def kill_at(folder, line):
    """Start the run and kill it without warning once it has printed a line."""
    with started(folder) as process:
        for printed in process.stdout:
            if printed.strip() == line:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_and_continued_is_bit_for_bit_an_undisturbed_run(tmp_path):
    with started(tmp_path / "whole") as process:
        process.communicate()
    assert process.returncode == 0
    kill_at(tmp_path / "killed", "experts 17")  # inside the second expert
    kill_at(tmp_path / "killed", "distilling 25")
    assert 0 < len(stages.read_metrics(tmp_path / "killed" / "metrics.jsonl")) < 40
    with started(tmp_path / "killed") as process:
        printed = process.communicate()[0]
    assert "distilling 24" not in printed.splitlines()[-16:]  # it continued, and did not begin again
    for name in ("distilled.safetensors", "metrics.jsonl", "experts/expert-01.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    states = [files.load(tmp_path / k / "checkpoint.safetensors", "checkpoint")[0] for k in ("whole", "killed")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_last_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iter')
    assert [line["iteration"] for line in stages.read_metrics(path)] == [0, 1]
    stages._truncate_metrics(path, 1)
    assert path.read_text() == json.dumps({"iteration": 0}) + "\n"


def test_more_patience_does_not_change_the_set(tmp_path, finished):
    """The checkpoint interval, and how often a run sat down, bear on nothing."""
    run, _ = finished
    config = replace(tiny(), distil=replace(tiny().distil, checkpoint_seconds=0.0))
    other = go(config, tmp_path)
    assert torch.equal(potstill.load(other.folder).images, potstill.load(run.folder).images)


def test_mirrored_experts_are_refused_where_nothing_is_mirrored():
    with pytest.raises(PotstillError, match=r"distil\.mirror"):
        stages.check(tiny(distil={"mirror": True}))  # digits are not flipped
    stages.check(tiny(distil={"mirror": True}, augment=("flip",)))


def test_polishing_is_refused_where_no_student_lives_for_a_window():
    with pytest.raises(PotstillError, match=r"distil\.horizon 4: a student takes 5 inner steps"):
        stages.check(tiny(distil={"polish": 1, "horizon": 4, "inner_steps": 5}))
    stages.check(tiny(distil={"horizon": 4, "inner_steps": 5}))  # where nothing polishes it means nothing
    with pytest.raises(PotstillError, match=r"distil\.polish 3: .*among the 2 of"):
        stages.check(tiny(distil={"polish": 3, "iterations": 2}))


# --- interrupted, refused, mixed up --------------------------------------------------------------------------------


def test_an_interrupted_judging_is_done_when_the_run_goes_on(tmp_path, finished, monkeypatch):
    run, _ = finished
    whole = go(tiny(), tmp_path / "whole", run.folder / "experts")
    stopped = stages.open_run(tiny(), tmp_path / "stopped", run.folder / "experts")
    original, calls = stages.evaluator.validation_accuracy, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(stages.evaluator, "validation_accuracy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.exhaust(stages.distil(stopped))
    api.exhaust(stages.distil(stopped))
    logs = [stages._history(r.folder)[1]["judged"] for r in (whole, stopped)]
    assert logs[0] == logs[1]
    assert [entry["iteration"] for entry in logs[1]] == [0, 3, 6]
    assert potstill.load(whole.folder).images.equal(potstill.load(stopped.folder).images)


def test_states_are_judged_alike_in_every_sitting(tmp_path, finished, monkeypatch):
    """Another evaluation may be asked for on the way; accuracies of unlike networks would not compare."""
    run, _ = finished
    begun = stages.open_run(tiny(), tmp_path, run.experts_folder)
    events = stages.distil(begun)
    next(event for event in events if event.get("iteration") == 0)
    events.close()
    judges, original = [], stages.evaluator.validation_accuracy
    monkeypatch.setattr(
        stages.evaluator, "validation_accuracy", lambda who, *a: (judges.append(who.protocol), original(who, *a))[1]
    )
    longer = stages.open_run(tiny(evaluation={"epochs": 5}), tmp_path, run.experts_folder)
    api.exhaust(stages.distil(longer))
    assert judges
    assert {protocol.epochs for protocol in judges} == {3}


def test_sets_are_judged_on_the_way_by_the_step_size_that_suits_them(tmp_path, finished, monkeypatch):
    run, _ = finished
    judged, original = [], stages.tuning.validation_accuracy

    def judging(who, training_set):
        judged.append((training_set.step_size, original(who, training_set)))
        return judged[-1][1]

    monkeypatch.setattr(stages.tuning, "validation_accuracy", judging)
    chosen = stages.open_run(tiny(evaluation={"step_size": "chosen"}), tmp_path, run.experts_folder)
    distilled = api.exhaust(stages.distil(chosen))
    assert len(judged) == 3 * 4  # none after those of iterations 0, 3 and 6
    found = stages._history(tmp_path)[1]["judged"]
    best = [max(judged[i : i + 4], key=lambda pair: pair[1]) for i in (0, 4, 8)]
    assert [entry["accuracy"] for entry in found] == [accuracy for _, accuracy in best]
    kept = (0, 3, 6).index(distilled.provenance["iteration"])
    assert distilled.step_size == best[kept][0]
    assert [(e["step_size"], e["accuracy"]) for e in distilled.provenance["step_sizes"]] == judged[4 * kept :][:4]


def test_what_was_given_matters_only_where_something_is_measured(finished):
    run, _ = finished
    path = run.folder / "config.json"
    stored = files.read_json(path)
    del stored["config"]["distil"]["given"]  # a run of before there was such a setting
    files.write_json(path, stored)
    stages.open_run(tiny(distil={"given": ("lr_images",)}), run.folder)
    stages.open_run(tiny(), run.folder)


def test_shared_experts_that_differ_are_taken_and_told(tmp_path, finished, caplog):
    run, _ = finished
    other = stages.open_run(tiny(expert={"step_size": 0.04}), tmp_path, run.experts_folder)
    with caplog.at_level("INFO", "potstill"):
        api.exhaust(stages.distil(other))
    assert "taken as they are: expert.step_size: 0.05, not 0.04" in caplog.text


def test_a_refused_command_does_not_hold_its_folder(tmp_path):
    with pytest.raises(PotstillError, match="lower --window.stop"):
        api.exhaust(stages.train_experts(stages.open_run(tiny(window={"stop": 40}), tmp_path)))
    api.exhaust(stages.train_experts(stages.open_run(tiny(), tmp_path)))


def test_experts_may_not_be_exchanged_on_the_way(tmp_path, finished):
    run, _ = finished
    go(tiny(), tmp_path / "run", run.folder / "experts")
    other = stages.Run(tiny(expert={"step_size": 0.04}), tmp_path / "other", tmp_path / "other")
    api.exhaust(stages.train_experts(other))
    with pytest.raises(PotstillError, match=r"begun with other experts: expert\.step_size: 0\.05, not 0\.04"):
        api.exhaust(stages.distil(stages.open_run(tiny(), tmp_path / "run", tmp_path / "other")))


@pytest.mark.parametrize(("changes", "word"), [
    ({"transform": "pca"}, "transform 'pca': choose among auto, zca, standardise"),
    ({"network": {"norm": "layer"}}, "network.norm 'layer'"), ({"distil": {"adjoint": "tesla"}}, "distil.adjoint"),
    ({"distil": {"label_experts": 0}}, "distil.label_experts 0"), ({"resize": -1}, "resize -1"),
    ({"evaluation": {"full_seeds": -1}}, "evaluation.full_seeds -1"),
    ({"distil": {"given": ("rates",)}}, "distil.given 'rates'"),
    ({"augment": ("flip", "mirror")}, "augment 'mirror': choose among colour, crop"),
])  # fmt: skip
def test_python_is_held_to_the_same_choices_as_the_command_line(tmp_path, changes, word):
    with pytest.raises(PotstillError) as error:
        stages.open_run(tiny(**changes), tmp_path)
    assert word in str(error.value)


def test_presets_say_how_but_not_on_what():
    with pytest.raises(PotstillError, match="say where they are by --dataset"):
        api.configure(None, None, "cifar10-ipc10", {})
    config = api.configure("mine", None, "cifar10-ipc10", {"seed": 3, "distil": {"iterations": 5}})
    assert (config.ipc, config.seed, config.distil.iterations, config.distil.inner_steps) == (10, 3, 5, 80)
    assert api.configure(None, None, None, {}).dataset == "digits"
    with pytest.raises(PotstillError, match="nonsense: no such setting"):
        api.configure(None, 1, None, {"nonsense": 1})
    with pytest.raises(PotstillError, match="not all among its fields"):
        api.configure(None, 1, None, {"distil": {"nonsense": 1}})
    with pytest.raises(PotstillError, match="expert 3: holds several settings; give a dict"):
        api.configure(None, 1, None, {"expert": 3})


def test_python_takes_a_window_as_the_command_line_does():
    assert api.configure(None, 1, None, {"window": "auto"}).window.mode == "auto"
    assert api.configure("mine", 1, None, {"window": {"stop": 7}}).window == WindowConfig(0, 7)
    config = api.configure("mine", 1, None, {"distil": {"inner_steps": 40, "iterations": 9}})
    assert config.distil.given == ("inner_steps",)  # 40 is the default, and meant
    with pytest.raises(PotstillError, match="window auto: finds what stop gives"):
        api.configure("mine", 1, None, {"window": {"mode": "auto", "stop": 9}})


def test_distilled_digits_are_worth_more_than_random_ones(tmp_path):
    """The main job, shortened: still clearly above its own controls."""
    base = config.default("digits", 1)
    short = replace(
        base,
        expert=replace(base.expert, count=3, epochs=12),
        distil=replace(base.distil, iterations=40, evaluations=2),
        evaluation=config.EvaluationConfig("quick", seeds=3, full_seeds=0),
    )
    run = go(short, tmp_path)
    found = api.exhaust(stages.evaluate(run))["accuracy"]
    assert found["distilled"]["mean"] > found["random"]["mean"] + 0.08
    assert found["distilled"]["mean"] > found["random_soft"]["mean"] + 0.03
