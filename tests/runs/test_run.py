"""Whole runs on disk: from nothing to results, killed and continued, and what may not change in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import potstill
from potstill import files
from potstill.data.distilled import load
from potstill.errors import PotstillError
from potstill.evaluation import tuning
from potstill.evaluation.protocol import EvaluationConfig, selecting
from potstill.report import card, run_page
from potstill.runs import record, run, stage
from potstill.runs.api import run_to_completion
from potstill.runs.settings import check, configure
from tests.cli.test_main import call
from tests.conftest import KEPT, tiny


def go(settings, folder, experts=None):
    job = run.open_run(settings, folder, experts)
    run_to_completion(run.train_experts(job))
    run_to_completion(stage.distil(job))
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    job = go(tiny(), folder)
    return job, run_to_completion(record.evaluate(job, load(job.folder)))


def test_results_keep_the_contract(finished):
    job, results = finished
    assert files.plain(results) == files.read_json(job.folder / "results.json")
    assert set(results) >= {
        "dataset", "ipc", "method", "network", "protocol", "accuracy", "recovered", "images", "compression", "seconds",
        "peak_memory_bytes", "config", "environment", "version", "memorisation",
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
    job, _ = finished
    lines = record.read_metrics(job.folder / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == list(range(6))
    assert all(line["start_epoch"] in (0, 1) for line in lines)


def test_sets_are_evaluated_by_networks_that_train_no_longer_than_the_final_ones():
    assert selecting(EvaluationConfig()).epochs == 300
    assert selecting(EvaluationConfig(epochs=67)).epochs == 67
    assert selecting(EvaluationConfig()).seeds == 2
    assert selecting(EvaluationConfig(seeds=1)).seeds == 1
    assert selecting(EvaluationConfig(protocol="paper")).selection == "test"


def test_the_kept_set_is_the_best_on_validation_images(finished):
    job, results = finished
    found = results["validation"]
    assert [entry["iteration"] for entry in found] == [0, 3, 6]
    assert all(entry["on"] == "validation" for entry in found)
    kept = potstill.load(job.folder).provenance
    assert kept["chosen_with_accuracy"] == max(entry["accuracy"] for entry in found)


def test_a_finished_run_given_again_does_nothing_new(finished):
    job, results = finished
    before = (job.folder / "distilled.safetensors").read_bytes()
    again = go(tiny(), job.folder)
    assert (job.folder / "distilled.safetensors").read_bytes() == before
    found = run_to_completion(record.evaluate(again, load(again.folder)))
    assert found["accuracy"] == results["accuracy"]


def test_the_step_size_can_be_chosen_on_validation_images_and_given_back(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "SMALLER_FRACTIONS", ())
    first, results = finished
    folder = tmp_path / "run"
    shutil.copytree(first.folder, folder)
    assert results["step_sizes"] == []
    chosen, events = tiny(evaluation={"step_size": "chosen"}), []
    job = run.open_run(chosen, folder)
    distilled = run_to_completion(stage.distil(job), events.append)
    tried = distilled.provenance["step_sizes"]
    assert [entry["step_size"] / results["step_size"] for entry in tried] == pytest.approx([1, 0.5, 0.25, 0.125])
    best = max(tried, key=lambda entry: entry["accuracy"])
    assert distilled.step_size == best["step_size"]
    assert sum("training with step size" in event.get("doing", "") for event in events) == 4
    assert run_to_completion(record.evaluate(job, load(job.folder)))["step_sizes"] == tried
    assert "chosen on validation images" in run_page.write(folder).read_text()
    assert run_to_completion(stage.distil(job)).provenance["step_sizes"] == tried  # and not tried again
    assert run_to_completion(stage.distil(run.open_run(tiny(), folder))).step_size == results["step_size"]


def test_other_settings_in_the_same_folder_are_refused(finished):
    job, _ = finished
    with pytest.raises(PotstillError, match=r"differs in ipc: 1, not 2; stages\.datm\.lr_images: 10\.0, not 11\.0"):
        run.open_run(tiny(ipc=2, datm={"lr_images": 11.0}), job.folder)
    with pytest.raises(PotstillError, match=r"evaluation\.selection: 'validation', not 'test'"):
        run.open_run(tiny(evaluation={"protocol": "paper"}), job.folder)
    run.open_run(tiny(evaluation={"seeds": 3}, device="cpu"), job.folder)  # bears on no number of the set
    run.open_run(tiny(), job.folder)


def test_experts_can_be_shared(finished, tmp_path):
    job, _ = finished
    other = run.open_run(tiny(ipc=2, seed=5), tmp_path, job.folder / "experts")
    assert run_to_completion(run.train_experts(other)).folder == job.folder / "experts"
    distilled = run_to_completion(stage.distil(other))
    assert len(distilled) == 20
    assert not (tmp_path / "experts").exists()


@pytest.mark.parametrize(("changes", "told"), [
    ({"ipc": 2}, "does not fit what is asked for in images per class"),
    ({"datm": {"pictures": 2}}, "datm: works on slots of 2×2 pictures"),
    ({"start": "none.safetensors"}, "none.safetensors"),
])  # fmt: skip
def test_a_set_that_a_run_cannot_begin_at_is_told(finished, changes, told, tmp_path):
    job, _ = finished
    with pytest.raises(PotstillError, match=told):
        stage.check_start(run.open_run(tiny(**{"start": str(job.folder), **changes}), tmp_path))


def test_a_start_that_is_missing_is_told_before_experts_are_trained(tmp_path, capsys):
    with pytest.raises(PotstillError, match=r"none\.safetensors"):
        potstill.distill("digits", ipc=1, out=tmp_path / "a", start="none.safetensors", progress=False)
    code, _, told = call(capsys, "run", "--start", "none.safetensors", "--out", tmp_path / "b")
    assert (code, "none.safetensors: " in told) == (1, True)
    assert not (tmp_path / "a" / "experts").exists()
    assert not (tmp_path / "b" / "experts").exists()


def test_a_run_that_has_begun_does_not_need_its_start(finished, tmp_path):
    job, _ = finished
    path = tmp_path / "start.safetensors"
    load(job.folder).save(path)
    begun = run.open_run(tiny(start=str(path)), tmp_path / "run", job.folder / "experts")
    stage.check_start(begun)
    assert next(event for event in stage.distil(begun) if event.get("done") == 1)  # closed there, as by Ctrl-C
    path.unlink()
    again = run.open_run(begun.settings, begun.folder, job.folder / "experts")
    stage.check_start(again)
    distilled = run_to_completion(stage.distil(again))
    assert not torch.equal(distilled.images, load(job.folder).images)


def test_start_epochs_beyond_the_shared_experts_are_refused(finished, tmp_path):
    job, _ = finished
    late = tiny(datm={"start_epochs": (0, 40)})
    with pytest.raises(PotstillError, match="trains 4 epochs, but snapshots of epochs 0 to 41 are needed"):
        run_to_completion(stage.distil(run.open_run(late, tmp_path, job.folder / "experts")))
    with pytest.raises(PotstillError, match="holds 2 finished experts, but 9 are asked for"):
        run_to_completion(stage.distil(run.open_run(tiny(expert={"count": 9}), tmp_path / "b", job.folder / "experts")))


def test_paper_protocol_reports_the_best_test_evaluation(tmp_path, finished):
    job, _ = finished
    paper = run.open_run(tiny(evaluation={"protocol": "paper", "seeds": 1}), tmp_path, job.folder / "experts")
    run_to_completion(stage.distil(paper))
    results = run_to_completion(record.evaluate(paper, load(paper.folder)))
    assert results["protocol"]["selection"] == "test"
    assert all(entry["on"] == "test" for entry in results["validation"])
    best = max(entry["accuracy"] for entry in results["validation"])
    assert results["accuracy"]["distilled"]["mean"] == best


def test_more_images_than_a_class_has(tmp_path):
    with pytest.raises(PotstillError, match=r"ipc 500: class '\d' has only \d+ training images .* lower --ipc"):
        run_to_completion(run.train_experts(run.open_run(tiny(ipc=500), tmp_path)))


def test_unknown_device():
    with pytest.raises(PotstillError, match=r"device 'cuda:9': not available here|device 'warp'"):
        run.prepare_problem(tiny(device="cuda:9"))
    with pytest.raises(PotstillError, match="device 'warp': not available here"):
        run.prepare_problem(tiny(device="warp"))


# --- killed and continued ------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
from potstill.runs import api, run, stage
from potstill.training import experts
from tests.conftest import tiny
experts.CHECKPOINT_SECONDS = 0.0
settings = tiny(
    ("datm", "rat-bptt"), datm={"iterations": 30, "pictures": 2}, evaluations=4, checkpoint_seconds=0.0,
    expert={"epochs": 12},
    **{"rat-bptt": {"iterations": 10, "window": 4, "unroll": 9, "real_batch": 100, "pool": 3, "pictures": 2}})
with run.opened(settings, Path(sys.argv[1])) as job:
    for step in (run.train_experts, stage.distil):
        api.run_to_completion(step(job), lambda event: print(event["stage"], event["done"], flush=True))
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
    kill_at(tmp_path / "killed", "distilling 34")  # inside the second stage
    assert 0 < len(record.read_metrics(tmp_path / "killed" / "metrics.jsonl")) < 40
    with started(tmp_path / "killed") as process:
        printed = process.communicate()[0]
    assert "distilling 29" not in printed.splitlines()  # it continued, and did not begin again
    for name in ("distilled.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for name, kind in (("checkpoint", "checkpoint"), ("experts/expert-01", "expert")):  # whose headers tell the seconds
        found = [files.read_tensors(tmp_path / k / f"{name}.safetensors", kind)[0] for k in ("whole", "killed")]
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_last_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iter')
    assert [line["iteration"] for line in record.read_metrics(path)] == [0, 1]
    record.truncate_metrics(path, 1)
    assert path.read_text() == json.dumps({"iteration": 0}) + "\n"


def test_how_often_it_is_saved_does_not_change_the_set(tmp_path, finished):
    job, _ = finished
    other = go(tiny(checkpoint_seconds=0.0), tmp_path)
    assert torch.equal(potstill.load(other.folder).images, potstill.load(job.folder).images)


def test_the_second_of_two_runs_in_a_folder_says_who_holds_it(tmp_path):
    with started(tmp_path / "run") as process:
        for printed in process.stdout:
            if printed.startswith("distilling"):
                break
        held = rf"in use by process {process.pid} on .* since .* \(a run\); wait"
        with pytest.raises(PotstillError, match=held), run.opened(tiny(), tmp_path / "run"):
            pass
        process.communicate()
    assert process.returncode == 0
    with files.locked(tmp_path / "run", "looking"):
        pass


# --- interrupted, refused, mixed up --------------------------------------------------------------------------------


def test_an_interrupted_evaluation_is_done_when_the_run_continues(tmp_path, finished, monkeypatch):
    job, _ = finished
    whole = go(tiny(), tmp_path / "whole", job.folder / "experts")
    stopped = run.open_run(tiny(), tmp_path / "stopped", job.folder / "experts")
    original, calls = tuning.validation_accuracy, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(tuning, "validation_accuracy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_completion(stage.distil(stopped))
    run_to_completion(stage.distil(stopped))
    logs = [record.history(r.folder)[1]["evaluated"] for r in (whole, stopped)]
    alike = [[{**entry, "seconds": None} for entry in log] for log in logs]
    assert alike[0] == alike[1]
    assert [entry["iteration"] for entry in logs[1]] == [0, 3, 6]
    spent = [entry["seconds"] for entry in logs[1]]
    assert spent[0] == 0 < spent[1] < spent[2] == pytest.approx(record.history(stopped.folder)[0]["seconds"])
    assert potstill.load(whole.folder).images.equal(potstill.load(stopped.folder).images)


def test_states_are_evaluated_alike_in_every_session(tmp_path, finished, monkeypatch):
    """Another evaluation may be asked for on the way; accuracies of unlike networks would not compare."""
    job, _ = finished
    begun = run.open_run(tiny(), tmp_path, job.experts_folder)
    events = stage.distil(begun)
    next(event for event in events if event.get("iteration") == 0)
    events.close()
    protocols, original = [], tuning.validation_accuracy
    monkeypatch.setattr(
        tuning, "validation_accuracy", lambda who, *a: (protocols.append(who.protocol), original(who, *a))[1]
    )
    longer = run.open_run(tiny(evaluation={"epochs": 5}), tmp_path, job.experts_folder)
    run_to_completion(stage.distil(longer))
    assert {protocol.epochs for protocol in protocols} == {3}


def test_sets_are_evaluated_on_the_way_by_the_step_size_that_suits_them(tmp_path, finished, monkeypatch):
    job, _ = finished
    found, original = [], tuning.validation_accuracy

    def noted(who, training_set):
        found.append((training_set.step_size, original(who, training_set)))
        return found[-1][1]

    monkeypatch.setattr(tuning, "validation_accuracy", noted)
    monkeypatch.setattr(tuning, "SMALLER_FRACTIONS", ())
    chosen = run.open_run(tiny(evaluation={"step_size": "chosen"}), tmp_path, job.experts_folder)
    distilled = run_to_completion(stage.distil(chosen))
    assert len(found) == 3 * 4  # none after those of iterations 0, 3 and 6
    log = record.history(tmp_path)[1]["evaluated"]
    best = [max(found[i : i + 4], key=lambda pair: pair[1]) for i in (0, 4, 8)]
    assert [entry["accuracy"] for entry in log] == [accuracy for _, accuracy in best]
    kept = (0, 3, 6).index(distilled.provenance["iteration"])
    assert distilled.step_size == best[kept][0]
    assert [(e["step_size"], e["accuracy"]) for e in distilled.provenance["step_sizes"]] == found[4 * kept :][:4]


@pytest.mark.parametrize("step_size", ["learned", "chosen"])
def test_without_evaluations_the_last_set_is_kept(tmp_path, finished, monkeypatch, step_size):
    job, _ = finished
    found, original = [], tuning.validation_accuracy
    monkeypatch.setattr(tuning, "validation_accuracy", lambda *given: found.append(original(*given)) or found[-1])
    monkeypatch.setattr(tuning, "SMALLER_FRACTIONS", ())
    unseen = run.open_run(tiny(evaluations=0, evaluation={"step_size": step_size}), tmp_path, job.experts_folder)
    distilled = run_to_completion(stage.distil(unseen))
    assert run_to_completion(stage.distil(unseen)).provenance == distilled.provenance
    assert len(found) == {"learned": 0, "chosen": 4}[step_size]  # and not tried again
    last = run.open_run(tiny(evaluations=1, keep="last"), tmp_path / "last", job.experts_folder)
    assert distilled.provenance["iteration"] == 6
    assert torch.equal(distilled.images, run_to_completion(stage.distil(last)).images)
    results = run_to_completion(record.evaluate(unseen, distilled))
    assert results["validation"] == []
    assert "None images" not in run_page.write(tmp_path).read_text()
    told = card.contents(tmp_path, "someone/small", "cc-by-4.0")["README.md"].decode()
    assert "the set of iteration 6, not chosen by any evaluation" in told


def test_without_evaluations_there_is_nothing_for_the_paper_s_protocol_to_report():
    with pytest.raises(PotstillError, match="evaluations 0: the protocol paper .*; give 1 or more"):
        check(tiny(evaluations=0, evaluation={"protocol": "paper"}))


def test_a_later_stage_begins_at_the_set_of_the_one_before(tmp_path, finished):
    job, _ = finished
    still = {"iterations": 2, "window": 4, "unroll": 9, "lr_images": 0.0, "lr_labels": 0.0, "lr_step_size": 0.0}
    both = run.open_run(
        tiny(("datm", "rat-bptt"), keep="last", **{"rat-bptt": still}), tmp_path, job.experts_folder
    )  # fmt: skip
    distilled = run_to_completion(stage.distil(both))
    matched = potstill.load(job.folder)  # whose best may be an earlier one
    state, _ = files.read_tensors(job.folder / "checkpoint.safetensors", "checkpoint")
    assert distilled.images.equal(state["variables/images"])
    assert matched.kind == distilled.kind == "logits"
    lines = record.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["stage"] for line in lines] == ["datm"] * 6 + ["rat-bptt"] * 2
    assert [line["iteration"] for line in lines] == list(range(8))
    assert "steps_taken" in lines[-1]
    results = run_to_completion(record.evaluate(both, load(both.folder)))
    assert [entry["name"] for entry in results["stages"]] == ["datm", "rat-bptt"]
    assert "steps the student has taken" in run_page.write(tmp_path).read_text().lower()


@pytest.mark.parametrize("method", ["random", "rat-bptt"])
def test_a_method_without_experts_trains_none(tmp_path, method):
    small = {"rat-bptt": {"iterations": 2, "window": 2, "unroll": 3, "real_batch": 50}}
    job = go(tiny(method, **{name: values for name, values in small.items() if name == method}), tmp_path)
    assert not (tmp_path / "experts").exists()
    results = run_to_completion(record.evaluate(job, load(job.folder)))
    assert set(results["accuracy"]) == {"distilled", "random", "full"}
    assert results["seconds"]["experts"] is None
    run_page.write(tmp_path)


# --- runs that 0.1.0 made ------------------------------------------------------------------------------------------


def test_a_finished_run_of_0_1_0_opens_loads_and_reports(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(KEPT / "finished", folder)
    text = run_page.write(folder).read_text()
    assert "Difficulty-aligned trajectory matching".lower() in text.lower()
    assert len(potstill.load(folder)) == 10
    old = record.upgrade(files.read_json(folder / "results.json"))
    assert old["method"] == ["datm", "rat-bptt"]


def test_an_unfinished_run_of_0_1_0_is_refused_with_what_to_do(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(KEPT / "unfinished", folder)
    with pytest.raises(
        PotstillError, match="unfinished run of an older potstill.* take its experts along by --experts"
    ):
        run.open_run(tiny(), folder)


# --- experts -------------------------------------------------------------------------------------------------------


def test_shared_experts_that_differ_are_taken_and_told(tmp_path, finished, caplog):
    job, _ = finished
    other = run.open_run(tiny(expert={"step_size": 0.04}), tmp_path, job.experts_folder)
    with caplog.at_level("INFO", "potstill"):
        run_to_completion(stage.distil(other))
    assert "taken as they are: expert.step_size: 0.05, not 0.04" in caplog.text


def test_shared_experts_of_another_seed_are_no_news(tmp_path, finished, caplog):
    job, _ = finished
    with caplog.at_level("INFO", "potstill"):
        run_to_completion(stage.distil(run.open_run(tiny(seed=7), tmp_path, job.experts_folder)))
    assert "as they are" not in caplog.text


def test_a_refused_command_does_not_hold_its_folder(tmp_path):
    with pytest.raises(PotstillError, match="raise --expert.epochs"):
        run_to_completion(run.train_experts(run.open_run(tiny(datm={"start_epochs": (0, 40)}), tmp_path)))
    run_to_completion(run.train_experts(run.open_run(tiny(), tmp_path)))


def test_experts_may_not_be_exchanged_on_the_way(tmp_path, finished):
    job, _ = finished
    go(tiny(), tmp_path / "run", job.folder / "experts")
    other = run.Run(tiny(expert={"step_size": 0.04}), tmp_path / "other", tmp_path / "other")
    run_to_completion(run.train_experts(other))
    with pytest.raises(PotstillError, match=r"begun with other experts: expert\.step_size: 0\.05, not 0\.04"):
        run_to_completion(stage.distil(run.open_run(tiny(), tmp_path / "run", tmp_path / "other")))


def test_distilled_digits_are_worth_more_than_random_ones(tmp_path):
    """The main job, shortened: still clearly above its own controls."""
    short = configure("digits", 1, changes={
        "expert": {"count": 3, "epochs": 12}, "datm": {"iterations": 40}, "evaluations": 2,
        "evaluation": {"protocol": "quick", "seeds": 3, "full_seeds": 0},
    })  # fmt: skip
    job = go(short, tmp_path)
    found = run_to_completion(record.evaluate(job, load(job.folder)))["accuracy"]
    assert found["distilled"]["mean"] > found["random"]["mean"] + 0.08
    assert found["distilled"]["mean"] > found["random_soft"]["mean"] + 0.03


def test_a_set_that_was_deleted_is_written_again_from_the_checkpoint(tmp_path, caplog):
    given = tiny(("datm",), keep="last")
    go(given, tmp_path / "run")
    first = load(tmp_path / "run")
    (tmp_path / "run" / "distilled.safetensors").unlink()
    with caplog.at_level("WARNING", "potstill"):
        go(given, tmp_path / "run")
    assert torch.equal(first.images, load(tmp_path / "run").images)
    assert "distilled.safetensors: is gone" in caplog.text


def test_a_run_whose_settings_are_gone_is_not_continued_under_others(tmp_path):
    go(tiny(("datm",)), tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(PotstillError, match="of a run whose settings are gone .config.json.; restore it"):
        go(tiny(("datm",), seed=1), tmp_path / "run")


def test_files_of_a_newer_potstill_are_refused(tmp_path):
    go(tiny(("datm",)), tmp_path / "run")
    for name in ("config.json", "experts/manifest.json"):
        path = tmp_path / "run" / name
        kept = path.read_text()
        files.write_json(path, {**files.read_json(path), "version": "9.0", "format": files.FORMAT + 1})
        with pytest.raises(PotstillError, match="written by potstill 9.0 in format .* install a newer potstill"):
            go(tiny(("datm",)), tmp_path / "run")
        path.write_text(kept)
