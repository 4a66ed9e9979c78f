"""Snapshots through distilling: kept, read back in order, measured and animated."""

import io

import torch
from PIL import Image

from potstill.runs import run, snapshots, stage
from potstill.runs.api import run_to_completion
from tests.conftest import tiny


def snapshot(iteration, shade, soft):
    pixels = torch.full((2, 3, 4, 4), shade, dtype=torch.uint8)
    return snapshots.Snapshot(iteration, pixels, torch.tensor([[1 - soft, soft]] * 2), torch.tensor([0, 1]))


def made(folder, **changes):
    job = run.open_run(tiny(**changes), folder)
    run_to_completion(run.train_experts(job))
    return run_to_completion(stage.distil(job))


def test_a_run_keeps_its_start_and_its_end(tmp_path):
    distilled = made(tmp_path, ipc=2, snapshots=3)
    found = snapshots.read(tmp_path)
    assert [s.iteration for s in found] == [0, 2, 4, 6]
    assert found[0].pixels.shape == (20, 1, 8, 8)
    assert not found[0].pixels.equal(found[-1].pixels)
    if distilled.provenance["iteration"] == 6:
        assert found[-1].pixels.equal(distilled.pixels)


def test_none_are_kept_when_none_are_wanted(tmp_path):
    made(tmp_path, snapshots=0)
    assert snapshots.read(tmp_path) == []


def test_how_far_they_moved():
    found = snapshots.moved([snapshot(0, 0, 0.0), snapshot(5, 51, 0.25), snapshot(9, 255, 1.0)])
    assert found["iteration"] == [0, 5, 9]
    assert torch.allclose(torch.tensor(found["images"]), torch.tensor([0, 0.2, 1.0]))
    assert torch.allclose(torch.tensor(found["labels"]), torch.tensor([0, 0.25, 1.0]))


def test_few_images_of_a_class_lie_below_each_other():
    pixels = torch.zeros(6, 1, 64, 64, dtype=torch.uint8)
    few = snapshots.Snapshot(0, pixels, torch.ones(6, 3) / 3, torch.tensor([0, 0, 1, 1, 2, 2]))
    many = snapshots.Snapshot(0, pixels, torch.ones(6, 1), torch.zeros(6, dtype=torch.long))
    assert few.picture.shape == (1, 134, 200)  # two rows, a column a class
    assert many.picture.shape == (1, 68, 398)  # a row a class


def test_the_animation_has_a_frame_a_snapshot():
    image = Image.open(io.BytesIO(snapshots.animation([snapshot(i, 80 * i, 0.0) for i in range(3)])))
    assert image.format == "GIF"
    assert image.n_frames == 3
