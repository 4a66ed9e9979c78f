"""Examples with other tools run as they stand, the applications measure what they say, and their notebooks execute."""

import ast
import importlib
import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.hub import TOKEN, USER, standing_in

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TOOLS = {
    "plain_pytorch": (), "with_scikit_learn": ("sklearn",), "with_lightning": ("lightning",),
    "with_transformers": ("transformers", "accelerate"), "with_timm": ("timm",), "with_keras": ("keras",),
}  # fmt: skip
APPLICATIONS = ("architecture_search", "continual_learning", "federated")


@pytest.fixture
def application(monkeypatch):
    """An application, imported as its script imports what lies beside it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    for name in (*APPLICATIONS, "common"):
        sys.modules.pop(name, None)


# --- other tools ---------------------------------------------------------------------------------------------------


def test_every_file_is_named_here():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*TOOLS, *APPLICATIONS, "common"}
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == {*APPLICATIONS, "whole_way"}


@pytest.mark.parametrize("name", TOOLS)
def test_an_example_is_under_twenty_lines(name):
    lines = [line for line in (EXAMPLES / f"{name}.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 20


@pytest.mark.parametrize("name", TOOLS)
def test_an_example_runs_and_its_network_knows_the_digits(name, monkeypatch, capsys):
    for package in TOOLS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert found["accuracy"] > 0.8  # by chance 0.1
    assert "of the test images are right" in capsys.readouterr().out


# --- applications --------------------------------------------------------------------------------------------------


def test_a_random_part_is_of_real_images_of_every_class(application):
    common = application("common")
    images, labels = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2), torch.tensor([3, 7]).repeat(5)
    values, classes = common.random_part(images, labels, 2, seed=1)
    assert sorted(classes.tolist()) == [3, 3, 7, 7]
    for value, one in zip(values, classes, strict=True):
        row = next(i for i in range(10) if torch.equal(images[i] / 255, value))
        assert labels[row] == one
    assert not torch.equal(common.random_part(images, labels, 2, seed=2)[0], values)


def test_a_distilled_part_keeps_the_classes_and_the_range_of_pixels(application):
    common = application("common")
    data = common.digits()
    images, labels = common.of_classes(data.train.images, data.train.labels, (4, 9))
    assert set(labels.tolist()) == {4, 9}
    values, classes = common.distilled_part(images, labels, 1, 0, iterations=1)
    assert (tuple(values.shape), classes.tolist()) == ((2, 1, 8, 8), [4, 9])
    assert -0.5 < float(values.min()) < float(values.max()) < 1.5
    centres = torch.stack([images[labels == one].float().mean(0) / 255 for one in (4, 9)])
    own, other = (values - centres).flatten(1).norm(dim=1), (values - centres.flip(0)).flatten(1).norm(dim=1)
    assert bool((own < other).all())


def test_a_network_on_parts_is_tested_on_what_it_is_given(application):
    common = application("common")
    dark, bright = torch.zeros(6, 1, 8, 8), torch.ones(6, 1, 8, 8)
    parts = [(dark, torch.full((6,), 2)), (bright, torch.full((6,), 5))]
    test = (torch.cat([dark, bright]) * 255).to(torch.uint8)
    right = torch.tensor([2] * 6 + [5] * 6)
    assert common.accuracy(parts, (test, right), 0, epochs=1) <= 1
    figures = [common.accuracy(parts, (test, labels), 0, epochs=1) for labels in (right, torch.zeros(12).long())]
    assert sum(figures) <= 1  # no image can be right by both labels


def test_the_shares_of_clients_halve_every_class_and_none_is_lost(application):
    federated = application("federated")
    labels = torch.arange(10).repeat_interleave(6)
    held = federated.shares(torch.arange(60).view(60, 1, 1, 1), labels)
    assert [sorted(set(mine.tolist())) for _, mine in held][:2] == [[0, 1, 2, 3], [2, 3, 4, 5]]
    rows = torch.cat([images.flatten() for images, _ in held])
    assert sorted(rows.tolist()) == list(range(60))


def test_ranks_are_correlated_by_their_order_alone(application):
    search = application("architecture_search")
    full, distilled, random = [0.5, 0.7, 0.9], [0.2, 0.3, 0.95], [0.9, 0.5, 0.1]
    rows = [
        {"accuracy": {name: {"mean": value, "per_seed": [value]} for name, value in told.items()}}
        for told in ({"full": a, "distilled": b, "random": c} for a, b, c in zip(full, distilled, random, strict=True))
    ]
    assert search.correlations(rows, "distilled")["mean"] == pytest.approx(1)
    assert search.correlations(rows, "random") == {
        "mean": pytest.approx(-1), "by_seed": [pytest.approx(-1)], "accuracy": pytest.approx(0.5)
    }  # fmt: skip


def test_an_application_leaves_its_record(application, tmp_path, monkeypatch, capsys):
    learning = application("continual_learning")

    def measure(seeds):
        """As if measured."""
        runs = {"distilled": [[1.0, 0.8]] * seeds, "random": [[1.0, 0.5]] * seeds}
        return learning.summary(runs, 1, {"tasks": learning.TASKS[:2]})

    path = tmp_path / "r.json"
    monkeypatch.setattr(sys, "argv", ["x", "--seeds", "2", "--record", str(path)])
    application("common").main("continual_learning", measure, learning.draw)
    assert "80.0% with a distilled memory of 1 a class, 50.0% with a random one" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert {"application", "command", "commit", "environment", "seconds", "after_each_task"} <= record.keys()
    assert record["command"] == "python examples/continual_learning.py --seeds 2"
    assert record["difference"]["mean"] == pytest.approx(0.3)
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


# --- notebooks -----------------------------------------------------------------------------------------------------


def executed(name):
    """The code cells of a notebook, after they ran from top to bottom in a process of their own."""
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    import nbclient
    import nbformat

    book = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs for cell in cells)  # none is kept: they are made here
    nbclient.NotebookClient(book, timeout=None, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    return cells


@pytest.mark.parametrize("name", APPLICATIONS)
def test_a_notebook_executes(name):
    shown = [output for cell in executed(name) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in for the hub, for processes that are started: logged in, and with an empty cache."""
    pytest.importorskip("huggingface_hub")
    with standing_in() as found:
        told = {"ENDPOINT": found.address, "TOKEN": TOKEN, "HOME": str(tmp_path), "HUB_OFFLINE": "0"}
        for name, value in told.items():
            monkeypatch.setenv(f"HF_{name}", value)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        yield found


