"""Images with a table of their labels."""

import json

import pytest
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import folder_of, pixels, refused, sizes


def flat(root, count=12, prefix=""):
    root.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(pixels(count)):
        Image.fromarray(array).save(root / f"{prefix}{i}.png")
    return root


def csv_of(path, rows, head="file_name,label"):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def test_metadata_in_each_part_as_the_convention_has_it(tmp_path):
    for part, count in (("train", 20), ("test", 8)):
        flat(tmp_path / part, count)
        csv_of(tmp_path / part / "metadata.csv", [(f"{i}.png", "dog" if i % 2 else "cat") for i in range(count)])
    found = load(str(tmp_path))
    assert (found.classes, sizes(found)) == (("cat", "dog"), (18, 2, 8))
    assert found.test.labels.tolist() == [0, 1] * 4


def test_metadata_as_json_lines_outranks_class_folders(tmp_path):
    folder_of(tmp_path, {"scan": 6, "photo": 6})
    rows = [{"file_name": f"{f}/{i:03d}.png", "label": i % 3} for f in ("scan", "photo") for i in range(6)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(str(tmp_path)).classes == ("0", "1", "2")


@pytest.mark.parametrize(("head", "sep"), [("path,label", ","), ("image;class", ";"), ("filename\ttarget", "\t")])
def test_a_table_of_paths_and_labels(tmp_path, head, sep):
    flat(tmp_path / "images")
    rows = [sep.join((f"images/{i}.png", str(i % 2))) for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join([head, *rows]))
    for source in (tmp_path, tmp_path / "labels.csv"):
        found = load(str(source))
        assert (found.classes, sum(sizes(found))) == (("0", "1"), 12)


def test_names_without_endings_and_a_column_of_parts(tmp_path):
    flat(tmp_path / "all", 20)
    rows = [(i, "ab"[i % 2], "train" if i < 12 else "test") for i in range(20)]
    csv_of(tmp_path / "labels.csv", rows, "id,breed,split")
    assert sizes(load(str(tmp_path))) == (10, 2, 8)


def test_flat_parts_with_a_table_for_training_only(tmp_path):
    """As many competitions are published."""
    flat(tmp_path / "train", 12, "a")
    flat(tmp_path / "test", 5, "b")
    csv_of(tmp_path / "train.csv", [(f"a{i}.png", i % 2) for i in range(12)], "filename,label")
    found = load(str(tmp_path))
    assert sum(sizes(found)) == 12
    assert found.notes == ("5 images are in none of the tables and were left out",)


def test_columns_by_name(tmp_path):
    flat(tmp_path)
    csv_of(tmp_path / "labels.csv", [(f"{i}.png", i % 3, i % 2) for i in range(12)], "where,species,sex")
    refused(tmp_path, "no column of labels", "--label-column")
    found = load(str(tmp_path), image_column="where", label_column="sex")
    assert found.classes == ("0", "1")
    refused(tmp_path, "no column 'age'", "--label-column", label_column="age", image_column="where")


@pytest.mark.parametrize(("name", "words"), [
    ("nothing.png", "is no image in the folder"), ("../../etc/x.png", "is no image in the folder"), ("", "is no image"),
])  # fmt: skip
def test_a_row_that_names_no_image_of_the_folder(tmp_path, name, words):
    flat(tmp_path)
    csv_of(tmp_path / "labels.csv", [("0.png", 0), (name, 1)])
    refused(tmp_path, "labels.csv, line 3", words)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'{"file_name": ', b"[1, 2]\n", b'"unclosed\n\n'])
def test_a_damaged_table(tmp_path, content):
    flat(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(content)
    refused(tmp_path, "metadata.jsonl: not a readable table")


def test_a_row_without_a_label(tmp_path):
    flat(tmp_path)
    csv_of(tmp_path / "labels.csv", [("0.png", "a"), ("1.png", "")])
    refused(tmp_path, "train image 1: has no label")
