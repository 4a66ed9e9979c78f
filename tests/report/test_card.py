"""What is pushed: a card whose table is the record's and whose code runs, pictures that load, and no path of ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.cli import main
from potstill.data.distilled import load
from potstill.errors import PotstillError
from potstill.report import card
from potstill.runs import record, run, stage
from potstill.runs.api import run_to_completion
from tests.conftest import KEPT, tiny
from tests.hub import TOKEN, standing_in


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on images from a file, whose path nobody else needs to know."""
    folder = tmp_path_factory.mktemp("secret-folder")
    labels = np.arange(90) % 3
    pixels = np.random.default_rng(0).integers(0, 90, (90, 8, 8, 3)) + 80 * labels[:, None, None, None]
    np.savez(folder / "data.npz", images=pixels.astype(np.uint8), labels=np.array(["a|b", "c", "d"])[labels])
    asked = tiny("random", dataset=str(folder / "data.npz"), ipc=2, network={"width": 4})
    job = run.open_run(asked, folder / "run")
    run_to_completion(record.evaluate(job, run_to_completion(stage.distil(job))))
    return folder / "run"


@pytest.fixture(scope="module")
def contents(finished):
    return card.contents(finished, "someone/small", "cc-by-4.0")


def test_what_is_pushed(contents, finished, tmp_path):
    assert list(contents) == ["README.md", "distilled.safetensors", card.PARQUET, "images.png", "results.json"]
    (tmp_path / "distilled.safetensors").write_bytes(contents["distilled.safetensors"])
    assert torch.equal(load(tmp_path).images, load(finished).images)
    assert contents["images.png"].startswith(b"\x89PNG")


def test_no_path_of_this_machine_goes_along(contents):
    for name, content in contents.items():
        assert b"secret-folder" not in content, name
    assert b"dataset: data.npz" in contents["README.md"]


def test_the_card_tells_what_the_record_does(contents, finished):
    text, results = contents["README.md"].decode(), json.loads((finished / "results.json").read_text())
    for key, words in (("distilled", "distilled set"), ("random", "random real images"), ("full", "full training set")):
        row = next(line for line in text.splitlines() if line.startswith(f"| {words} "))
        low, high = results["accuracy"][key]["ci95"]
        assert f"{results['accuracy'][key]['mean']:.1%}" in row
        assert f"{low:.1%} to {high:.1%}" in row
    for words in ("random real images", "images.png", "conv", "Every setting", "licence: cc-by-4.0", r"a\|b, c, d"):
        assert words in text


def test_the_hub_can_read_its_metadata(contents):
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load(contents["README.md"].decode().split("---\n")[1])
    assert (told["license"], told["task_categories"]) == ("cc-by-4.0", ["image-classification"])
    assert told["tags"] == ["dataset-distillation", "potstill", "random"]
    assert told["configs"][0]["data_files"] == [{"split": "train", "path": card.PARQUET}]
    assert told["size_categories"] == ["n<1K"]


def test_load_dataset_reads_it_by_its_name(contents, tmp_path):
    """In a process of its own, for the library asks the environment once where the hub is."""
    pytest.importorskip("datasets")
    code = """
import datasets, numpy
rows = datasets.load_dataset("someone/small", split="train")
assert rows.features["label"].names == ["a|b", "c", "d"]
assert numpy.allclose(numpy.sum(rows["soft_label"], 1), 1)
print(len(rows), rows[0]["image"].size)
"""
    with standing_in() as stand_in:
        stand_in.repositories["someone/small"] = contents
        there = {"HF_ENDPOINT": stand_in.address, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **there}, capture_output=True, text=True)
    assert done.stdout.strip() == "6 (8, 8)", done.stderr


def test_the_licence_of_the_source_is_asked_for(finished):
    with pytest.raises(PotstillError, match="name the licence of the source, e.g. --licence cc-by-4.0"):
        card.contents(finished, "someone/small", None)
    with pytest.raises(PotstillError, match="licence 'CC BY 4': not an identifier of the hub"):
        card.contents(finished, "someone/small", "CC BY 4")


def test_a_set_alone_and_one_of_an_older_version_have_cards_too(finished, tmp_path):
    (tmp_path / "distilled.safetensors").write_bytes((finished / "distilled.safetensors").read_bytes())
    found = card.contents(tmp_path / "distilled.safetensors", "someone/small", "mit")
    assert "results.json" not in found
    assert "It was not evaluated where it was made" in found["README.md"].decode()
    old = card.contents(KEPT / "finished", "someone/old", "mit")
    assert "| distilled set |" in old["README.md"].decode()


def test_pushed_from_the_command_line_its_code_runs(finished, tmp_path, monkeypatch, capsys):
    constants = pytest.importorskip("huggingface_hub.constants")
    with standing_in() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        arguments = ["push", str(finished), "someone/small", "--licence", "mit"]
        assert main.main([*arguments, "--dry", str(tmp_path / "dry")]) == 0
        assert stand_in.repositories == {}
        assert (tmp_path / "dry" / "README.md").is_file()
        assert main.main([*arguments, "--private"]) == 0
        assert 'potstill.load("hf://someone/small")' in capsys.readouterr().out
        pushed = stand_in.repositories["someone/small"]
        assert pushed["README.md"] == (tmp_path / "dry" / "README.md").read_bytes()
        assert stand_in.private == {"someone/small"}
        assert main.main(["show", "hf://someone/small", "--out", str(tmp_path / "images.png")]) == 0
        code = re.findall(r"```python\n(.*?)```", pushed["README.md"].decode(), re.S)[0]
        code = code.replace("potstill.train(distilled)", "potstill.train(distilled, epochs=2)")
        names = {"uint8_images": np.zeros((4, 3, 8, 8), np.uint8)}
        exec(compile(code, "the card", "exec"), names)
        assert names["predicted"].shape == (4,)
    assert main.main(["push", str(finished), "someone/small"]) == 1
    assert "name the licence of the source" in capsys.readouterr().err


def test_names_leave_markdown_alone():
    assert card._plain("a|b *c* [d](e)\nf") == r"a\|b \*c\* \[d\](e) f"
    assert card._named({"dataset": "digits", "start": None, "seed": 1}) == {
        "dataset": "digits",
        "start": None,
        "seed": 1,
    }
    assert card._named({"dataset": str(Path("/somewhere/mine.npz"))}) == {"dataset": "mine.npz"}
