"""Names of arrays that people really have."""

import zipfile

import numpy as np
import pytest

from potstill.data.dataset import load
from tests.data.making import pixels, refused, sizes


@pytest.mark.parametrize("names", [("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "Y_{}")])
def test_parts_in_one_file(tmp_path, names):
    labels = np.arange(40)[:, None] % 4
    found = {
        name.format(part): value
        for part in ("train", "val", "test")
        for name, value in zip(names, (pixels(40), labels), strict=True)
    }
    np.savez(tmp_path / "x.npz", **found)
    assert sizes(load(str(tmp_path / "x.npz"))) == (40, 40, 40)
    np.savez(tmp_path / "y.npz", **{name: found[name] for name in found if "val" not in name})
    assert sizes(load(str(tmp_path / "y.npz"))) == (36, 4, 40)


@pytest.mark.parametrize("names", [("x", "y"), ("data", "target"), ("Images", "Labels")])
def test_one_part_under_other_names(tmp_path, names):
    np.savez(tmp_path / "x.npz", **dict(zip(names, (pixels(40), np.arange(40) % 4), strict=True)))
    assert sum(sizes(load(str(tmp_path / "x.npz")))) == 40


def test_test_images_without_labels_are_left_aside(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=pixels(40), y_train=np.arange(40) % 4, x_test=pixels(10))
    found = load(str(tmp_path / "x.npz"))
    assert sum(sizes(found)) == 40
    assert found.notes == ("the test part has no labels and is left aside",)


def test_the_classes_of_two_files_are_matched_by_name(tmp_path):
    for part, names in (("train", "abcd"), ("test", "dcba")):
        np.savez(tmp_path / f"{part}.npz", images=pixels(40), labels=np.arange(40) % 4, classes=list(names))
    found = load(str(tmp_path))
    assert found.classes == tuple("abcd")
    assert found.test.labels.tolist() == [3 - i % 4 for i in range(40)]


def test_endings_in_any_case(tmp_path):
    np.savez(tmp_path / "x.npz", images=pixels(40), labels=np.arange(40) % 4)
    (tmp_path / "x.npz").rename(tmp_path / "x.NPZ")
    assert load(str(tmp_path)).classes == load(str(tmp_path / "x.NPZ")).classes


def test_a_header_that_claims_more_than_memory_holds(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=pixels(4), labels=np.arange(4) % 2)
    with zipfile.ZipFile(path) as packed:
        contents = {name: packed.read(name) for name in packed.namelist()}
    header = contents["images.npy"]
    contents["images.npy"] = header.replace(b"(4, 8, 8, 3)", b"(4000000000000, 8, 8, 3)").replace(b" " * 12, b"", 1)
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in contents.items():
            packed.writestr(name, content)
    refused(path, "x.npz: ")


def test_a_part_that_is_not_whole(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=pixels(40), x_test=pixels(4), y_test=np.arange(4))
    refused(tmp_path / "x.npz", "expected images and labels, or x_train and y_train")


@pytest.mark.parametrize("order", ["<", ">"])
def test_labels_and_pixels_of_either_byte_order(tmp_path, order):
    images = (np.arange(40 * 16) % 60000).reshape(40, 4, 4).astype(f"{order}u2")
    np.savez(tmp_path / "x.npz", images=images, labels=(np.arange(40) % 2).astype(f"{order}i4"))
    found = load(str(tmp_path / "x.npz"))
    assert found.classes == ("0", "1")
    assert found.train.images.float().mean() < 2  # of 65535
