"""Parquet files: which column, which part, which images."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import pixels, refused, sizes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(seed=0):
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, seed=seed)[0]).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(path, labels, features=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array([encoded(i) for i in range(len(labels))], ENCODED)
    made = pa.table({"image": images, "label": labels, **more})
    if features:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path)


NAMED = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}


def test_whole_numbers_keep_their_order(tmp_path):
    table(tmp_path / "train.parquet", np.arange(48) % 12)
    assert load(str(tmp_path)).classes == tuple(map(str, range(12)))


def test_labels_in_lists_of_one(tmp_path):
    table(tmp_path / "train.parquet", [[i % 3] for i in range(48)])
    assert load(str(tmp_path)).classes == ("0", "1", "2")
    table(tmp_path / "train.parquet", [[i % 3, 1] for i in range(48)])
    refused(tmp_path, "train label [0, 1] of type list", "one whole number or one name")


def test_a_test_part_without_labels_gives_way_to_validation(tmp_path):
    for part, labels in (("train", [0, 1, 2] * 8), ("validation", [0, 1, 2] * 4), ("test", [-1] * 6)):
        table(tmp_path / f"{part}.parquet", labels, NAMED)
    found = load(str(tmp_path))
    assert sizes(found) == (21, 3, 12)
    assert found.notes == ("the test part has no labels and is left aside",)


def test_a_files_own_name_decides_before_its_folders(tmp_path):
    table(tmp_path / "train-jobs/train.parquet", [0, 1, 2] * 12)
    table(tmp_path / "train-jobs/test.parquet", [0, 1, 2] * 8)
    assert sizes(load(str(tmp_path))) == (33, 3, 24)


def test_dev_is_a_part_and_what_is_none_is_a_question(tmp_path):
    table(tmp_path / "train.parquet", [0, 1, 2] * 12)
    table(tmp_path / "dev.parquet", [0, 1, 2] * 8)
    assert sizes(load(str(tmp_path)))[2] == 24
    table(tmp_path / "extra.parquet", [0, 1, 2] * 8)
    refused(tmp_path, "extra.parquet: neither for training nor for testing by its name")


def test_several_configurations(tmp_path):
    table(tmp_path / "fine/train.parquet", [f"f{i % 4}" for i in range(40)])
    table(tmp_path / "coarse/train.parquet", [f"c{i % 2}" for i in range(40)])
    refused(tmp_path, "several configurations, coarse, fine")
    assert load(str(tmp_path / "coarse")).classes == ("c0", "c1")


def test_hidden_copies_are_not_counted(tmp_path):
    for name in ("train.parquet", ".ipynb_checkpoints/train-checkpoint.parquet"):
        table(tmp_path / name, [0, 1] * 12)
    assert sum(sizes(load(str(tmp_path)))) == 24


def test_several_image_columns(tmp_path):
    masks = pa.array([encoded(99)] * 24, ENCODED)
    kinds = {"image": {"_type": "Image"}, "mask": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    table(tmp_path / "train.parquet", [0, 1] * 12, kinds, mask=masks)
    refused(tmp_path, "several image columns, image, mask", "--image-column")
    found = load(str(tmp_path), image_column="mask")
    assert len({tuple(image.flatten().tolist()) for image in found.train.images}) == 1
    refused(tmp_path, "no column 'masks'", "--image-column", image_column="masks")


def test_nested_lists_are_pixels(tmp_path):
    images = pixels(24, (8, 8))
    pq.write_table(pa.table({"image": images.tolist(), "label": [0, 1] * 12}), tmp_path / "train.parquet")
    found = load(str(tmp_path))
    both = [image[0].tolist() for split in (found.train, found.val, found.test) for image in split.images]
    assert sorted(both) == sorted(images.tolist())


@pytest.mark.parametrize("images", [list(range(24)), [0.5] * 24, [True, False] * 12])
def test_an_image_column_of_another_type(tmp_path, images):
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 12}), tmp_path / "train.parquet")
    refused(tmp_path, "column 'image' of type", "holds no encoded images")


def rows_that_name(root, paths):
    rows = pa.array([{"bytes": None, "path": str(path)} for path in paths], ENCODED)
    pq.write_table(pa.table({"image": rows, "label": [0] * 6 + [1] * 6}), root / "train.parquet")


@pytest.mark.parametrize("absolute", [True, False])
def test_images_beside_the_table_are_read_and_a_change_is_noticed(tmp_path, absolute):
    (tmp_path / "im/x").mkdir(parents=True)
    names = [f"im/x/{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        Image.fromarray(pixels(1, seed=i)[0]).save(tmp_path / name)
    rows_that_name(tmp_path, [tmp_path / name if absolute else name for name in names])
    first = load(str(tmp_path))
    Image.fromarray(pixels(1, seed=77)[0]).save(tmp_path / names[3])
    assert load(str(tmp_path)).fingerprint != first.fingerprint


def test_rows_that_point_outside_are_refused(tmp_path):
    """Else any image on the disk could get into a set that is then shared."""
    (tmp_path / "d").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", "../secret.png", "x/../../secret.png"):
        rows_that_name(tmp_path / "d", [path] * 12)
        refused(tmp_path / "d", "row 0: points at", "outside of the dataset's folder")
