"""Experts and their store: real trajectories, resumable, and held to what they were trained on."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig
from potstill.runs.api import run_to_completion
from potstill.runs.run import expert_needs, prepare_problem
from potstill.training import experts, trajectories
from tests.conftest import KEPT, tiny


def events(settings, folder, problem=None):
    """Training the experts of some settings."""
    problem = problem or prepare_problem(settings)
    needed = expert_needs(settings)
    return experts.train(
        problem, folder, settings.expert, seed=settings.seed, augment=settings.augment, compile=settings.compile,
        keep=needed.epochs,
    )  # fmt: skip


def train(settings, folder):
    problem = prepare_problem(settings)
    run_to_completion(events(settings, folder, problem))
    return problem, trajectories.open_store(folder)


def test_snapshots_differ_and_lead_to_the_last(tmp_path):
    """Trap 1 of the public code: aliased snapshots make every epoch the last."""
    config = tiny(expert={"keep_all": True})
    problem, store = train(config, tmp_path)
    assert store.epochs == (0, 1, 2, 3, 4)
    assert len(store) == 2
    begin, end = store.segment(0, 0, 4)
    assert torch.equal(begin, flat.initial(config.network, problem.dataset.shape, 10, _seed(config, 0)))
    assert torch.equal(end, store.last(0)[0])
    steps = [store.segment(0, t, 1) for t in range(4)]
    assert all(float((a - b).norm()) > 1e-3 for a, b in steps)
    assert all(torch.equal(steps[t][1], steps[t + 1][0]) for t in range(3))
    assert not torch.equal(store.segment(1, 0, 1)[0], begin)
    accuracy = flat.accuracy(problem.network, end, problem.val.images, problem.val.labels)
    assert accuracy == pytest.approx(store.accuracies[0])


def _seed(config, number):
    from potstill.seeds import derive

    return derive(config.seed, "expert", number)


def test_only_the_epochs_that_are_matched_are_kept(tmp_path):
    _, store = train(tiny(datm={"start_epochs": (1, 2)}), tmp_path)
    assert store.epochs == (1, 2, 3)
    with pytest.raises(PotstillError, match="keeps no snapshot of epoch 0, only of 1–3"):
        store.segment(0, 0, 1)


def test_half_precision_on_disk(tmp_path):
    _, full = train(tiny(), tmp_path / "a")
    _, half = train(tiny(expert={"storage": "float16"}), tmp_path / "b")
    a, b = full.segment(0, 1, 1)[0], half.segment(0, 1, 1)[0]
    assert torch.equal(a.half().float(), b)
    sizes = [(folder / "expert-00.safetensors").stat().st_size for folder in (tmp_path / "a", tmp_path / "b")]
    assert sizes[1] < 0.7 * sizes[0]


def test_more_experts_are_added_to_those_there(tmp_path):
    _, two = train(tiny(), tmp_path)
    before = two.segment(1, 0, 2)
    _, three = train(tiny(expert={"count": 3}), tmp_path)
    assert len(three) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, three.segment(1, 0, 2), strict=True))


def test_an_interrupted_expert_goes_on_bit_for_bit(tmp_path, monkeypatch):
    _, whole = train(tiny(), tmp_path / "whole")
    monkeypatch.setattr(experts, "CHECKPOINT_SECONDS", 0.0)
    config = tiny()
    going = events(config, tmp_path / "parts")
    for _ in range(7):  # into the second expert
        next(going)
    going.close()
    assert (tmp_path / "parts" / "expert-01.partial.safetensors").exists()
    _, parts = train(config, tmp_path / "parts")
    for expert in (0, 1):
        assert torch.equal(whole.last(expert)[0], parts.last(expert)[0])
        assert all(
            torch.equal(a, b) for a, b in zip(whole.segment(expert, 1, 2), parts.segment(expert, 1, 2), strict=True)
        )
    assert not list((tmp_path / "parts").glob("*.partial.*"))


def test_an_expert_that_diverges_is_told_and_not_stored(tmp_path):
    config = tiny(expert={"step_size": 1e30})
    with pytest.raises(PotstillError, match="expert 0 diverged in epoch 1.* lower --expert.step-size"):
        train(config, tmp_path)
    assert len(trajectories.open_store(tmp_path)) == 0


def test_running_statistics_are_stored(tmp_path):
    config = tiny(network={"norm": "batch"}, expert={"count": 1})
    problem, store = train(config, tmp_path)
    theta, buffers = store.last(0)
    assert len(buffers) > 0
    found = flat.accuracy(problem.network, theta, problem.val.images, problem.val.labels, buffers)
    assert found == pytest.approx(store.accuracies[0])


@pytest.mark.parametrize(("changes", "word"), [
    ({"network": {"width": 9}}, "network.width: 8, not 9"),
    ({"transform": "zca"}, "transform: 'standardise', not 'zca'"),
    ({"validation": 0.3}, "dataset.fingerprint"),
    ({"expert": {"step_size": 0.5}}, "expert.step_size: 0.05, not 0.5"),
    ({"seed": 1}, "seed: 0, not 1"),
])  # fmt: skip
def test_experts_of_another_kind_are_refused(tmp_path, changes, word):
    train(tiny(expert={"count": 1}), tmp_path)
    with pytest.raises(PotstillError) as error:
        train(tiny(expert={"count": 1, **changes.pop("expert", {})}, **changes), tmp_path)
    assert word in str(error.value)
    assert "another folder" in str(error.value)


def test_a_students_subject_is_checked(tmp_path):
    config = tiny(expert={"count": 1})
    problem, _ = train(config, tmp_path)
    trajectories.open_store(tmp_path, experts.subject(problem))
    other = replace(problem, transform=replace(problem.transform, kind="zca"))
    with pytest.raises(PotstillError, match="transform"):
        trajectories.open_store(tmp_path, experts.subject(other))
    with pytest.raises(PotstillError, match=r"network\.width"):
        trajectories.open_store(tmp_path, experts.subject(replace(problem, network_config=NetworkConfig(width=9))))


def test_a_folder_without_experts_and_a_foreign_manifest(tmp_path):
    with pytest.raises(PotstillError, match="holds no experts .* train some with `potstill experts`"):
        trajectories.open_store(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "other"}')
    with pytest.raises(PotstillError, match="not a manifest of potstill's experts"):
        trajectories.open_store(tmp_path)


# --- several processes, and damage ---------------------------------------------------------------------------------

TRAIN = """
import sys, time
from pathlib import Path
from potstill.runs.api import run_to_completion
from potstill.errors import PotstillError
from potstill.training import experts
from tests.conftest import tiny
from tests.training.test_experts import events
folder, seed, slow = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
experts.POLL_SECONDS = 0.05
def tell(event):
    print(event.get("expert"), event.get("epoch"), event.get("doing", ""), flush=True)
    time.sleep(slow)
