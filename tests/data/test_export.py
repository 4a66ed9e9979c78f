"""Exports: other tools read back what the set holds, names and columns included."""

import io
import json
import logging
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from potstill import seeds
from potstill.data import export, shards
from potstill.data import transform as transforms
from potstill.data.distilled import Distilled, decode, load
from potstill.data.reading import Reading
from potstill.errors import PotstillError


def whiten(arrays):
    """The published formula from the arrays of an .npz, without anything of ours."""
    basis, scale = arrays["transform_basis"], arrays["transform_scale"]
    flat = arrays["pixels"].transpose(0, 3, 1, 2).reshape(len(arrays["pixels"]), -1) / 255.0
    return (flat - arrays["transform_mean"]) @ (basis * (scale + 0.1) ** -0.5 @ basis.T)


def whiten_at_one_scale(arrays):
    """The same of zca-image."""
    basis, scale = arrays["transform_basis"], arrays["transform_scale"]
    flat = arrays["pixels"].transpose(0, 3, 1, 2).reshape(len(arrays["pixels"]), -1) / 255.0
    flat = flat - flat.mean(1, keepdims=True)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ (basis * (scale + arrays["transform_floor"]) ** -0.5 @ basis.T)


@pytest.mark.parametrize("name", ["set.npz", "set.NPZ"])
def test_npz_is_exact_and_needs_nothing_of_ours(distilled, tmp_path, name):
    distilled.export(tmp_path / name)
    found = np.load(tmp_path / name, allow_pickle=False)
    assert np.array_equal(found["images"], distilled.images.numpy())
    assert np.array_equal(found["soft_labels"], distilled.soft_labels.numpy())
    assert np.array_equal(found["targets"], distilled.targets.numpy())
    assert (str(found["kind"]), float(found["step_size"])) == ("logits", 0.02)
    assert (found["labels"].tolist(), found["classes"].tolist()) == ([0, 0, 1, 1, 2, 2], ["a", "b", "c/d"])
    assert found["pixels"].shape == (6, 6, 5, 3)
    assert np.allclose(whiten(found), found["images"].reshape(6, -1), atol=0.05)
    assert str(found["transform_kind"]) == "zca"


def test_npz_of_images_at_one_scale_needs_nothing_of_ours_either(distilled, tmp_path):
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(64, 192, (60, 3, 6, 5), generator=draws, dtype=torch.uint8)  # brighter ones would be clipped
    transform = transforms.fit("zca-image", pixels).leading(1e-4)
    replace(distilled, images=transform(pixels[:6]), transform=transform).export(tmp_path / "set.npz")
    found = np.load(tmp_path / "set.npz")
    assert str(found["transform_kind"]) == "zca-image"
    assert found["transform_basis"].shape == (90, 90)
    assert np.allclose(whiten_at_one_scale(found), found["images"].reshape(6, -1), atol=0.05)
    shown = found["pixels"].reshape(6, -1) / 255.0
    assert np.allclose(shown.mean(1), found["transform_mean"], atol=2e-3)
    assert np.allclose(np.linalg.norm(shown - shown.mean(1, keepdims=True), axis=1), found["transform_norm"], atol=2e-2)


def test_npz_holds_all_eigenvectors_though_the_file_of_the_set_does_not(distilled, tmp_path):
    distilled.save(tmp_path / "distilled.safetensors")
    again = load(tmp_path)
    assert again.transform.basis.shape[1] < 90
    again.export(tmp_path / "set.npz")
    found = np.load(tmp_path / "set.npz")
    assert found["transform_basis"].shape == (90, 90)
    expected = distilled.transform(distilled.pixels).flatten(1).numpy()
    assert np.allclose(whiten(found), expected, atol=1e-3)


def test_npz_of_hard_labels_leaves_out_what_there_is_not(distilled, tmp_path):
    replace(distilled, kind="hard", targets=None, step_size=None).export(tmp_path / "set.npz")
    found = np.load(tmp_path / "set.npz", allow_pickle=False)
    assert not {"targets", "step_size"} & set(found)
    assert np.array_equal(found["soft_labels"], np.eye(3, dtype=np.float32)[found["labels"]])


