"""Things that are kept: made once, by one process at a time, and never needed."""

import subprocess
import sys
import time

import pytest
import torch

from potstill import files, store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counted(calls):
    def make():
        calls.append(1)
        return {"x": torch.arange(3)}, {"n": len(calls)}

    return make


def test_a_thing_is_made_once_for_each_identity():
    calls = []
    first, header = store.once("things", {"a": 1}, counted(calls))
    again, _ = store.once("things", {"a": 1}, counted(calls))
    assert torch.equal(first["x"], again["x"])
    assert (header["n"], len(calls)) == (1, 1)
    store.once("things", {"a": 2}, counted(calls))
    assert len(calls) == 2


def test_plain_values_are_kept_with_their_identity(cache):
    made = [store.once_json("figures", ["a", 1], lambda: {"accuracy": 0.5, "of": (1, 2)}) for _ in range(2)]
    assert made[0] == made[1] == {"accuracy": 0.5, "of": [1, 2]}
    (path,) = (cache / "figures").glob("*")  # and no lock is left
    assert files.read_json(path)["identity"] == ["a", 1]


def test_an_entry_of_0_1_0_is_still_good(cache):
    """Its identity lay beside it, and no checksum."""
    path = cache / "figures" / f"{files.fingerprint(['a', 1])}.json"
    files.write_json(path, {"accuracy": 0.5, "seconds": 2.0, "identity": ["a", 1]})
    assert store.once_json("figures", ["a", 1], dict) == {"accuracy": 0.5, "seconds": 2.0}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_what_is_damaged_is_made_anew_with_a_warning(cache, content, caplog):
    calls = []
    store.once("things", 1, counted(calls))
    store.once_json("figures", 1, lambda: {"accuracy": 0.5})
    assert not caplog.records
    for path in cache.rglob("*.*"):
        path.write_bytes(content)
    store.once("things", 1, counted(calls))
    assert len(calls) == 2
    assert store.once_json("figures", 1, lambda: {"accuracy": 0.7}) == {"accuracy": 0.7}
    assert [record.getMessage().endswith("; it is made anew") for record in caplog.records] == [True, True]
    caplog.clear()
    assert store.once_json("figures", 1, dict) == {"accuracy": 0.7}
    assert not caplog.records


def test_a_flipped_bit_never_gives_another_result(cache):
    """Nor does one in the identity, which would make it the entry of something else."""
    made = {"accuracy": 0.5, "seconds": 12.25}
    store.once_json("figures", ["a", 1], lambda: made)
    (path,) = (cache / "figures").glob("*.json")
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0, position % 8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            found = store.once_json("figures", ["a", 1], lambda: made)
            assert {name: found[name] for name in made} == made


def test_what_cannot_be_written_is_not_kept_and_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    for number in range(3):
        assert store.once("things", number, counted([]))[1]["n"] == 1
    (record,) = caplog.records
    assert "not kept for the next time" in record.getMessage()
    assert "set POTSTILL_CACHE" in record.getMessage()


def test_an_error_while_making_is_passed_on_and_nothing_is_kept(cache):
    def fail():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        store.once_json("figures", 1, fail)
    assert not list((cache / "figures").iterdir())
    assert store.once_json("figures", 1, lambda: {"accuracy": 0.5}) == {"accuracy": 0.5}


MAKE = """
import sys, time
from potstill import store
def make():
    print("made", flush=True)
    time.sleep(float(sys.argv[1]))
    return {"accuracy": 0.5}
print("asked", flush=True)
print(store.once_json("figures", "the same", make)["accuracy"], flush=True)
"""


def making(seconds=2.0):
    return subprocess.Popen([sys.executable, "-c", MAKE, str(seconds)], stdout=subprocess.PIPE, text=True)


def test_several_processes_make_it_once():
    started = [making() for _ in range(3)]
    printed = [process.communicate()[0].split() for process in started]
    assert sorted(printed) == [["asked", "0.5"], ["asked", "0.5"], ["asked", "made", "0.5"]]


def test_who_waits_for_a_process_that_is_killed_makes_it_itself():
    first = making(seconds=600)
    assert [first.stdout.readline() for _ in range(2)] == ["asked\n", "made\n"]
    second = making()
    assert second.stdout.readline() == "asked\n"
    time.sleep(0.5)
    first.kill()
    first.communicate()
    assert second.communicate()[0].split() == ["made", "0.5"]
