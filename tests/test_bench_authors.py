"""The comparison with authors' code runs a script of somebody else, and times both sides' iterations in turn."""

import sys

import pytest
import torch

from bench.authors import sides, theirs
from bench.authors.cases import CASES, WIDTH
from bench.authors.turns import Side
from potstill.adjoint import engine
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig

UTILS = """
def get_default_convnet_setting():
    return 128, 3, "relu", "instancenorm", "avgpooling"
"""
MAIN = """
import sys
from pathlib import Path

import torch
import torchvision.utils
import wandb
from torchvision import datasets, transforms
from utils import get_default_convnet_setting

wandb.log({"blank": wandb.Image(1)})
torchvision.utils.save_image(1)
scaled = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)])
image, label = datasets.CIFAR10("data", train=True, download=True, transform=scaled)[0]
Path(sys.argv[sys.argv.index("--data_path") + 1], "seen").write_text(
    f"{tuple(image.shape)} {label} {get_default_convnet_setting()[0]}"
)
images = torch.randn(10, 3, 32, 32, device="cuda").cuda().requires_grad_()
weights = torch.nn.Parameter(torch.ones(3).to("cuda:0"))
of_images, of_weights = torch.optim.SGD([images], lr=0.1), torch.optim.SGD([weights], lr=0.1)
while True:
    (images.mean((0, 2, 3)) * weights).sum().backward()
    of_weights.step()
    of_images.step()
"""
"""A script as authors write them: it asks for CUDA, for packages that are not there, and goes on for ever."""


@pytest.fixture
def code(tmp_path):
    """A folder of authors' repositories that holds one."""
    folder = tmp_path / "code" / "DatasetCondensation"
    folder.mkdir(parents=True)
    (folder / "utils.py").write_text(UTILS)
    (folder / "main.py").write_text(MAIN)
    return folder.parent


@pytest.fixture
def work(tmp_path):
    """The folder of a comparison."""
    (tmp_path / "work").mkdir()
    sides.write_images(tmp_path / "work" / "images.npz", each=3)
    return tmp_path / "work"


def test_their_script_runs_as_it_is_an_iteration_each_turn(code, work):
    side = sides.theirs(CASES["dc"], code, work, 4, sys.executable)
    side.ready()
    assert (work / "seen").read_text() == "(3, 32, 32) 0 4"
    assert 0 < side.turn() < 60
    side.close()
    assert side.process.returncode == 0


def test_both_sides_take_turns(code):
    found = sides.compare("dc", code, 4, sys.executable, rounds=2, each=3)
    assert {side: len(seconds) for side, seconds in found["seconds"].items()} == {"ours": 2, "theirs": 2}
    assert found["ratio"] == pytest.approx(found["theirs_ms"] / found["ours_ms"])
    assert "width 4" in found["shape"]
    assert found["constants"] == {"utils.get_default_convnet_setting": (4, 3, "relu", "instancenorm", "avgpooling")}


def test_a_side_that_ends_says_what_it_wrote(tmp_path):
    side = Side([sys.executable, "-c", "raise SystemExit('no such device')"], tmp_path, tmp_path / "log")
    with pytest.raises(RuntimeError, match="no such device"):
        side.ready()
    side.close()


def test_the_median_is_what_counts():
    assert sides.summary({"theirs": [9.0, 1.0, 2.0], "ours": [0.5, 4.0, 1.0]})["ratio"] == 2


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_begin_at_once(name):
    case = CASES[name]
    settings = case.settings(WIDTH)
    assert not settings.methods[0].open_fields(settings.stages[0])
    assert (settings.precision, settings.network.width, settings.ipc) == ("float32", WIDTH, case.ipc)
    assert case.settings(8).network.width == case.width(8)


def test_both_sides_follow_the_same_expert():
    (first, *_) = sides.snapshots(8)
    shapes = flat.flat_network(NetworkConfig(width=8, depth=3), (3, 32, 32), 10, torch.device("cpu")).shapes
    assert [x.shape for x in first] == list(shapes.values())


def test_a_blank_takes_any_call():
    assert theirs.Blank.init(1)(name=2).log is theirs.Blank
    with pytest.raises(AttributeError):
        _ = theirs.Blank.__wrapped__


class Once:
    """Turns that end with the first."""

    def mark(self):
        raise StopAsyncIteration


@pytest.mark.parametrize("name", ["mtt", "ncfm", "idm"])
def test_ours_iterates_on_what_it_wrote(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sides, "Turns", Once)
    monkeypatch.setattr(engine, "_compiles", lambda *asked: False)
    sides.write_images(tmp_path / "images.npz", 60)
    with pytest.raises(StopAsyncIteration):
        sides.take_turns(CASES[name], tmp_path, 8)