@pytest.mark.parametrize("name", ["set.parquet", "set.Parquet"])
def test_parquet(distilled, tmp_path, name):
    distilled.export(tmp_path / name)
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_parquet(str(tmp_path / name))
    assert rows.features["label"].names == ["a", "b", "c/d"]
    assert rows["label"] == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(np.asarray(rows[3]["image"]), distilled.pixels[3].permute(1, 2, 0).numpy())
    assert np.allclose(rows[3]["soft_label"], distilled.soft_labels[3])


def test_load_dataset_reads_the_parquet_file_with_its_soft_labels(distilled, tmp_path):
    datasets = pytest.importorskip("datasets")
    distilled.export(tmp_path / "set.parquet")
    rows = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]
    assert (rows.features["label"].names, len(rows)) == (["a", "b", "c/d"], 6)
    assert np.allclose(rows["soft_label"], distilled.soft_labels)


@pytest.mark.parametrize(("name", "rows"), [("one.tar", 10), ("several.tar", 4)])
def test_webdataset_shards_are_read_back_by_name(distilled, tmp_path, monkeypatch, name, rows):
    monkeypatch.setattr(export, "SHARD", rows)
    distilled.export(tmp_path / "out" / name)
    shards = sorted((tmp_path / "out").iterdir())
    assert [shard.name for shard in shards] == {"one.tar": ["one.tar"], "several.tar": [
        "several-000000.tar", "several-000001.tar"]}[name]  # fmt: skip
    samples = {}
    for shard in shards:
        with tarfile.open(shard) as opened:
            for member in opened:
                key, _, ending = member.name.partition(".")
                samples.setdefault(key, {})[ending] = opened.extractfile(member).read()
    assert len(samples) == 6
    for row, sample in enumerate(samples.values()):
        picture = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert np.array_equal(picture, distilled.pixels[row].permute(1, 2, 0).numpy())
        told = json.loads(sample["json"])
        assert int(sample["cls"]) == distilled.labels[row]
        assert told["label"] == distilled.classes[distilled.labels[row]]
        assert np.allclose(told["soft_label"], distilled.soft_labels[row])


def test_shards_are_a_dataset_that_we_read_ourselves(distilled, tmp_path):
    distilled.export(tmp_path / "train.tar")
    found = shards.read(tmp_path, [tmp_path / "train.tar"], Reading())
    assert list(found.parts["train"].labels) == [0, 0, 1, 1, 2, 2]
    before = (tmp_path / "train.tar").read_bytes()
    distilled.export(tmp_path / "train.tar")
    assert (tmp_path / "train.tar").read_bytes() == before


def read_tensors(folder):
    return {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}


def test_tensors_as_the_published_evaluation_reads_them(distilled, tmp_path):
    """DATM trains by the cross-entropy with softmax(labels), and takes float(lr)."""
    distilled.export(tmp_path / "pt", to="pt")
    found = read_tensors(tmp_path / "pt")
    assert list(found) == ["images", "labels", "lr"]
    assert torch.equal(found["images"], distilled.images)
    assert torch.allclose(found["labels"].softmax(1), distilled.soft_labels)
    assert (found["lr"].ndim, float(found["lr"])) == (0, pytest.approx(0.02))
    assert (tmp_path / "pt" / "images.pt").stat().st_size < distilled.images.numel() * 4 + 4096


def test_tensors_of_hard_labels_are_classes_and_without_a_step_size_there_is_none(distilled, tmp_path):
    distilled.export(tmp_path, to="pt")
    replace(distilled, kind="hard", targets=None, step_size=None).export(tmp_path, to="pt")
    found = read_tensors(tmp_path)
    assert list(found) == ["images", "labels"]
    assert torch.equal(found["labels"], distilled.labels)


def test_tensors_of_other_labels_are_logits_of_the_same_probabilities(distilled, tmp_path):
    values = replace(distilled, kind="values", targets=torch.eye(3)[distilled.labels] * 0.8 + 0.1 - 1 / 3)
    values.export(tmp_path, to="pt")
    labels = read_tensors(tmp_path)["labels"]
    assert torch.allclose(labels.softmax(1), values.soft_labels, atol=1e-6)


