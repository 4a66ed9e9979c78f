"""A saved network predicts what the trained one does, wherever it is read."""

import json

import numpy as np
import pytest
import torch

import potstill
from potstill import seeds
from potstill.cli import main
from potstill.data import transform as transforms
from potstill.data.distilled import Distilled
from potstill.errors import PotstillError
from potstill.evaluation import saved
from potstill.evaluation.evaluator import network_for
from potstill.networks import architectures
from potstill.networks.architectures import NetworkConfig


def made(kind, name="convnet", norm="instance"):
    draws, labels = seeds.generator(0, "saved"), torch.tensor([0, 0, 1, 1, 2, 2])
    pixels = torch.randint(0, 256, (120, 3, 8, 8), generator=draws, dtype=torch.uint8)
    transform = transforms.fit(kind, pixels)
    network = {"name": name, "width": 4, "depth": 2, "norm": norm, "pooling": "avg"}
    found = Distilled(
        images=transform(pixels[:6]), targets=None, kind="hard", labels=labels, step_size=0.02,
        transform=transform, classes=("a", "b", "c"), recipe={"network": network, "augment": []}, provenance={},
    )  # fmt: skip
    return found, pixels[100:]


@pytest.fixture(params=["zca", "standardise"])
def trained(request):
    """A set, a network trained on it, test images, and what the network gives for them."""
    distilled, pixels = made(request.param)
    network = potstill.train(distilled, epochs=2)
    with torch.no_grad():
        return distilled, network, pixels, network(distilled.transform(pixels))


def test_safetensors_come_back_as_a_network(trained, tmp_path):
    distilled, network, pixels, expected = trained
    saved.save(network, network_for(distilled), distilled, tmp_path / "net.safetensors")
    found, transform, classes = saved.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.allclose(found(transform(pixels)), expected, atol=1e-3)
    assert classes == ("a", "b", "c")
    assert not found.training


def test_running_statistics_are_saved_with_the_weights(tmp_path):
    distilled, pixels = made("standardise", norm="batch")
    network = potstill.train(distilled, epochs=2)
    saved.save(network, network_for(distilled), distilled, tmp_path / "net.safetensors")
    found, transform, _ = saved.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.allclose(found(transform(pixels)), network(distilled.transform(pixels)), atol=1e-5)


def test_a_pt_file_needs_nothing_of_ours_but_the_layers(trained, tmp_path):
    distilled, network, pixels, expected = trained
    saved.save(network, network_for(distilled), distilled, tmp_path / "net.pt")
    found = torch.load(tmp_path / "net.pt", weights_only=True)
    header, own = found["header"], found["transform"]
    again = architectures.build(NetworkConfig(**header["network"]), tuple(header["shape"]), len(header["classes"]))
    again.load_state_dict(found["network"])
    flat = pixels.flatten(1) / 255
    if header["transform"] == "zca":
        white = (flat - own["mean"]) @ (own["basis"] @ ((own["scale"] + 0.1) ** -0.5).diag() @ own["basis"].T)
    else:
        mean, std = (own[name].repeat_interleave(64) for name in ("mean", "scale"))
        white = (flat - mean) / std
    with torch.no_grad():
        assert torch.allclose(again.eval()(white.view(-1, 3, 8, 8)), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["zca", "standardise"])
def test_onnx_takes_pixels(kind, tmp_path):
    pytest.importorskip("onnxscript")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    distilled, pixels = made(kind)
    network = potstill.train(distilled, epochs=2)
    saved.save(network, network_for(distilled), distilled, tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    [outputs] = session.run(["outputs"], {"pixels": (pixels / 255).numpy()})
    with torch.no_grad():
        assert np.allclose(outputs, network(distilled.transform(pixels)).numpy(), atol=1e-4)
    model = onnx.load(str(tmp_path / "net.onnx"))
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == ["a", "b", "c"]


def test_what_could_not_be_saved_is_refused_before_training(tmp_path, monkeypatch):
    with pytest.raises(PotstillError, match=r"net.txt: a network is saved as .safetensors, .pt, .onnx"):
        saved.check(tmp_path / "net.txt")
    monkeypatch.setattr(saved.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PotstillError, match="ONNX needs the packages onnx and onnxscript, and onnx is missing"):
        saved.check(tmp_path / "net.onnx")
    saved.check(tmp_path / "net.SAFETENSORS")


def test_from_the_command_line_another_network_is_trained(tmp_path, capsys):
    distilled, pixels = made("standardise")
    distilled.save(tmp_path / "distilled.safetensors")
    arguments = ["train", str(tmp_path), "--out", str(tmp_path / "net.safetensors"), "--epochs", "2"]
    assert main.main([*arguments, "--network", "mlp", "--width", "5", "--step-size", "0.1"]) == 0
    assert "a mlp trained on 6 images" in capsys.readouterr().out
    network, transform, _ = saved.load(tmp_path / "net.safetensors")
    expected = potstill.train(distilled, NetworkConfig(name="mlp", width=5), epochs=2, step_size=0.1)
    with torch.no_grad():
        assert torch.allclose(network(transform(pixels)), expected(distilled.transform(pixels)), atol=1e-6)
    assert main.main([*arguments[:3], str(tmp_path / "net.txt")]) == 1
    assert "a network is saved as" in capsys.readouterr().err
