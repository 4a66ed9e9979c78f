"""A set goes to a hub and comes back the same; what the hub refuses is a sentence."""

from pathlib import Path

import pytest
import torch

import potstill
from potstill.data import hub
from potstill.errors import PotstillError
from tests.hub import TOKEN, standing_in

library = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The stand-in, asked in place of the hub, with a cache of its own and a token for it alone."""
    with standing_in() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(library, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(library, "HF_HUB_OFFLINE", False)
        yield found


def pushed(distilled, tmp_path, private=False):
    distilled.save(tmp_path / "distilled.safetensors")
    content = (tmp_path / "distilled.safetensors").read_bytes()
    return hub.push("someone/small", {"distilled.safetensors": content, "README.md": b"---\n---\n"}, private, "a set")


def test_a_set_comes_back_as_it_went(distilled, stand_in, tmp_path):
    assert pushed(distilled, tmp_path) == f"{stand_in.address}/datasets/someone/small"
    assert set(stand_in.repositories["someone/small"]) == {"distilled.safetensors", "README.md"}
    for name in ("hf://someone/small", Path("hf://someone/small"), f"hf://someone/small@{'1' * 40}"):
        found = potstill.load(name)
        assert torch.equal(found.images, distilled.images)
        assert torch.equal(found.targets, distilled.targets)
    pushed(distilled, tmp_path)  # again, into the repository that is there


def test_what_was_fetched_once_is_there_without_the_hub(distilled, stand_in, tmp_path, monkeypatch):
    pushed(distilled, tmp_path)
    potstill.load("hf://someone/small")
    monkeypatch.setattr(library, "HF_HUB_OFFLINE", True)
    before = len(stand_in.requests)
    assert torch.equal(potstill.load("hf://someone/small").images, distilled.images)
    assert len(stand_in.requests) == before
    with pytest.raises(PotstillError, match="hf://someone/other: distilled.safetensors cannot be fetched"):
        potstill.load("hf://someone/other")


def test_a_private_set_is_for_those_who_may(distilled, stand_in, tmp_path, monkeypatch):
    pushed(distilled, tmp_path, private=True)
    assert len(potstill.load("hf://someone/small")) == 6
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    monkeypatch.setattr(library, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(PotstillError, match="check the name and the network, and log in"):
        potstill.load("hf://someone/small")
    with pytest.raises(PotstillError, match="someone/small: cannot be pushed .* a token that may write"):
        pushed(distilled, tmp_path)


def test_what_is_not_there_is_said(distilled, stand_in, tmp_path):
    pushed(distilled, tmp_path)
    del stand_in.repositories["someone/small"]["distilled.safetensors"]
    for name in ("hf://someone/small", "hf://someone/none", "hf://someone/small@none"):
        with pytest.raises(PotstillError, match="distilled.safetensors cannot be fetched"):
            potstill.load(name)


def test_a_card_that_the_hub_refuses_uploads_nothing(distilled, stand_in, tmp_path):
    stand_in.complaints.append('"license" must be one of [mit, ...]')
    with pytest.raises(PotstillError, match=r"cannot be pushed .*\"license\" must be one of"):
        pushed(distilled, tmp_path)
    assert stand_in.repositories["someone/small"] == {}


@pytest.mark.parametrize("name", ["hf://small", "hf://a/b/c", "hf://a b/c", "hf://"])
def test_names_that_are_none(name):
    with pytest.raises(PotstillError, match="no name of a set on the hub"):
        potstill.load(name)
    with pytest.raises(PotstillError, match="write user/name"):
        hub.push(name, {}, False, "nothing")


def test_nobody_answers(distilled, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(library, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PotstillError, match="cannot be fetched .* check the name and the network"):
        potstill.load("hf://someone/small")


def test_paths_are_told_from_names():
    assert hub.is_remote("hf://someone/small")
    assert hub.is_remote(Path("hf://someone/small"))
    assert not hub.is_remote("runs/hf")
