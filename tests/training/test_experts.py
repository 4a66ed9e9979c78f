"""Experts and their store: real trajectories, resumable, and held to what they were trained on."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from potstill import files
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


def test_two_seeds_that_begin_at_once_never_mix(tmp_path):
    started = [process(tmp_path, seed=seed) for seed in (0, 1)]
    printed = [p.communicate()[0] for p in started]
    refused = ["refused" in text for text in printed]
    assert sorted(refused) == [False, True]
    winner, loser = refused.index(False), refused.index(True)
    assert f"seed: {winner}, not {loser}" in printed[loser]
    assert not any(line.split()[0].isdigit() for line in printed[loser].splitlines())  # it trained nothing
    store = trajectories.open_store(tmp_path)
    assert (len(store), store.identity["seed"]) == (3, winner)


def test_who_waits_is_refused_where_the_folder_is_taken_for_another_seed(tmp_path):
    """Those it waited for were killed before they left anything, and another came first."""
    problem, settings = prepare_problem(tiny()), tiny(expert={"count": 3})
    with files.locked(tmp_path, "test"):
        trajectories.create(tmp_path, identity_of(settings, problem), [0, 1, 2, 3])
        claims = [trajectories.claim(tmp_path, number) for number in range(3)]
    waiting = process(tmp_path, seed=0)
    assert "waiting for another process" in waiting.stdout.readline()
    with files.locked(tmp_path, "test", wait=10.0):
        for lock in claims:
            lock.release()
        trajectories.create(tmp_path, identity_of(replace(settings, seed=1), problem), [0, 1, 2, 3])
        begun = trajectories.claim(tmp_path, 0)
    printed = waiting.communicate()[0]
    begun.release()
    assert "refused" in printed
    assert "seed: 1, not 0" in printed
    assert not list(tmp_path.glob("*.safetensors"))


def identity_of(settings, problem):
    return experts.identity(settings.expert, problem, settings.seed, settings.augment)


def test_an_expert_of_another_folder_is_refused(tmp_path):
    train(tiny(), tmp_path / "mine")
    train(tiny(seed=1), tmp_path / "other")
    shutil.copy(trajectories.expert_path(tmp_path / "other", 1), tmp_path / "mine")
    for reading in (trajectories.open_store, lambda folder: train(tiny(), folder)):
        with pytest.raises(PotstillError, match="expert-01.*comes from another folder; put it back there, or delete"):
            reading(tmp_path / "mine")
    trajectories.expert_path(tmp_path / "mine", 1).unlink()
    assert len(train(tiny(), tmp_path / "mine")[1]) == 2


@pytest.mark.parametrize("part", ["cut", "header", "theta"])
def test_a_damaged_expert_is_a_sentence_and_trained_anew_when_it_is_deleted(tmp_path, part):
    _, store = train(tiny(), tmp_path)
    begin, _ = store.segment(1, 0, 1)
    path = trajectories.expert_path(tmp_path, 1)
    whole = bytearray(path.read_bytes())
    at = {"header": whole.find(b"accuracy") + 12, "theta": whole.find(begin.numpy().tobytes()) + 3}.get(part)
    if at is not None:
        whole[at] ^= 1
    path.write_bytes(whole if at is not None else whole[:-9])
    with pytest.raises(PotstillError, match=r"expert-01.* (damaged|truncated)"):
        trajectories.open_store(tmp_path).segment(1, 0, 1)
    path.unlink()
    _, again = train(tiny(), tmp_path)
    assert torch.equal(again.segment(1, 0, 1)[0], begin)


def test_a_folder_in_which_nothing_was_trained_may_be_taken_by_another(tmp_path):
    with files.locked(tmp_path, "test"):
        trajectories.create(tmp_path, {"seed": 5}, [0])  # of a run that was interrupted at once
    _, store = train(tiny(), tmp_path)
    assert store.identity["seed"] == 0


def test_no_locks_are_left(tmp_path):
    train(tiny(), tmp_path)
    assert not list(tmp_path.glob("expert-*.lock"))
    assert not (tmp_path / ".lock.json").exists()


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


@pytest.fixture
def old(tmp_path):
    """A folder of experts that 0.1.0 trained with the settings of ``tiny``."""
    return Path(shutil.copytree(KEPT / "finished" / "experts", tmp_path / "experts"))


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("[!.]*")}


def test_a_store_of_0_1_0_is_taken_as_it_is_and_not_written_to(old):
    before = contents(old)
    _, store = train(tiny(), old)
    assert contents(old) == before
    manifest = files.read_json(old / "manifest.json")
    assert list(store.accuracies) == manifest["accuracies"]
    assert store.seconds == manifest["seconds"]
    begin, end = store.segment(0, store.epochs[0], 1)
    assert begin.shape == end.shape == store.last(0)[0].shape


def test_more_experts_are_added_to_a_store_of_0_1_0(old):
    before = contents(old)
    _, store = train(tiny(expert={"count": 3}), old)
    after = contents(old)
    assert {name: after[name] for name in before} == before
    assert list(store.accuracies[:2]) == files.read_json(old / "manifest.json")["accuracies"]
    assert len(store) == 3


def test_an_expert_that_0_1_0_did_not_enter_is_trained_anew(old):
    """It was killed after writing the file, before the manifest: without an accuracy, it is not finished."""
    manifest = files.read_json(old / "manifest.json")
    files.write_json(old / "manifest.json", {**manifest, "accuracies": manifest["accuracies"][:1]})
    assert len(trajectories.open_store(old)) == 1
    _, store = train(tiny(), old)
    assert len(store) == 2
    assert 0 < store.accuracies[1] <= 1


@pytest.mark.parametrize("name", ["finished", "unfinished"])
def test_every_segment_of_0_1_0_is_read(name):
    store = trajectories.open_store(KEPT / name / "experts")
    assert len(store) == 2
    for expert in range(2):
        for epoch in store.epochs[:-1]:
            assert all(bool(theta.isfinite().all()) for theta in store.segment(expert, epoch, 1))


@pytest.mark.parametrize("gone", ["epochs", "expert"])
def test_a_manifest_that_lacks_something_is_a_sentence(tmp_path, gone):
    folder = tmp_path / "experts"
    shutil.copytree(KEPT / "finished" / "experts", folder)
    told = files.read_json(folder / trajectories.MANIFEST)
    (told if gone in told else told["identity"]).pop(gone)
    files.write_json(folder / trajectories.MANIFEST, told)
    with pytest.raises(PotstillError, match="damaged: it does not say which epochs are kept"):
        trajectories.open_store(folder)
