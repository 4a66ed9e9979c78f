"""Files are whole or absent, and say what they are."""

import errno
import os
import subprocess
import sys
import threading

import pytest
import torch

from potstill import files
from potstill.data.distilled import load
from potstill.errors import PotstillError
from tests.conftest import KEPT

KINDS = {  # of the files of 0.1.0, by name or folder
    "checkpoint": "checkpoint", "difficulty": "checkpoint", "distilled": "distilled set", "experts": "expert",
    "snapshots": "snapshot", "start": "start",
}  # fmt: skip


def test_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    files.write_tensors(tmp_path / "x.safetensors", "thing", tensors, {"n": [1, 2]})
    found, header = files.read_tensors(tmp_path / "x.safetensors", "thing")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert (header["n"], header["version"]) == ([1, 2], files.VERSION)


def test_truncated_foreign_or_of_another_kind(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(PotstillError, match="there is no such file"):
        load(path)
    files.write_tensors(path, "thing", {"a": torch.zeros(100)}, {})
    with pytest.raises(PotstillError, match="holds a potstill thing; expected a distilled set"):
        load(path)
    whole = path.read_bytes()
    for part in (whole[:4], whole[: len(whole) // 2], b"", b"PK\x03\x04" + whole):
        path.write_bytes(part)
        with pytest.raises(PotstillError, match="not a readable safetensors file"):
            load(path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(PotstillError, match="not one of potstill's"):
        load(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch, code):
    path = tmp_path / "x.json"
    files.write_json(path, {"old": 1})

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PotstillError, match="no room for .* nothing was half-written. Free some space"):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_other_errors_of_the_system_are_not_dressed_up(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        files.write_json(tmp_path / "x.json", 1)


def test_damaged_json_is_named(tmp_path):
    for content in (b"", b"{", b"\xff\xfe{}", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(PotstillError, match=r"config.json: not valid JSON"):
            files.read_json(tmp_path / "config.json")


def test_fingerprints_tell_values_apart():
    x = torch.arange(6)
    values = [x, x.view(2, 3), x.float(), x + 1, [1], {"a": 1}, {"a": 2}]
    assert len({files.fingerprint(value) for value in values}) == len(values)
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})


def test_differences_name_nested_fields():
    found = files.differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "d": 3, "e": 5})
    assert found == ["a.c: 2, not 4", "e: None, not 5"]


def artefact(path):
    tensors = {
        "theta": torch.randn(5, 7), "labels": torch.arange(4), "half": torch.ones(3).half(), "none": torch.empty(0),
        "mask": torch.tensor([True, False]), "step": torch.tensor(0.5),
    }  # fmt: skip
    files.write_tensors(path, "thing", tensors, {"classes": ["a", "ü"], "n": 3}, by_row=("theta",))
    return tensors


def test_any_flipped_bit_is_a_sentence_and_never_another_result(tmp_path):
    """In the length of the header, the header with its names, types and shapes, every tensor, the last byte."""
    path = tmp_path / "x.safetensors"
    artefact(path)
    whole, missed = path.read_bytes(), []
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                files.read_tensors(path, "thing")
            except PotstillError as error:
                if str(path) in str(error):
                    continue
            missed.append((position, bit))
    assert not missed


def test_a_file_cut_short_anywhere_or_with_more_behind_it_is_a_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    artefact(path)
    whole = path.read_bytes()
    for damaged in (*(whole[:length] for length in range(len(whole))), whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(PotstillError, match="not a readable safetensors file.* Copy it again or make it anew"):
            files.read_tensors(path, "thing")


def test_a_row_is_checked_when_it_is_read_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = artefact(path)
    with files.opened(path, "thing") as reader:
        assert torch.equal(reader.row("theta", 3), tensors["theta"][3])
    whole = bytearray(path.read_bytes())
    at = whole.find(tensors["theta"][3].numpy().tobytes())
    whole[at + 2] ^= 16
    path.write_bytes(whole)
    with files.opened(path, "thing") as reader:
        assert torch.equal(reader.row("theta", 2), tensors["theta"][2])
        with pytest.raises(PotstillError, match=r"damaged: 'theta' does not match its checksum; copy the file again"):
            reader.row("theta", 3)
        with pytest.raises(PotstillError, match="damaged"):
            reader.tensor("theta")
        with pytest.raises(PotstillError, match="'theta' has 5 rows, but row 5 is needed"):
            reader.row("theta", 5)


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = artefact(path)
    read, _ = files.read_tensors(path, "thing")
    with files.opened(path, "thing") as reader:
        row = reader.row("theta", 3)
    path.write_bytes(bytes(path.stat().st_size))  # in place, as copying over it does
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert torch.equal(row, tensors["theta"][3])


def test_a_header_of_another_file_does_not_hide_what_this_one_is(tmp_path):
    artefact(tmp_path / "x.safetensors")
    _, header = files.read_tensors(tmp_path / "x.safetensors", "thing")
    files.write_tensors(tmp_path / "y.safetensors", "other", {"z": torch.zeros(1)}, header)
    assert files.read_tensors(tmp_path / "y.safetensors", "other")[1]["n"] == 3


def test_a_file_of_a_newer_potstill_is_refused_and_an_older_one_upgraded(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    monkeypatch.setattr(files, "FORMAT", 3)
    artefact(path)
    monkeypatch.setattr(files, "FORMAT", 2)
    with pytest.raises(PotstillError, match=r"in format 3, which this one .*format 2\) cannot read; install a newer"):
        files.read_tensors(path, "thing")
    seen = []
    _, header = files.read_tensors(
        KEPT / "finished" / "start.safetensors",
        "start",
        upgrade=lambda header, number: (seen.append(number), header)[1],
    )
    assert seen == [1]
    assert header["version"] == "0.1.0"

    def check(tensors, header):
        raise PotstillError("contradicts itself")

    with pytest.raises(PotstillError, match="contradicts itself"):
        files.read_tensors(KEPT / "finished" / "start.safetensors", "start", check=check)


def test_every_file_of_0_1_0_opens():
    paths = sorted(KEPT.rglob("*.safetensors"))
    assert len(paths) > 20
    for path in paths:
        kind = KINDS.get(path.stem, KINDS.get(path.parent.name))
        tensors, header = files.read_tensors(path, kind)
        assert tensors
        assert header["version"] == "0.1.0"
    for path in KEPT.rglob("*.json"):
        assert isinstance(files.read_json(path), dict)


def test_leftovers_of_dead_processes_of_this_machine_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".x.json.{files.host()}.{dead.pid}.tmp", f".x.json.{files.host()}.{os.getpid()}.tmp",
             f".x.json.elsewhere.{dead.pid}.tmp", "x.json"]  # fmt: skip
    for folder in (tmp_path, tmp_path / "experts"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text("x")
    files.clear_leftovers(tmp_path)
    for folder in (tmp_path, tmp_path / "experts"):
        assert {path.name for path in folder.iterdir() if path.is_file()} == set(names[1:])


HOLD = """
import sys
from pathlib import Path
from potstill import files
with files.locked(Path(sys.argv[1]), "distilling"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_locked_folder_says_who_holds_it_and_is_free_after_a_kill(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(PotstillError, match=rf"in use by process {process.pid} on .* since .* \(distilling\); wait"):
        files.locked(tmp_path / "run", "mine").__enter__()
    process.kill()
    process.communicate()
    with files.locked(tmp_path / "run", "mine"), files.locked(tmp_path / "run", "mine, again"):
        pass


def test_a_lock_is_held_until_the_last_of_its_holders_ends(tmp_path):
    """Generators of one thread may end in any order, and by an error."""
    first, second = files.locked(tmp_path / "run", "first"), files.locked(tmp_path / "run", "second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not locked_by_another(tmp_path / "run")
    assert not second.__exit__(RuntimeError, RuntimeError("stopped"), None)
    assert locked_by_another(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock.json").exists()


def locked_by_another(folder):
    """Whether another process gets the lock."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, input="").stdout == "held\n"


def test_a_file_in_the_way_of_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(PotstillError, match="a file is in the way of this folder; choose another path"):
            files.locked(folder, "mine").__enter__()


def test_threads_lock_each_other_out(tmp_path):
    found = []

    def other():
        try:
            with files.locked(tmp_path, "theirs"):
                found.append("held")
        except PotstillError as error:
            found.append(str(error))

    with files.locked(tmp_path, "mine"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "in use by process" in found[0]
    other()
    assert found[1] == "held"


def test_no_pickle_is_executed():
    from pathlib import Path

    import potstill

    for path in Path(potstill.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert all("weights_only=True" in line for line in text.splitlines() if "torch.load(" in line), path
        assert not any(word in text for word in ("pickle.load", "from pickle", "Unpickler(")), path
        assert "allow_pickle=True" not in text, path
