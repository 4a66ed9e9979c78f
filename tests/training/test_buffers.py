"""Replay buffers: the same network as the published one, whose weights are ours."""

import pytest
import torch
from torch import nn

from potstill import seeds
from potstill.errors import PotstillError
from potstill.runs.run import prepare_problem
from potstill.training import buffers
from tests.conftest import tiny

NAMED = "replay_buffer_0.pt"


@pytest.fixture
def problem(arrays):
    return prepare_problem(colourful(arrays))


def colourful(arrays, **network):
    """Settings on bright and dark colour images of 8×8 pixels, which a network can tell apart."""
    draws = seeds.generator(0, "colour")
    labels = torch.arange(120) % 3
    pixels = (torch.randint(0, 90, (120, 8, 8, 3), generator=draws) + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    path = arrays(pixels.numpy(), labels.numpy())
    return tiny(dataset=path, transform="standardise", network=network, expert={"count": 2, "epochs": 3})


def published(width=8, depth=2, size=8, classes=3):
    """The ConvNet as MTT's code builds it: instance norm as a group norm of as many groups as channels."""
    layers, channels = [], 3
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        channels, size = width, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, classes))


def trained(problem, epochs=3, **kind):
    """A buffer of two experts as the published code makes it, and their networks after the last epoch."""
    buffer, networks = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        network = published(**kind)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
        snapshots = [[p.detach().cpu().clone() for p in network.parameters()]]
        for _ in range(epochs):
            for rows in torch.arange(len(problem.train.labels)).split(16):
                loss = nn.functional.cross_entropy(network(problem.train.images[rows]), problem.train.labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            snapshots.append([p.detach().cpu().clone() for p in network.parameters()])
        buffer.append(snapshots)
        networks.append(network)
    return buffer, networks


def test_an_imported_expert_is_the_network_that_was_trained(problem, tmp_path):
    buffer, networks = trained(problem)
    store = buffers.store({tmp_path / NAMED: buffer}, problem, tmp_path / "experts", 0.05)
    assert (len(store), store.epochs) == (2, (0, 1, 2, 3))
    for number, network in enumerate(networks):
        theta, _ = store.last(number)
        with torch.no_grad():
            theirs = network(problem.test.images)
        assert torch.allclose(problem.network(theta, problem.test.images), theirs, atol=1e-5)
        right = float((network(problem.val.images).argmax(1) == problem.val.labels).float().mean())
        assert store.accuracies[number] == pytest.approx(right)
        begin, end = store.segment(number, 1, 2)
        assert torch.equal(begin, torch.cat([p.flatten() for p in buffer[number][1]]))
        assert torch.equal(end, torch.cat([p.flatten() for p in buffer[number][3]]))


def test_several_files_are_one_store_and_the_same_again_changes_nothing(problem, tmp_path):
    buffer, _ = trained(problem, epochs=1)
    files = {tmp_path / "replay_buffer_0.pt": buffer, tmp_path / "replay_buffer_1.pt": buffer[:1]}
    assert len(buffers.store(files, problem, tmp_path / "e", 0.05)) == 3
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("expert-*.safetensors")}
    assert len(buffers.store(files, problem, tmp_path / "e", 0.05)) == 3
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("expert-*.safetensors")} == before
    with pytest.raises(PotstillError, match="these experts differ .* imported"):
        buffers.store({tmp_path / "other.pt": buffer}, problem, tmp_path / "e", 0.05)


def test_other_networks_are_refused_with_both_shapes(problem, tmp_path):
    wide, _ = trained(problem, epochs=1, width=9)
    with pytest.raises(
        PotstillError, match=r"expert 0: a parameter \(9, 3, 3, 3\) where 0.weight .* is \(8, 3, 3, 3\)"
    ):
        buffers.store({tmp_path / NAMED: wide}, problem, tmp_path / "e", 0.05)
    deep, _ = trained(problem, epochs=1, depth=3)
    with pytest.raises(PotstillError, match="14 parameters, but the network has 10; say what was trained by --network"):
        buffers.store({tmp_path / NAMED: deep}, problem, tmp_path / "e", 0.05)
    assert not (tmp_path / "e").exists()


def test_damaged_buffers_are_refused(problem, tmp_path):
    buffer, _ = trained(problem, epochs=1)
    with pytest.raises(PotstillError, match="experts of 1 and 2 snapshots"):
        buffers.store({tmp_path / NAMED: [buffer[0], buffer[1][:1]]}, problem, tmp_path / "e", 0.05)
    buffer[1][1][0][0] = torch.nan
    with pytest.raises(PotstillError, match="expert 1: epoch 1 is not finite"):
        buffers.store({tmp_path / NAMED: buffer}, problem, tmp_path / "e", 0.05)


def test_what_shapes_do_not_show_is_refused(arrays, tmp_path):
    with pytest.raises(PotstillError, match="hold no running statistics"):
        buffers.store({tmp_path / NAMED: []}, prepare_problem(colourful(arrays, norm="batch")), tmp_path, 0.05)
    with pytest.raises(PotstillError, match="network.name mlp: only the layers of the ConvNet"):
        buffers.store({tmp_path / NAMED: []}, prepare_problem(colourful(arrays, name="mlp")), tmp_path, 0.05)
    with pytest.raises(PotstillError, match="pads by 3 pixels in its first layer"):
        buffers.store({tmp_path / NAMED: []}, prepare_problem(tiny()), tmp_path, 0.05)


def test_experts_of_other_classes_are_warned_of(problem, tmp_path, caplog):
    buffer, _ = trained(problem)
    for expert in buffer:
        for snapshot in expert:
            for parameter in snapshot[-2:]:  # the linear layer, its classes in another order
                parameter.copy_(parameter[[1, 2, 0]].clone())
    buffers.store({tmp_path / NAMED: buffer}, problem, tmp_path / "e", 0.05)
    assert "their classes stand in another order" in caplog.text
