"""WebDataset shards."""

import io
import json
import tarfile

import pytest
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import pixels, refused, sizes


def shard(path, count, label=lambda i: {"cls": str(i % 2).encode()}, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for i, array in enumerate(pixels(count)):
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG")
            for ending, content in {"png": buffer.getvalue(), **label(i)}.items():
                member = tarfile.TarInfo(f"sub/{i:05d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_shards_by_the_words_of_their_names(tmp_path, ending, mode):
    for name, count in (("train-000000", 20), ("train-000001", 20), ("val-000000", 10)):
        shard(tmp_path / f"{name}{ending}", count, mode=mode)
    found = load(str(tmp_path))
    assert (found.classes, sizes(found)) == (("0", "1"), (36, 4, 10))


@pytest.mark.parametrize("label", [
    lambda i: {"json": json.dumps({"label": "ab"[i % 2], "width": 8}).encode()}, lambda i: {"cls": b"ab"[i % 2:][:1]},
])  # fmt: skip
def test_labels_as_names(tmp_path, label):
    shard(tmp_path / "data.tar", 12, label)
    assert load(str(tmp_path)).classes == ("a", "b")


def test_another_field_of_the_json(tmp_path):
    shard(tmp_path / "data.tar", 12, lambda i: {"json": json.dumps({"label": 0, "animal": "ab"[i % 2]}).encode()})
    assert load(str(tmp_path), label_column="animal").classes == ("a", "b")


def test_what_is_wrong_with_a_shard(tmp_path):
    shard(tmp_path / "a" / "train.tar", 12, lambda i: {})
    refused(tmp_path / "a", "no labelled training images")
    shard(tmp_path / "b" / "train.tar", 12, lambda i: {"json": b"{"})
    refused(tmp_path / "b", "00000.json: no JSON")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.tar").write_bytes(b"no tar at all")
    refused(tmp_path / "c", "not a readable tar file")
    shard(tmp_path / "d" / "train.tar", 12, lambda i: {"cls": b"0"} if i else {})
    refused(tmp_path / "d", "train image 0: has no label")


def test_a_member_that_claims_too_much(tmp_path):
    shard(tmp_path / "train.tar", 2)
    content = bytearray((tmp_path / "train.tar").read_bytes())
    header = tarfile.TarInfo("x.png")
    header.size = 2**40
    (tmp_path / "train.tar").write_bytes(header.tobuf() + content)
    refused(tmp_path, "claims 1099511627776 bytes")
