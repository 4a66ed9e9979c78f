"""The artefact: what goes in comes out, in every format."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import potstill
from potstill import seeds
from potstill.data import distilled as module
from potstill.data import transform as transforms
from potstill.data.distilled import Distilled
from potstill.errors import PotstillError


@pytest.fixture
def distilled():
    draws = seeds.generator(0, "set")
    pixels = torch.randint(0, 256, (60, 3, 6, 5), generator=draws, dtype=torch.uint8)
    transform = transforms.fit("zca", pixels)
    return Distilled(
        images=transform(pixels[:6]), logits=torch.randn(6, 3, generator=draws),
        labels=torch.tensor([0, 0, 1, 1, 2, 2]), step_size=0.02, transform=transform, classes=("a", "b", "c/d"),
        recipe={"network": {"name": "convnet", "width": 4, "depth": 1}, "augment": ["flip"]},
        provenance={"iteration": 3},
    )  # fmt: skip


def test_round_trip(distilled, tmp_path):
    distilled.save(tmp_path / "distilled.safetensors")
    for path in (tmp_path / "distilled.safetensors", tmp_path, str(tmp_path)):
        again = potstill.load(path)
        assert torch.equal(again.images, distilled.images)
        assert torch.equal(again.logits, distilled.logits)
        assert (again.step_size, again.classes, again.provenance) == (0.02, distilled.classes, {"iteration": 3})
        assert torch.equal(again.transform(torch.zeros(1, 3, 6, 5)), distilled.transform(torch.zeros(1, 3, 6, 5)))


def test_pixels_are_the_true_colours(distilled):
    draws = seeds.generator(0, "set")
    original = torch.randint(0, 256, (60, 3, 6, 5), generator=draws, dtype=torch.uint8)[:6]
    assert int((distilled.pixels.int() - original.int()).abs().max()) <= 1


def test_soft_labels_and_loader(distilled):
    assert torch.allclose(distilled.soft_labels.sum(1), torch.ones(6))
    plain = list(distilled.loader(batch_size=4, shuffle=False, augment=False))
    assert [len(x) for x, _ in plain] == [4, 2]
    assert torch.equal(plain[0][0], distilled.images[:4])
    torch.manual_seed(0)
    (first, _), *_ = distilled.loader(batch_size=6, shuffle=False)
    mirrored = [torch.equal(a, b.flip(2)) or torch.equal(a, b) for a, b in zip(first, distilled.images, strict=True)]
    assert all(mirrored)


def test_export_npz_is_exact_and_needs_nothing_of_ours(distilled, tmp_path):
    distilled.export(tmp_path / "set.npz")
    found = np.load(tmp_path / "set.npz", allow_pickle=False)
    assert np.array_equal(found["images"], distilled.images.numpy())
    assert np.array_equal(found["soft_labels"], distilled.soft_labels.numpy())
    assert found["pixels"].shape == (6, 6, 5, 3)
    scaled = found["transform_basis"] * (found["transform_scale"] + 0.1) ** -0.5
    flat = found["pixels"].transpose(0, 3, 1, 2).reshape(6, -1) / 255.0
    assert np.allclose((flat - found["transform_mean"]) @ (scaled @ found["transform_basis"].T),
                       found["images"].reshape(6, -1), atol=0.05)  # fmt: skip


def test_export_parquet_folder_and_picture(distilled, tmp_path):
    distilled.export(tmp_path / "set.parquet")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "set.parquet"))
    assert rows.features["label"].names == ["a", "b", "c/d"]
    assert np.array_equal(np.asarray(rows[3]["image"]), distilled.pixels[3].permute(1, 2, 0).numpy())
    assert np.allclose(rows[3]["soft_label"], distilled.soft_labels[3])
    distilled.export(tmp_path / "folder")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["a", "b", "c_d", "soft_labels.json"]
    assert len(json.loads((tmp_path / "folder" / "soft_labels.json").read_text())) == 6
    distilled.export(tmp_path / "all.png")
    assert Image.open(tmp_path / "all.png").size[0] > 2 * 5


def test_unknown_format_is_refused(distilled, tmp_path):
    with pytest.raises(PotstillError, match=r"cannot export to '\.pt'; use \.png"):
        distilled.export(tmp_path / "set.pt")


def test_grey_images_make_grey_pngs():
    image = Image.open(io.BytesIO(module.png(torch.zeros(1, 4, 6, dtype=torch.uint8), 3)))
    assert (image.mode, image.size) == ("L", (18, 12))


def test_a_compact_file_fits_its_transform_again(tmp_path, arrays):
    rng = np.random.default_rng(0)
    path = arrays(rng.integers(0, 256, (90, 6, 5, 3), dtype=np.uint8), np.arange(90) % 3)
    settings = {"window": {"stop": 1}, "transform": "zca", "network": {"width": 4, "depth": 1}}
    whole = potstill.distill(
        path, 1, out=tmp_path / "run", expert={"count": 1, "epochs": 2},
        distil={"iterations": 1, "inner_steps": 1, "evaluations": 1}, **settings,
    )  # fmt: skip
    whole.save(tmp_path / "compact.safetensors", compact=True)
    assert (tmp_path / "compact.safetensors").stat().st_size < (tmp_path / "run" / module.FILE).stat().st_size
    with pytest.raises(PotstillError, match="leaves its zca transform out"):
        potstill.load(tmp_path / "compact.safetensors")
    compact = potstill.load(tmp_path / "compact.safetensors", dataset=path)
    assert (compact.images - whole.images).abs().max() < 0.01
    assert torch.allclose(compact.transform(whole.pixels), whole.transform(whole.pixels), atol=1e-4)
    other = tmp_path / "other.npz"
    np.savez(other, images=rng.integers(0, 256, (90, 6, 5, 3), dtype=np.uint8), labels=np.arange(90) % 3)
    with pytest.raises(PotstillError, match="is not the data"):
        potstill.load(tmp_path / "compact.safetensors", dataset=other)
