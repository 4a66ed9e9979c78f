"""Several processes at one run: the same sums, the same states, the same set, and one sentence where one is lost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import potstill
from potstill import files, ranks
from potstill.cli import main
from potstill.methods import METHODS
from potstill.runs import loop, record, run, state
from tests.conftest import tiny

SMALL = (
    "--network.width 4 --network.depth 2 --expert.count 3 --expert.epochs 3 --expert.step-size 0.05 "
    "--datm.start-epochs 0 2 --datm.segments 3 --datm.iterations 8 --datm.inner-steps 2 --datm.expert-epochs 1 "
    "--evaluations 2 --evaluation.protocol quick --evaluation.epochs 2 --evaluation.full-epochs 1 "
    "--evaluation.seeds 3"
).split()
PYTHON = (sys.executable, "-W", "ignore")
ROOT = str(Path(potstill.__file__).parents[1])
KILLED = """
import os, signal, sys
from potstill.cli import main
from potstill.runs import loop

whole = loop.differentiate

def differentiate(method, ctx, settings, state):
    if ctx.rank == 1 and state.iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(method, ctx, settings, state)

loop.differentiate = differentiate
main.leave(main.main(sys.argv[1:]))
"""
TWO = """
import sys
from pathlib import Path
from potstill import files, ranks
from potstill.cli import main
from potstill.runs import loop, run, stage
from potstill.runs.api import run_to_completion
from tests.test_ranks import asked, first_state

folder, whole, last = Path(sys.argv[1]), loop.iterate, {}

def iterate(*given):
    for last["state"], metrics in whole(*given):
        yield last["state"], metrics

loop.iterate = iterate
with ranks.together():
    for name in ("dm", "datm"):
        with run.opened(asked(name), folder / name, folder / "experts") as job:
            run_to_completion(run.train_experts(job))
            given = first_state(job)
            _, gradients = loop.differentiate(*given)
            total = dict(zip(gradients, ranks.summed(list(gradients.values()))))
            if ranks.first():
                files.write_tensors(folder / f"{name}.safetensors", "gradients", total, {})
    for name in ("datm-open", "rat-bptt"):
        with run.opened(asked(name), folder / name, folder / "experts") as job:
            run_to_completion(stage.distil(job))
            reached = last["state"]
            tensors = {**reached.variables, **reached.memory, **reached.moments["images"]}
            seen = ranks.gathered({key: files.fingerprint(x) for key, x in tensors.items()} | {"done": reached.total})
            if ranks.first():
                files.write_json(folder / f"{name}.json", seen)
    assert ranks.shared_out(lambda x: x * x, range(5)) == [0, 1, 4, 9, 16]
    assert ranks.from_first(ranks.rank()) == 0
