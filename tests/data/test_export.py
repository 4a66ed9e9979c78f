"""Exports: other tools read back what the set holds, names and columns included."""

import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data import export
from potstill.data import transform as transforms
from potstill.data.distilled import decode, load
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
    with pytest.raises(PotstillError, match=r"cannot export to '\.pt'; use \.png"):
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
