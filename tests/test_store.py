"""Things that are kept: made once, by one process at a time, and never needed."""

import logging
import subprocess
import sys
import time

import pytest
import torch

from potstill import store


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
    made = [store.once_json("figures", ["a", 1], lambda: {"accuracy": 0.5}) for _ in range(2)]
    assert [value["accuracy"] for value in made] == [0.5, 0.5]
    assert made[1]["identity"] == ["a", 1]
    assert len(list((cache / "figures").glob("*"))) == 1  # no lock is left


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_what_is_damaged_is_made_anew(cache, content):
    calls = []
    store.once("things", 1, counted(calls))
    store.once_json("figures", 1, lambda: {"accuracy": 0.5})
    for path in cache.rglob("*.*"):
        path.write_bytes(content)
    store.once("things", 1, counted(calls))
    assert len(calls) == 2
    assert store.once_json("figures", 1, lambda: {"accuracy": 0.7})["accuracy"] == 0.7


def test_what_cannot_be_written_is_not_kept_and_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "potstill"):
        for number in range(3):
            assert store.once("things", number, counted([]))[1]["n"] == 1
    assert caplog.text.count("is not kept for the next time") == 1


MAKE = """
import sys, time
from potstill import store
def make():
    print("made", flush=True)
    time.sleep(1.0)
    return {"accuracy": 0.5}
print(store.once_json("figures", "the same", make)["accuracy"], flush=True)
"""


def test_two_processes_make_it_once():
    started = []
    for _ in range(2):
        started.append(subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True))
        time.sleep(0.05)
    printed = [process.communicate()[0].split() for process in started]
    assert sorted(len(words) for words in printed) == [1, 2]  # "made" was printed by one of them
    assert all(words[-1] == "0.5" for words in printed)
