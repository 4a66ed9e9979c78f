"""The command line as users meet it: exit codes, one clear sentence, no traceback, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from potstill.cli import main, runners
from potstill.cli.commands import COMMANDS
from potstill.data.distilled import load
from potstill.errors import PotstillError
from potstill.evaluation import tuning
from potstill.methods import METHODS
from potstill.studies import task

SMALL = (
    "--network.width 8 --expert.count 2 --expert.epochs 4 --expert.step-size 0.05 --datm.start-epochs 0 2 "
    "--datm.iterations 4 --datm.inner-steps 3 --evaluations 2 "
    "--evaluation.protocol quick --evaluation.epochs 3 "
    "--evaluation.full-epochs 1 --evaluation.seeds 2"
).split()


def call(capsys, *arguments):
    code = main.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main.main(["run", *SMALL, "--out", str(folder)]) == 0
    return folder


def test_run_leaves_everything(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoint.safetensors", "distilled.safetensors", "results.json",
                     "report.html", "experts", "start.safetensors"}  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    assert len(load(finished)) == 10


def test_run_again_continues_at_once(finished, capsys):
    before = (finished / "distilled.safetensors").read_bytes()
    code, out, _ = call(capsys, "run", *SMALL, "--out", finished)
    assert code == 0
    assert "distilled" in out
    assert "random, soft labels" in out
    assert (finished / "distilled.safetensors").read_bytes() == before


def test_a_set_that_was_never_stepped_on_is_said_to_be_its_start(tmp_path, capsys):
    code, _, err = call(capsys, "run", *SMALL, "--datm.threshold", "1e-9", "--out", tmp_path / "run")
    assert code == 0
    assert "none of its 4 iterations was stepped on" in err


def test_a_run_on_images_at_one_scale_from_data_to_export(tmp_path, capsys):
    small = (
        "--method rat-bptt --transform zca-image --network.width 8 --rat-bptt.iterations 4 --rat-bptt.unroll 4 "
        "--rat-bptt.window 2 --rat-bptt.real-batch 50 --evaluations 1 --evaluation.protocol quick "
        "--evaluation.epochs 3 --evaluation.full-epochs 1 --evaluation.seeds 2"
    ).split()
    code, out, _ = call(capsys, "run", *small, "--out", tmp_path / "run")
    assert (code, "distilled" in out) == (0, True)
    found = load(tmp_path / "run")
    assert found.transform.kind == "zca-image"
    assert found.pixels.flatten(1).float().std(1).min() > 10  # shown at the contrast of real digits, not as grey
    page = (tmp_path / "run" / "report.html").read_text()
    assert "zca-image undone, each at the mean brightness and contrast of the training images, clipped" in page
    code, out, _ = call(capsys, "show", tmp_path / "run", "--out", tmp_path / "set.png")
    assert (code, "zca-image" in out) == (0, True)
    for name in ("set.npz", "set.parquet", "folder"):
        assert call(capsys, "export", tmp_path / "run", "--out", tmp_path / name)[0] == 0
    assert call(capsys, "forecast", *small)[0] == 0


def test_stages_one_at_a_time(finished, tmp_path, capsys):
    code, out, _ = call(capsys, "experts", *SMALL, "--out", tmp_path / "experts")
    assert (code, "2 experts" in out) == (0, True)
    code, out, _ = call(capsys, "distill", *SMALL, "--experts", tmp_path / "experts", "--out", tmp_path / "run")
    assert (code, "10 images" in out) == (0, True)
    assert load(tmp_path / "run").images.equal(load(finished).images)


def test_evaluate_another_network(finished, tmp_path, capsys):
    code, out, _ = call(
        capsys, "evaluate", finished / "distilled.safetensors", "--network", "mlp", "--width", 16,
        "--protocol", "quick", "--epochs", 3, "--full-epochs", 1, "--seeds", 2, "--record", tmp_path / "r.json",
    )  # fmt: skip
    assert code == 0
    assert "mlp" in out
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["network"], len(found["accuracy"]["distilled"]["per_seed"])) == ("mlp", 2)
    assert (found["network_settings"]["width"], found["config"]["network"]["name"]) == (16, "convnet")
    assert (found["recipe"], "commit" in found) == (finished.name, True)
    assert "random_soft" in found["accuracy"]  # the experts lie beside the set


def test_the_record_of_an_evaluation_names_a_set_that_lies_alone(finished, tmp_path, capsys):
    shutil.copyfile(finished / "distilled.safetensors", tmp_path / "mine.safetensors")
    flags = ["--protocol", "quick", "--epochs", 1, "--seeds", 1, "--full-seeds", 0]
    assert call(capsys, "evaluate", tmp_path / "mine.safetensors", *flags, "--record", tmp_path / "r.json")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["recipe"] == "mine"
    code, _, err = call(capsys, "evaluate", tmp_path / "mine.safetensors", *flags, "--record", tmp_path / "r.txt")
    assert (code, ".json" in err) == (1, True)


def test_evaluate_chooses_a_step_size_and_leaves_the_set_as_it_is(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "SMALLER_FRACTIONS", ())
    before = (finished / "distilled.safetensors").read_bytes()
    flags = ["--protocol", "quick", "--epochs", 3, "--seeds", 2, "--full-seeds", 0, "--step-size", "chosen"]
    assert call(capsys, "evaluate", finished, *flags, "--json", tmp_path / "r.json")[0] == 0
    found = json.loads((tmp_path / "r.json").read_text())
    best = max(found["step_sizes"], key=lambda entry: entry["accuracy"])
    assert (len(found["step_sizes"]), found["step_size"]) == (4, best["step_size"])
    assert found["config"]["evaluation"]["step_size"] == "chosen"
    assert (finished / "distilled.safetensors").read_bytes() == before
    code, _, err = call(capsys, "evaluate", finished, "--network", "mlp", *flags)
    assert (code, "another network than the set's does not use" in err) == (1, True)


def test_evaluate_refuses_other_data_and_the_papers_protocol(finished, arrays, capsys):
    import numpy as np

    other = arrays(np.zeros((100, 8, 8), np.uint8), np.arange(100) % 10)
    code, _, err = call(capsys, "evaluate", finished, "--dataset", other)
    assert (code, "is not the data this set was distilled from" in err) == (1, True)
    code, _, err = call(capsys, "evaluate", finished, "--protocol", "paper")
    assert (code, "while distilling" in err) == (1, True)


def test_report_show_and_export(finished, tmp_path, capsys):
    assert call(capsys, "report", finished)[0] == 0
    code, out, _ = call(capsys, "show", finished, "--out", tmp_path / "images.png")
    assert (code, "10 images of 8×8 pixels, grey, 10 classes" in out) == (0, True)
    assert (tmp_path / "images.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("set.npz", "set.parquet", "folder"):
        assert call(capsys, "export", finished, "--out", tmp_path / name)[0] == 0
        assert (tmp_path / name).exists()


def test_forecast(capsys):
    code, out, _ = call(capsys, "forecast", *SMALL)
    assert code == 0
    assert all(word in out for word in ("experts", "distilling", "evaluation", "in all", "peak memory"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name, capsys):
    code, out, _ = call(capsys, *name.split(), "--help")
    assert code == 0
    assert f"potstill {name}" in out


def test_no_command_a_wrong_one_and_a_wrong_flag(capsys):
    assert call(capsys)[0] == 0
    code, _, err = call(capsys, "distil")
    assert (code, "no such command. Did you mean distill? Choose among run" in err) == (2, True)
    assert call(capsys, "explore", "nothing")[0] == 2
    code, out, _ = call(capsys, "explore")
    assert (code, "explore stages" in out, "potstill run" in out) == (0, True, False)
    assert call(capsys, "run", "--nonsense", "3")[0] == 2
    assert call(capsys, "run", "--ipc", "many")[0] == 2
    assert call(capsys, "--version")[1].startswith("potstill ")


@pytest.mark.parametrize(("arguments", "words"), [
    (["run", "--ipc", "0"], ["ipc 0", "raise --ipc"]),
    (["run", "--ipc", "-3"], ["ipc -3"]),
    (["run", "--preset", "cifar10-ipc11"], ["no cell of datm", "cifar10-ipc10"]),
    (["run", "--preset", "cifar10-ipc10"], ["say where they are by --dataset"]),
    (["run", "--dataset", "/nowhere/at/all"], ["no such file or folder"]),
    (["run", "--datm.start-epochs", "8", "40"], ["snapshots of epochs 8 to 41 are needed", "raise --expert.epochs"]),
    (["run", "--method", "herding", "--mtt.iterations", "3"], ["--mtt.iterations: is a setting of mtt", "add it to"]),
    (["compare", "--dm.lr-images", "3"], ["--dm.lr-images: is a setting of dm", "--methods dm:lr-images=VALUE"]),
    (["compare", "--methods", "dm:iterations=-1"], ["raise dm:iterations"]),
    (["run", "--distil.polish", "3"], ["stand under their method's name since 0.2", "--datm.iterations"]),
    (["run", "--window", "auto"], ["stand under their method's name since 0.2"]),
    (["run", "--method", "dtam"], ["method 'dtam': unknown", "did you mean datm"]),
    (["run", "--method", "datm", "datm"], ["name one method or several different ones"]),
    (["run", "--method", "datm", "random"], ["random: selects real images, so it can only be the first stage"]),
    (["methods", "dtam"], ["method 'dtam': unknown"]),
    (["run", "--device", "cuda:9"], ["device 'cuda:9': not available here"]),
    (["evaluate", "/nowhere.safetensors"], ["there is no such file"]),
    (["report", "/nowhere"], ["no finished run"]),
    (["explore", "stages", "--starts", "0", "40"], ["begins between 0 and 26", "raise --expert.epochs"]),
    (["explore", "ablations", "--ipc", "0"], ["ipc 0", "raise --ipc"]),
    (["lossless", "--ipc", "5", "--most", "2"], ["--most 2", "raise it"]),
    (["lossless", "--most", "0"], ["most 0", "raise --most"]),
    (["lossless", "--margin", "nan"], ["margin nan", "a finite number is needed"]),
    (["explore", "windows", "--count", "0"], ["count 0", "raise --count"]),
    (["explore", "stages", "--ipcs", "1", "-1"], ["ipcs -1", "raise --ipcs"]),
    (["run", "--minutes", "nan"], ["minutes nan", "a finite number is needed"]),
    (["run", "--minutes", "-3"], ["minutes -3", "cannot be negative"]),
    (["run", "--datm.lr-images", "inf"], ["datm.lr_images inf", "correct --datm.lr-images"]),
    (["run", "--datm.threshold", "-1"], ["datm.threshold -1.0", "cannot be negative"]),
    (["run", "--expert.rho", "nan"], ["expert.rho nan"]),
    (["run", "--validation", "1"], ["validation 1.0", "between 0 and 1"]),
    (["run", "--checkpoint-seconds", "-1"], ["checkpoint_seconds -1.0"]),
    (["run", "--snapshots", "-1"], ["snapshots -1"]),
    (["run", "--method", "rat-bptt", "--rat-bptt.clip", "0"], ["rat-bptt.clip 0.0", "above 0"]),
    (["evaluate", "/nowhere.safetensors", "--seeds", "0"], ["seeds 0", "raise --seeds"]),
    (["evaluate", "/nowhere.safetensors", "--width", "0"], ["width 0", "raise --width"]),
    (["show", "/nowhere.safetensors", "--most", "0"], ["most 0", "raise --most"]),
    (["show", "/nowhere.safetensors", "--out", "x.jpg"], ["--out x.jpg", ".png"]),
    (["run", "--record", "x.txt"], ["--record x.txt", ".json"]),
    (["lossless", "--most", "5000"], ["--most 5000", "lower it"]),
    (["distill", "--experts", "/nowhere"], ["holds no experts"]),
    (["import", "none.pt", "--dataset", "digits", "--out", "o"], ["none.pt: there is no such file"]),
    (["import", "none.pt", "--dataset", "digits", "--out", "o", "--network.width", "0"], ["network.width 0"]),
    (["push", "/nowhere", "someone/small"], ["name the licence of the source"]),
    (["push", "/nowhere", "someone/small", "--licence", "mit"], ["there is no such file"]),
    (["train", "/nowhere", "--out", "net.txt"], ["a network is saved as .safetensors, .pt, .onnx"]),
    (["train", "/nowhere", "--out", "net.pt", "--epochs", "0"], ["epochs 0", "raise --epochs"]),
    (["export", "hf://nobody", "--out", "x.npz"], ["write hf://user/name"]),
])  # fmt: skip
def test_bad_input_is_one_clear_sentence(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 1
    assert err.startswith("error:")
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


def test_paths_that_cannot_be_written_and_strange_ones(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code, _, err = call(capsys, "run", *SMALL, "--out", tmp_path / "file")
    assert (code, "choose another path" in err) == (1, True)
    code, out, _ = call(capsys, "export", finished, "--out", tmp_path / "a[b]" / "set[/bold].npz")
    assert (code, "set[/bold].npz" in out) == (0, True)


def test_out_of_memory_is_said(capsys, monkeypatch):
    import torch

    for error in (
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ):

        def fail(_, error=error):
            raise error

        monkeypatch.setitem(runners.RUNNERS, runners.Run, fail)
        code, _, err = call(capsys, "run")
        assert (code, "out of memory; lower" in err) == (1, True)


def test_an_offline_name(capsys, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "run", "--dataset", "uoft-cs/cifar10")
    assert (code, "neither a folder or file here" in err) == (1, True)


def test_experts_of_another_network_name_the_field(finished, tmp_path, capsys):
    code, _, err = call(
        capsys, "distill", *SMALL, "--network.width", 9, "--experts", finished / "experts", "--out", tmp_path
    )
    assert (code, "network.width: 8, not 9" in err) == (1, True)


def test_a_damaged_set(finished, tmp_path, capsys):
    whole = (finished / "distilled.safetensors").read_bytes()
    (tmp_path / "d.safetensors").write_bytes(whole[:-10])
    code, _, err = call(capsys, "show", tmp_path / "d.safetensors")
    assert (code, "not a readable safetensors file" in err) == (1, True)


def test_a_full_disk_is_said_and_nothing_is_lost(finished, tmp_path, capsys, monkeypatch):
    import errno

    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    code, _, err = call(capsys, "run", *SMALL, "--out", tmp_path / "run")
    assert (code, "nothing was half-written" in err) == (1, True)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}


def test_flags_do_what_they_say(monkeypatch):
    """Trap 9 of the public code: `--flag False` parsed as true."""
    seen = []
    monkeypatch.setitem(runners.RUNNERS, runners.Run, seen.append)
    assert main.main(["run", "--expert.no-keep-all", "--seed", "7", "--device", "cpu"]) == 0
    assert main.main(["run", "--expert.keep-all", "--preset", "cifar10-ipc10", "--dataset", "mine", "--ipc", "20"]) == 0
    assert main.main(["run", "--expert.keep-all", "False"]) == 2
    first, second = seen
    first, second = first.settings, second.settings
    assert (first.expert.keep_all, first.seed, first.device) == (False, 7, "cpu")
    assert (second.expert.keep_all, second.ipc, second.stages[0].start_epochs) == (True, 20, (0, 20))


@pytest.mark.parametrize(("flags", "start"), [
    ([], (8, 11)), (["--datm.start-epochs", "auto"], None), (["--datm.start-epochs", "None"], None),
    (["--datm.start-epochs", "2", "5"], (2, 5)), (["--preset", "none"], None), (["--dataset", "mine"], None),
    (["--ipc", "10"], (26, 29)),
])  # fmt: skip
def test_start_epochs_are_found_unless_they_are_given_or_tuned(flags, start, monkeypatch):
    seen = []
    monkeypatch.setitem(runners.RUNNERS, runners.Run, seen.append)
    assert main.main(["run", *flags]) == 0
    assert seen[0].settings.stages[0].start_epochs == start


def test_every_stage_has_flags_of_its_own(monkeypatch):
    seen = []
    monkeypatch.setitem(runners.RUNNERS, runners.Run, seen.append)
    assert (
        main.main("run --method datm rat-bptt --datm.iterations 7 --rat-bptt.window 9 --rat-bptt.lr-images 3".split())
        == 0
    )
    given = seen[0].settings
    assert given.method == ("datm", "rat-bptt")
    assert (given.stages[0].iterations, given.stages[1].window, given.stages[1].lr_images) == (7, 9, 3.0)
    assert given.stages[1].pool > 0  # it refines


def test_help_shows_the_methods_that_were_chosen_and_no_others(capsys):
    code, out, _ = call(capsys, "run", "--method", "rat-bptt", "--help")
    assert code == 0
    assert "--rat-bptt.window" in out
    assert "--datm." not in out
    assert "matching" not in out.replace("`potstill methods`", "")


def test_methods_are_listed_and_one_shows_its_cells(capsys):
    code, out, _ = call(capsys, "methods")
    assert code == 0
    assert all(name in out for name in METHODS)
    code, out, _ = call(capsys, "methods", "datm")
    assert (code, "cifar10-ipc10" in out, "Guo et al." in out, "lr_images" in out) == (0, True, True, True)
    assert call(capsys, "methods", "herding")[0] == 0


def test_a_selection_runs_without_experts_of_its_own(tmp_path, capsys):
    flags = "--network.width 8 --evaluation.protocol quick --evaluation.epochs 3 --evaluation.full-seeds 0".split()
    code, out, _ = call(capsys, "run", "--method", "random", *flags, "--out", tmp_path)
    assert code == 0
    assert "random real images" in out
    assert load(tmp_path).kind == "hard"
    assert call(capsys, "show", tmp_path, "--out", tmp_path / "i.png")[0] == 0


@pytest.fixture(scope="module")
def few():
    return [*SMALL[:-6], *"--evaluation.protocol quick --evaluation.epochs 2 --evaluation.full-epochs 1".split()]


def test_explore_stages_and_ablations_print_what_they_found(few, tmp_path, capsys):
    flags = [*few, "--datm.start-epochs", "0", "1", "--datm.iterations", "1"]
    code, out, _ = call(
        capsys, "explore", "stages", *flags, "--ipcs", "1", "2", "--width", "1", "--starts", "0", "2", "--out", tmp_path
    )
    assert code == 0
    assert all(
        words in out for words in ("gain", "Best matched, by validation images: epochs", "stages.html", "stages.png")
    )
    assert (tmp_path / "stages.html").is_file()
    code, out, _ = call(capsys, "explore", "ablations", *flags, "--out", tmp_path)
    assert code == 0
    assert all(words in out for words in ("learned", "TESLA", "ablations.html"))


def test_lossless_prints_the_size_it_found(few, tmp_path, capsys):
    flags = [*few, "--datm.start-epochs", "0", "1", "--datm.iterations", "1", "--margin", "1"]
    code, out, _ = call(capsys, "lossless", *flags, "--most", "2", "--out", tmp_path)
    assert code == 0
    assert "1 images per class of about" in out
    assert (tmp_path / "lossless.html").is_file()


def test_a_comparison_ends_with_1_where_rows_failed_after_all_others_are_done(few, tmp_path, capsys, monkeypatch):
    def failing(self, folder):
        if self.settings.method == ("dm",):
            raise PotstillError("there is no room; free some.")
        yield from whole(self, folder)

    whole = task.SetTask.perform
    shared = [*few[: few.index("--datm.start-epochs")], *few[few.index("--evaluations") :]]
    command = ["compare", "--methods", "dm:iterations=1", "--ipcs", "1", "--set-seeds", "1", *shared, "--out", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(task.SetTask, "perform", failing)
        code, out, err = call(capsys, *command, "--json")
    page = tmp_path / "compare.html"
    assert (code, json.loads(out)["rows"][2]["failed"]) == (1, "there is no room; free some.")
    assert f"1 row failed: the notes at the end of {page} say why" in err
    assert "there is no room; free some." in page.read_text()
    assert call(capsys, "compare", "--show", "--out", tmp_path)[0] == 0
    assert call(capsys, *command)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_and_the_same_command_continues(tmp_path, number):
    command = [sys.executable, "-m", "potstill", "run", *SMALL, "--datm.iterations", "400", "--out", "run"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 5):
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "The same command continues where it stopped" in err
    assert "Traceback" not in err
    done = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["iteration"]
    from potstill import files

    _, header = files.read_tensors(tmp_path / "run" / "checkpoint.safetensors", "checkpoint")
    assert header["iteration"] in (done, done + 1)


def test_tensorboard_is_only_asked_for_where_it_is_there(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = call(capsys, "run", *SMALL, "--tensorboard", "--out", tmp_path / "run")
    assert (code, "pip install tensorboard" in err) == (1, True)