try:
    run_to_completion(events(tiny(seed=seed, expert={"count": 3}), folder), tell)
except PotstillError as error:
    print("refused", error, flush=True)
"""


def process(folder, seed=0, slow=0.0):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", TRAIN, str(folder), str(seed), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def test_two_processes_share_the_experts_of_a_folder(tmp_path):
    _, alone = train(tiny(expert={"count": 3}), tmp_path / "alone")
    both = [process(tmp_path / "shared", slow=0.1) for _ in range(2)]
    trained = [{line.split()[0] for line in p.communicate()[0].splitlines() if line.split()[1].isdigit()} for p in both]
    shared = trajectories.open_store(tmp_path / "shared")
    assert len(shared) == 3
    assert shared.accuracies == alone.accuracies
    assert all(torch.equal(alone.last(n)[0], shared.last(n)[0]) for n in range(3))
    assert trained[0] | trained[1] == {"0", "1", "2"}
    assert not trained[0] & trained[1]  # none was trained twice


def test_two_seeds_that_share_an_empty_folder_never_mix(tmp_path):
    first = process(tmp_path, seed=0, slow=0.2)
    assert first.stdout.readline().startswith("0 1")  # in training, nothing finished yet
    second = process(tmp_path, seed=1)
    printed = second.communicate()[0]
    assert "refused" in printed
    assert "seed: 0, not 1" in printed
    first.communicate()
    store = trajectories.open_store(tmp_path)
    assert (len(store), store.identity["seed"]) == (3, 0)


def test_a_folder_in_which_nothing_was_trained_may_be_taken_by_another(tmp_path):
    events(tiny(), tmp_path).close()
    trajectories.create(tmp_path, {"seed": 5}, [0])  # of a run that was interrupted at once
    _, store = train(tiny(), tmp_path)
    assert store.identity["seed"] == 0


def test_a_damaged_checkpoint_is_trained_anew_with_a_warning(tmp_path, monkeypatch, caplog):
    _, whole = train(tiny(), tmp_path / "whole")
    monkeypatch.setattr(experts, "CHECKPOINT_SECONDS", 0.0)
    going = events(tiny(), tmp_path / "parts")
    for _ in range(3):
        next(going)
    going.close()
    partial = trajectories.partial_path(tmp_path / "parts", 0)
    partial.write_bytes(partial.read_bytes()[:-50])
    with caplog.at_level("WARNING", "potstill"):
        _, parts = train(tiny(), tmp_path / "parts")
    assert "this expert is trained from its first epoch again" in caplog.text
    assert torch.equal(whole.last(0)[0], parts.last(0)[0])


def test_an_expert_is_finished_when_its_file_exists(tmp_path):
    _, store = train(tiny(), tmp_path)
    assert "accuracies" not in (tmp_path / "manifest.json").read_text()
    (tmp_path / "expert-00.safetensors").rename(tmp_path / "elsewhere")
    assert len(trajectories.open_store(tmp_path)) == 0
    (tmp_path / "elsewhere").rename(tmp_path / "expert-00.safetensors")
    assert trajectories.open_store(tmp_path) == store
    assert store.seconds > 0


def test_a_store_of_0_1_0_opens_with_its_accuracies():
    store = trajectories.open_store(KEPT / "finished" / "experts")
    assert len(store) > 0
    assert all(0 < accuracy <= 1 for accuracy in store.accuracies)
    begin, end = store.segment(0, store.epochs[0], 1)
    assert begin.shape == end.shape == store.last(0)[0].shape
