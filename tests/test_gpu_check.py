"""The check for a lent GPU: what it knows is kept, whatever a part does; and the data that it takes along."""

import json
import sys
import time

import numpy as np
import pytest

from potstill.data import dataset
from recipes import gpu_check, pack


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in the shape of CIFAR-10, more of one class than of the others."""
    folder, rng = tmp_path_factory.mktemp("cifar10"), np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 20)):
        pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", images=pixels, labels=np.minimum(np.arange(count) % 12, 9))
    return folder


def record_of(out):
    return json.loads((out / "record.json").read_text())


def run(out, *flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out), "--rehearse", *flags])
    gpu_check.main()
    return record_of(out)


def test_what_is_packed_is_the_same_bit_for_bit(images, tmp_path):
    pack.pack(str(images), tmp_path / "packed.npz")
    pack.unpack(tmp_path / "packed.npz", tmp_path / "again")
    for split in ("train", "test"):
        before, after = (np.load(folder / f"{split}.npz") for folder in (images, tmp_path / "again"))
        pixels, others = (sorted(image.tobytes() for image in found["images"]) for found in (before, after))
        assert pixels == others
        for label in range(10):
            own, there = ({i.tobytes() for i in found["images"][found["labels"] == label]} for found in (before, after))
            assert own == there
    assert len(dataset.load(str(tmp_path / "again")).test.labels) == 20


def test_the_training_images_that_fit_are_as_many_of_each_class(images, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "SIDE", 5)
    pack.pack(str(images), tmp_path / "packed.npz", most=3 * 25 * 3200)  # one mosaic of test images, two of training
    pack.unpack(tmp_path / "packed.npz", tmp_path / "again")
    labels = np.load(tmp_path / "again" / "train.npz")["labels"]
    assert np.bincount(labels).tolist() == [5] * 10
    assert (tmp_path / "packed.npz").stat().st_size < 3 * 25 * 3200


def test_a_command_is_followed_line_by_line_to_its_end(tmp_path):
    lines = []
    code = "print('one'); print('two'); raise SystemExit(3)"
    assert gpu_check.follow([sys.executable, "-c", code], tmp_path / "log", 60, lines.append) == "exit code 3: two"
    assert lines == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    code = (
        "import subprocess, sys, time; print('begun', flush=True);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5); open(\"late\", \"w\")'],"
        f"cwd={str(tmp_path)!r}); time.sleep(60)"
    )
    lines = []
    assert gpu_check.follow([sys.executable, "-c", code], tmp_path / "log", 3.0, lines.append) == "ended after 3 s"
    assert lines == ["begun"]
    time.sleep(4)
    assert not (tmp_path / "late").exists()


def test_a_part_that_fails_leaves_the_others_their_turn(tmp_path, monkeypatch):
    def fails(check):
        check.put("tests", counts={"passed": 1})
        raise ImportError("no module named safetensors")

    monkeypatch.setitem(gpu_check.PARTS, "tests", fails)
    found = run(tmp_path, "--parts", "tests", "machine", "cifar10", "--packed", "nowhere", monkeypatch=monkeypatch)
    assert found["tests"]["ended"] == "ImportError: no module named safetensors"
    assert found["tests"]["counts"] == {"passed": 1}
    assert found["machine"]["device"] == "cpu"
    assert "recipes/pack.py" in found["cifar10"]["ended"]


def test_the_outcome_of_each_test_is_noted(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    check = gpu_check.Check(tmp_path, True, 1000.0, time.monotonic() + 1000, {})
    gpu_check._tested(check, "tests", ["tests/test_some.py"], 0)
    found = record_of(tmp_path)["tests"]
    assert found["counts"] == {"passed": 1, "failed": 1}
    assert found["failed"] == ["tests/test_some.py::test_b"]
    assert found["ended"].startswith("exit code 1: ")


def test_cifar10_is_distilled_from_what_was_packed(images, tmp_path, capsys):
    pack.pack(str(images), tmp_path / "packed.npz")
    capsys.readouterr()
    gpu_check.distil(tmp_path, tmp_path / "packed.npz", 60, rehearse=True)
    told = {}
    for line in capsys.readouterr().out.splitlines():
        told |= json.loads(line) if line.startswith("{") else {}
    assert told["iterations"] == 2
    assert 0 <= told["accuracy"]["distilled"]["mean"] <= 1
    assert (tmp_path / "distilled.safetensors").is_file()