def test_tensors_are_in_the_order_of_their_classes(distilled, tmp_path):
    mixed = torch.tensor([4, 0, 2, 5, 1, 3])
    rows = {name: getattr(distilled, name)[mixed] for name in ("images", "targets", "labels")}
    replace(distilled, **rows).export(tmp_path, to="pt")
    order = [0, 1, 2, 3, 4, 5]
    found = read_tensors(tmp_path)
    assert torch.equal(found["images"], distilled.images[order])
    assert torch.allclose(found["labels"].softmax(1), distilled.soft_labels[order])


def test_dd_ranking_evaluates_the_tensors(tmp_path, monkeypatch):
    """Its own network, augmentation and loss tell five levels of brightness apart (its top 5 asks for as many)."""
    pytest.importorskip("ddranking", reason="needs DD-Ranking: pip install ddranking")
    metrics = pytest.importorskip("ddranking.metrics.soft_label")
    draws = seeds.generator(0, "brightness")
    labels = torch.arange(60) % 5
    pixels = (torch.randint(0, 50, (60, 3, 32, 32), generator=draws) + 50 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    transform = transforms.fit("standardise", pixels)
    Distilled(
        images=transform(pixels[:10]), targets=6 * torch.eye(5)[labels[:10]], kind="logits", labels=labels[:10],
        step_size=0.01, transform=transform, classes=tuple("abcde"), recipe={}, provenance={},
    ).export(tmp_path, to="pt")  # fmt: skip
    real = metrics.TensorDataset(transform(pixels), labels)
    same = {k: k for k in range(5)}
    data = (3, (32, 32), None, None, 5, real, real, real, same, same)
    monkeypatch.setattr(metrics, "get_dataset", lambda *_: data)
    augmentation = {
        "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 0.0, "contrast": 0.5, "scale": 1.2, "crop": 0.125,
        "cutout": 0.5,
    }  # fmt: skip
    judge = metrics.LabelRobustScoreSoft(
        dataset="CIFAR10", ipc=2, soft_label_criterion="sce", loss_fn_kwargs={"temperature": 1.0}, num_eval=1,
        data_aug_func="dsa", aug_params=augmentation, step_size=500, num_epochs=40, num_workers=0,
        save_path=str(tmp_path / "scores" / "scores.csv"), teacher_model_names=[], device="cpu",
    )  # fmt: skip
    found = read_tensors(tmp_path)
    accuracy, step_size = judge._compute_soft_label_metrics_helper(
        image_tensor=found["images"], image_path=None, soft_labels=found["labels"], lr=found["lr"].item()
    )
    assert step_size == pytest.approx(0.01)
    assert accuracy > 60


@pytest.mark.parametrize("name", ["all.png", "all.PNG"])
def test_picture(distilled, tmp_path, name):
    distilled.export(tmp_path / name)
    assert Image.open(tmp_path / name).size[0] > 2 * 5


def test_folder_names_the_columns_and_rows_of_its_soft_labels(distilled, tmp_path):
    distilled.export(tmp_path / "folder")
    folders = ["a", "b", "c_d"]
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [*folders, "soft_labels.json"]
    found = json.loads((tmp_path / "folder" / "soft_labels.json").read_text())
    assert (found["classes"], found["folders"]) == (["a", "b", "c/d"], folders)
    assert list(found["rows"])[2:4] == ["b/00002.png", "b/00003.png"]
    for number, (name, row) in enumerate(found["rows"].items()):
        assert np.allclose(row, distilled.soft_labels[number])
        picture = np.asarray(Image.open(tmp_path / "folder" / name))
        assert np.array_equal(picture, distilled.pixels[number].permute(1, 2, 0).numpy())


def test_columns_are_found_by_name_where_folders_sort_otherwise(distilled, tmp_path):
    """Eleven numbered classes: a reader that sorts folders has "10" before "2"."""
    classes = tuple(map(str, range(11)))
    labels = torch.arange(11)
    eleven = replace(
        distilled, images=distilled.images[:1].repeat(11, 1, 1, 1), targets=None, kind="hard", labels=labels,
        classes=classes,
    )  # fmt: skip
    eleven.export(tmp_path / "folder")
    found = json.loads((tmp_path / "folder" / "soft_labels.json").read_text())
    for file in (tmp_path / "folder").glob("*/*.png"):
        row = found["rows"][f"{file.parent.name}/{file.name}"]
        assert found["classes"][int(np.argmax(row))] == file.parent.name


def test_no_two_classes_share_a_folder():
    names = ("a/b", "a\\b", "a_b", "Cat", "cat", "..", "", "_", "soft_labels.json", "a_b-2", "Café", "Cafe\u0301")
    found = export.folder_names(names)
    assert found[names.index("a_b")] == "a_b"  # whose name needs no change keeps it
    assert found[:2] == ["a_b-3", "a_b-4"]  # the fifth is called a_b-2
    assert len({name.casefold() for name in found}) == len(names)
    assert not any(set(name) & set("/\\") or name in ("", ".", "..", "soft_labels.json") for name in found)
    assert export.folder_names(("cat", "dog")) == ["cat", "dog"]


def test_a_folder_with_other_files_is_refused_and_the_same_export_is_not(distilled, tmp_path):
    distilled.export(tmp_path / "folder")
    distilled.export(tmp_path / "folder")
    smaller = replace(
        distilled, images=distilled.images[:5], targets=distilled.targets[:5], labels=distilled.labels[:5]
    )
    with pytest.raises(PotstillError, match=r"holds 1 other files \(c_d/00005.png, ...\), which would mix"):
        smaller.export(tmp_path / "folder")


def test_a_folder_may_have_a_dot_in_its_name_if_it_is_there(distilled, tmp_path):
    (tmp_path / "v1.0").mkdir()
    distilled.export(tmp_path / "v1.0")
    assert (tmp_path / "v1.0" / "soft_labels.json").exists()


def test_unknown_format_is_refused(distilled, tmp_path):
    with pytest.raises(PotstillError, match=r"cannot export to '\.jpg'; use \.npz, .*or say it by --to"):
        distilled.export(tmp_path / "set.jpg")
    with pytest.raises(PotstillError, match=r"three \.pt files; give a folder and --to pt"):
        distilled.export(tmp_path / "set.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "says"), [("folder", True), ("set.parquet", True), ("set.npz", False)])
def test_clipped_values_are_told_where_the_format_clips(distilled, tmp_path, caplog, name, says):
    pytest.importorskip("pyarrow")
    white, grey = (distilled.transform(torch.full((6, 3, 6, 5), value)) for value in (1.0, 0.5))
    wild = replace(distilled, images=2 * white - grey)  # 1.5 everywhere in true colours
    with caplog.at_level(logging.WARNING):
        distilled.export(tmp_path / "whole" / name)
        assert not caplog.messages
        wild.export(tmp_path / "wild" / name)
    assert [f"{tmp_path / 'wild' / name}: 100 % of the values leave the range" in m for m in caplog.messages] == [
        True
    ] * says


def test_slots_of_several_pictures_are_exported_as_networks_see_them(distilled, tmp_path):
    several = replace(distilled, pictures=2)
    several.export(tmp_path / "set.npz")
    found = np.load(tmp_path / "set.npz")
    assert np.allclose(found["images"], decode(distilled.images, 2).numpy())
    assert found["labels"].tolist() == [k for k in (0, 0, 1, 1, 2, 2) for _ in range(4)]
    several.export(tmp_path / "folder")
    rows = json.loads((tmp_path / "folder" / "soft_labels.json").read_text())["rows"]
    assert (len(rows), list(rows)[-1]) == (24, "c_d/00023.png")
    first = Image.open(io.BytesIO((tmp_path / "folder" / "a" / "00000.png").read_bytes()))
    assert first.size == (5, 6)


@pytest.mark.parametrize("name", ["folder", "set.parquet"])
def test_rescaled_pictures_hold_every_value_to_half_a_step(distilled, tmp_path, name, caplog):
    wide = replace(distilled, images=distilled.images * 40)
    with caplog.at_level(logging.WARNING, "potstill"):
        wide.export(tmp_path / name, rescale=True)
    assert "clipped" not in caplog.text
    values = wide.transform.invert(wide.images)
    if name == "folder":
        told = json.loads((tmp_path / name / export.SOFT_LABELS).read_text())
        (low, high), rows = told["scale"], [np.array(Image.open(tmp_path / name / row)) for row in told["rows"]]
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        table = pq.read_table(tmp_path / name)
        low, high = json.loads(table.schema.metadata[b"scale"])
        rows = [np.array(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()]
    found = low + torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255 * (high - low)
    assert (low, high) == pytest.approx((float(values.min()), float(values.max())))
    assert float((found - values).abs().max()) <= (high - low) / 510 * 1.001