main.leave(0)
"""


def asked(name):
    """Settings of the same experts for all: DM; DATM of three segments, or with all open; a method with a pool."""
    shared = {"ipc": 2, "expert": {"epochs": 7, "keep_all": True}, "compile": "no"}
    if name == "datm-open":
        unset = dict.fromkeys(("start_epochs", "inner_steps", "lr_images"))
        return tiny("datm", **shared, datm={**unset, "iterations": 8, "step_size": 0.05, "segments": 2})
    if name == "rat-bptt":
        own = {"iterations": 6, "unroll": 8, "window": 4, "pool": 2, "real_batch": 300, "inner": "sgd"}
        return tiny("rat-bptt", **shared, **{"rat-bptt": own})
    return tiny(name, **shared, **({"datm": {"segments": 3, "lr_images": 1e3}} if name == "datm" else {}))


def first_state(job):
    """What the loop differentiates in the first iteration of a run."""
    method, ctx, own = job.settings.methods[0], job.context(0), job.settings.stages[0]
    return method, ctx, own, state.begin(method, own, method.begin(ctx, own, None))


def environment(**more):
    return {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", **more}


def torchrun(*program):
    return subprocess.run(
        [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, program)],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip


def by_hand(*program):
    """The same without the launcher, which takes seconds to start: what each process tells on its error stream."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [*PYTHON, *map(str, program)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [process.communicate()[1] for process in started]
    return [process.returncode for process in started], told


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "run"
    done = torchrun("-m", "potstill", "run", *SMALL, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes, started by hand, leave of some methods."""
    folder = tmp_path_factory.mktemp("two")
    codes, told = by_hand("-c", TWO, folder)
    assert codes == [0, 0], told
    return folder


def test_one_process_alone_is_the_first_of_one_and_changes_nothing():
    tensors = [torch.ones(2), torch.zeros(())]
    with ranks.together():
        assert (ranks.rank(), ranks.world(), ranks.first()) == (0, 1, True)
        assert all(found is given for found, given in zip(ranks.summed(tensors), tensors, strict=True))
        assert ranks.total(0.1) == 0.1
        assert ranks.shared_out(lambda x: 2 * x, [1, 2, 3]) == [2, 4, 6]
        assert (ranks.gathered("a"), ranks.from_first("b")) == (["a"], "b")
        assert list(ranks.mine(range(3))) == [0, 1, 2]


def test_two_processes_leave_one_run_and_print_once(undisturbed):
    folder, done = undisturbed
    assert {"config.json", "distilled.safetensors", "results.json", "report.html"} <= {p.name for p in folder.iterdir()}
    assert [line["iteration"] for line in record.read_metrics(folder / "metrics.jsonl")] == list(range(8))
    assert json.loads((folder / "results.json").read_text())["environment"]["processes"] == 2
    assert done.stdout.count("trained on") == 1
    assert "will distil" not in done.stderr  # nobody is idle


def test_their_experts_are_those_of_one_process_bit_for_bit(undisturbed, tmp_path):
    assert main.main(["experts", *SMALL, "--out", str(tmp_path / "experts")]) == 0
    for number in range(3):
        path = f"experts/expert-{number:02}.safetensors"
        found, alone = (files.read_tensors(folder / path, "expert")[0] for folder in (undisturbed[0], tmp_path))
        assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_a_lost_process_ends_all_with_a_sentence_and_the_same_command_goes_on(undisturbed, tmp_path):
    script, folder = tmp_path / "killed.py", tmp_path / "run"
    script.write_text(KILLED)
    command = ("distill", *SMALL, "--experts", undisturbed[0] / "experts", "--out", folder)
    ended = torchrun(script, *command)
    assert ended.returncode != 0
    # the others see that it is gone, or the launcher interrupts them, whichever comes first
    assert ended.stderr.count("The same command continues where it stopped.") == 1, ended.stderr
    assert len(record.read_metrics(folder / "metrics.jsonl")) == 5
    codes, told = by_hand("-m", "potstill", *command)
    assert codes == [0, 0], told
    for name in ("distilled.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (undisturbed[0] / name).read_bytes(), name


@pytest.mark.parametrize("name", ["dm", "datm"])
def test_their_gradients_add_up_to_that_of_one_process(name, two):
    job = run.open_run(asked(name), two / f"{name}-alone", two / "experts")
    _, alone = loop.differentiate(*first_state(job))
    together, _ = files.read_tensors(two / f"{name}.safetensors", "gradients")
    for key, gradient in alone.items():
        assert float(gradient.norm()) > 0
        assert float((together[key] - gradient).norm()) <= 1e-6 * float(gradient.norm()), key


@pytest.mark.parametrize("name", ["datm-open", "rat-bptt"])
def test_their_states_stay_the_same_bit_for_bit(name, two):
    one, other = json.loads((two / f"{name}.json").read_text())
    assert one == other
    assert one["done"] == asked(name).iterations


def test_what_one_of_them_measures_is_taken_by_both(two):
    found = record.history(two / "datm-open")[1]["measured"]["datm"]
    assert METHODS["datm"].open_fields(asked("datm-open").stages[0])
    assert {entry["rung"] for entry in found["rungs"]} >= {0}
    assert None not in (found["settings"][name] for name in ("start_epochs", "inner_steps", "lr_images"))


def test_a_device_of_their_own_and_a_folder_for_the_experts(monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(potstill.PotstillError, match="takes a device of its own; give --device cuda"):
        run._check_ranks(tiny(device="cuda:0"), tmp_path, tmp_path / "experts")
    with pytest.raises(potstill.PotstillError, match="give another --experts"):
        run._check_ranks(tiny(), tmp_path, tmp_path)