def test_the_whole_way_holds_what_its_cells_say(hub):
    """Ten images, on show and worth 90 %, a network of that accuracy, and the same set back from the hub."""
    shapes, shown, figures, network, pushed, back = (cell.outputs for cell in executed("whole_way"))
    assert result(shapes, "text/plain") == "((1437, 8, 8), (360, 8, 8))"
    assert "Distilled(10 images of 8×8, 10 classes" in result(shown, "text/html")
    assert result(shown, "text/html").count("data:image/png;base64,") == 10
    means = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in printed(figures).splitlines()}
    assert means["distilled"] > 90
    assert means["random"] + 10 < means["distilled"] < means["full"]
    assert float(printed(network).partition("%")[0]) > 88  # of one network
    assert printed(network).endswith("of the test images are right, after training on 10\n")
    assert f"{hub.address}/datasets/{USER}/ten-digits" in pushed[-1].data["text/plain"]
    assert {"distilled.safetensors", "README.md"} <= hub.repositories[f"{USER}/ten-digits"].keys()
    assert ast.literal_eval(result(back, "text/plain")) == dict.fromkeys(
        ("images", "labels", "transform", "network"), True
    )


def result(outputs, kind):
    """What a cell evaluates to, as text of this kind."""
    return next(output.data[kind] for output in outputs if output.output_type == "execute_result")


def printed(outputs):
    """What a cell prints; not its warnings."""
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
