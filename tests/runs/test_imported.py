"""What other code published goes through the same commands as our own."""

import json

import numpy as np
import pytest
import torch

from potstill.cli import main
from potstill.data.distilled import load
from potstill.errors import PotstillError
from potstill.runs import imported
from potstill.runs.api import distill
from potstill.runs.settings import from_dict
from potstill.training import trajectories
from tests.training.test_buffers import colourful, prepare_problem, trained

FEW = "--network.width 8 --network.depth 2".split()


@pytest.fixture
def settings(arrays):
    return colourful(arrays)


@pytest.fixture
def files(settings, tmp_path):
    """A set as DATM's code leaves it, made of real images."""
    problem = prepare_problem(settings)
    rows = torch.cat([(problem.train.labels == k).nonzero().flatten()[:2] for k in range(3)])
    logits = 3.0 * torch.nn.functional.one_hot(problem.train.labels[rows], 3)
    found = {"images_best": problem.train.images[rows], "labels_best": logits, "lr_best": torch.tensor(0.05)}
    for name, tensor in found.items():
        torch.save(tensor, tmp_path / f"{name}.pt")
    return [str(tmp_path / f"{name}.pt") for name in found]


def call(capsys, *arguments):
    code = main.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_an_imported_set_is_shown_evaluated_and_exported_as_it_came(files, settings, tmp_path, capsys):
    folder = tmp_path / "imported"
    flags = ["--dataset", settings.dataset, "--space", "standardise", *FEW, "--out", folder]
    code, out, _ = call(capsys, "import", *files, *flags)
    assert (code, "6 images of 8×8 in colour, 3 classes, labels: logits, step size 0.05" in out) == (0, True)
    distilled = load(folder)
    assert distilled.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(distilled.images, torch.load(files[0]))
    assert distilled.provenance["imported"]["files"] == ["images_best.pt", "labels_best.pt", "lr_best.pt"]
    assert from_dict(distilled.provenance["config"]).ipc == 2
    assert from_dict(distilled.provenance["config"]).method == ("datm",)
    assert call(capsys, "show", folder, "--out", tmp_path / "images.png")[0] == 0
    quick = "--protocol quick --epochs 60 --seeds 2 --full-epochs 1 --full-seeds 0".split()
    code, _, err = call(capsys, "evaluate", folder, *quick, "--json", tmp_path / "r.json")
    assert (code, err) == (0, err)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["accuracy"]["distilled"]["mean"] > 0.8  # of bright and dark images
    assert call(capsys, "export", folder, "--to", "pt", "--out", tmp_path / "again")[0] == 0
    for name, file in zip(("images", "labels", "lr"), files, strict=True):
        assert torch.equal(torch.load(tmp_path / "again" / f"{name}.pt"), torch.load(file).float())


def test_imported_experts_are_distilled_by(settings, tmp_path, capsys):
    buffer, _ = trained(prepare_problem(settings))
    torch.save(buffer, tmp_path / "replay_buffer_0.pt")
    experts = tmp_path / "experts"
    flags = ["--dataset", settings.dataset, "--space", "standardise", *FEW, "--out", experts]
    code, out, _ = call(capsys, "import", tmp_path / "replay_buffer_0.pt", *flags)
    assert (code, f"2 experts of 3 epochs in {experts}" in out) == (0, True)
    assert len(trajectories.open_store(experts)) == 2
    run = [
        "--dataset",
        settings.dataset,
        "--transform",
        "standardise",
        *FEW,
        "--expert.count",
        "2",
        "--evaluations",
        "1",
    ]
    stage = "--datm.start-epochs 0 1 --datm.iterations 2 --datm.inner-steps 2 --datm.expert-epochs 1".split()
    quick = "--evaluation.protocol quick --evaluation.epochs 2".split()
    code, out, err = call(capsys, "distill", "--experts", experts, *run, *stage, *quick, "--out", tmp_path / "run")
    assert (code, err.count("error")) == (0, 0)
    assert len(load(tmp_path / "run")) == 3


def test_labels_tell_the_method_and_frepos_pictures_are_whitened_anew(settings, tmp_path, caplog):
    problem = prepare_problem(settings)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("f4")
    np.savez(tmp_path / "step.npz", image=images, label=np.eye(3, dtype="f4") - 1 / 3)
    found = imported.read([tmp_path / "step.npz"])
    assert imported.space_of(found) == "frepo"
    with caplog.at_level("INFO"):
        distilled = imported.import_set(found, settings.dataset, {"network": {"width": 8}}, space="pixels")
    assert "whitened by our zca" in caplog.text
    assert distilled.kind == "values"
    assert from_dict(distilled.provenance["config"]).method == ("frepo",)
    pixels = distilled.transform.invert(distilled.images).permute(0, 2, 3, 1).numpy()
    assert np.allclose(pixels, images, atol=1e-3)
    hard = {tmp_path / "a.pt": torch.randn(3, 3, 8, 8), tmp_path / "b.pt": torch.arange(3)}
    distilled = imported.import_set(hard, settings.dataset, {}, space="standardise")
    assert (distilled.kind, from_dict(distilled.provenance["config"]).method) == ("hard", ("mtt",))
    assert problem.dataset.fingerprint == distilled.provenance["dataset"]["fingerprint"]


def test_a_run_can_begin_at_an_imported_set(files, settings, tmp_path):
    found = imported.read([*map(type(tmp_path), files)])
    distilled = imported.import_set(
        found, settings.dataset, {"network": {"width": 8, "depth": 2}}, space="standardise", method="datm"
    )
    distilled.save(tmp_path / "imported" / "distilled.safetensors")
    refined = distill(
        settings.dataset, 2, out=tmp_path / "run", start=str(tmp_path / "imported"), transform="standardise",
        network={"width": 8, "depth": 2}, expert={"count": 1, "epochs": 2}, evaluations=1, keep="last",
        evaluation={"protocol": "quick", "epochs": 2},
        datm={"iterations": 1, "inner_steps": 2, "start_epochs": (0, 1), "expert_epochs": 1},
    )  # fmt: skip
    assert refined.images.shape == distilled.images.shape
    assert float((refined.images - distilled.images).abs().mean()) < 0.1 * float(distilled.images.abs().mean())


def test_sets_and_experts_are_imported_one_by_one(files, settings, tmp_path, capsys):
    buffer, _ = trained(prepare_problem(settings), epochs=1)
    torch.save(buffer, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(PotstillError, match="holds experts, and .* does not; import sets and experts one by one"):
        imported.read([tmp_path / "replay_buffer_0.pt", tmp_path / "images_best.pt"])
    with pytest.raises(PotstillError, match="no files"):
        imported.read([])
    code, _, err = call(capsys, "import", "none.pt", "--dataset", "digits", "--out", tmp_path / "o")
    assert (code, "none.pt: there is no such file" in err) == (1, True)
