"""Every reader of data, with files made at random: an answer or one sentence, nothing executed, no hang."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import pixels
from tests.fuzz.cases import cases, damaged

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(mode="RGB", kind="PNG", size=(6, 5), seed=0):
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, (*size, 3), seed)[0]).convert(mode).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [
    encoded(), encoded("L"), encoded("RGBA"), encoded("P"), encoded(kind="JPEG"), encoded("I;16"), encoded(size=(4, 4)),
    encoded(kind="GIF"), encoded("CMYK", "TIFF"), encoded("1"), encoded(kind="BMP"),
]  # fmt: skip
image_bytes = st.one_of(
    st.sampled_from(IMAGES[:1] * 6 + IMAGES), st.sampled_from(IMAGES).flatmap(damaged), st.binary(max_size=40)
)
labels = st.one_of(
    st.integers(-2, 12), st.sampled_from(["cat", "dog", "", "7", "\x00", "é"]), st.none(), st.floats(), st.booleans(),
    st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip


class Bomb:
    """Unpickled, it would leave a witness."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


@pytest.fixture
def place():
    """A new folder for each case, in memory where the machine has such a place, and a witness that must not appear."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

    class Place:
        def __enter__(self):
            self.held = tempfile.TemporaryDirectory(dir=fast)
            self.path = Path(self.held.name)
            self.data = self.path / "d"
            self.data.mkdir()
            os.environ["POTSTILL_CACHE"] = str(self.path / "cache")
            return self

        def __exit__(self, *_):
            assert not (self.path / "witness").exists(), "something was executed"
            self.held.cleanup()

    before = os.environ["POTSTILL_CACHE"]
    yield Place
    os.environ["POTSTILL_CACHE"] = before


# --- folders -------------------------------------------------------------------------------------------------------

folder_names = st.sampled_from(
    ["train", "test", "val", "cat", "dog", "images", "n01", ".hidden", "training_set", "a$b"]
)
file_names = st.sampled_from(["0.png", "1.PNG", "2.jpeg", "3.tif", "._4.png", "5.txt", "6.gif", "7", "8.webp"])
trees = st.dictionaries(
    st.lists(folder_names, max_size=3).flatmap(lambda parts: file_names.map(lambda name: "/".join([*parts, name]))),
    image_bytes, max_size=12,
)  # fmt: skip
options = st.fixed_dictionaries({
    "resize": st.sampled_from([None, None, 4]), "skip_unreadable": st.booleans(),
    "classes": st.sampled_from([(), (), ("cat", "dog"), ("x",)]),
})  # fmt: skip


def write(root, tree):
    for name, content in tree.items():
        path = root / name
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@cases(0.2)
@given(tree=trees, how=options)
def test_folders(place, outcome, tree, how):
    with place() as here:
        write(here.data, tree)
        with outcome():
            load(str(here.data), **how)


@cases(0.1)
@given(data=st.data(), many=st.integers(3, 5))
def test_class_folders_with_something_odd(place, outcome, data, many):
    """Two whole classes, and up to three files on top: most of these are read."""
    tree = {f"{name}/{i}.png": encoded(seed=i) for name in ("cat", "dog") for i in range(many)}
    tree |= data.draw(st.dictionaries(trees.map(lambda found: next(iter(found), "cat/x.png")), image_bytes, max_size=3))
    with place() as here:
        write(here.data, tree)
        with outcome():
            load(str(here.data), **data.draw(options))


# --- tables of text ------------------------------------------------------------------------------------------------

fields = st.one_of(st.sampled_from(["0.png", "1.png", "2.png", "cat", "dog", "train", "../x", "", '"', "file_name"]),
                   st.text(max_size=6))  # fmt: skip
heads = st.lists(st.sampled_from(["file_name", "label", "split", "id", "class", "x", ""]), min_size=1, max_size=4)


@cases(0.15)
@given(head=heads, rows=st.lists(st.lists(fields, max_size=4), max_size=8), name=st.sampled_from(
    ["metadata.csv", "labels.csv", "train.tsv", "metadata.jsonl"]), junk=st.binary(max_size=8))  # fmt: skip
def test_tables_of_text(place, outcome, head, rows, name, junk):
    with place() as here:
        write(here.data, {f"{i}.png": encoded(seed=i) for i in range(4)})
        if name.endswith("jsonl"):
            text = "\n".join(json.dumps(dict(zip(head, row, strict=False))) for row in rows)
        else:
            text = "\n".join(",".join(row) for row in [head, *rows])
        (here.data / name).write_bytes(text.encode("utf-8", "surrogatepass") + (junk if len(junk) > 6 else b""))
        with outcome():
            load(str(here.data))


# --- arrays --------------------------------------------------------------------------------------------------------

dtypes = st.one_of(
    hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.unsigned_integer_dtypes(),
    hnp.unicode_string_dtypes(max_len=3), hnp.complex_number_dtypes(),
)  # fmt: skip
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
array_names = st.sampled_from(
    ["images", "labels", "x_train", "y_train", "x_test", "y_test", "classes", "data", "Y", "q"]
)


@cases(0.15)
@given(content=st.dictionaries(array_names, arrays, max_size=5))
def test_arrays(place, outcome, content):
    with place() as here:
        np.savez(here.data / "train.npz", **content)
        with outcome():
            load(str(here.data))


good_labels = st.lists(st.integers(-1, 4), min_size=12, max_size=12)


@cases(0.05)
@given(images=hnp.arrays(dtypes, st.sampled_from([(12, 4, 4), (12, 4, 4, 3), (12, 3, 4, 4)])), labels=good_labels)
def test_arrays_of_the_right_form(place, outcome, images, labels):
    with place() as here:
        np.savez(here.data / "train.npz", images=images, labels=labels)
        with outcome():
            load(str(here.data))


def npz(**content):
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


NPZ = npz(images=pixels(12, (4, 4)), labels=np.arange(12) % 2)


@cases(0.1)
@given(content=damaged(NPZ))
def test_damaged_arrays(place, outcome, content):
    with place() as here:
        (here.data / "train.npz").write_bytes(content)
        with outcome():
            load(str(here.data))


@cases(0.02)
@given(data=st.data())
def test_pickles_are_never_read(place, outcome, data):
    with place() as here:
        held = np.empty(2, object)
        held[:] = [Bomb(here.path / "witness"), 1]
        content = data.draw(st.sampled_from([
            pickle.dumps(Bomb(here.path / "witness")), npz(images=held, labels=np.arange(2)),
        ]).flatmap(lambda whole: st.one_of(st.just(whole), damaged(whole))))  # fmt: skip
        (
            here.data / data.draw(st.sampled_from(["train.npz", "data_batch_1", "train.parquet", "train.tar"]))
        ).write_bytes(content)
        with outcome():
            load(str(here.data))


# --- binary files --------------------------------------------------------------------------------------------------

IDX = b"\0\0\x08\x03" + struct.pack(">3I", 12, 4, 4) + pixels(12, (4, 4)).tobytes()
IDX_LABELS = b"\0\0\x08\x01" + struct.pack(">I", 12) + bytes(i % 2 for i in range(12))


@cases(0.06)
@given(images=st.one_of(st.just(IDX), damaged(IDX)), labels=st.one_of(st.just(IDX_LABELS), damaged(IDX_LABELS)),
       packed=st.booleans())  # fmt: skip
def test_idx(place, outcome, images, labels, packed):
    with place() as here:
        for name, content in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
            (here.data / (name + ".gz" * packed)).write_bytes(gzip.compress(content, 1) if packed else content)
        with outcome():
            load(str(here.data))


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for i in range(6):
            for ending, content in (("png", encoded(seed=i)), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i}.{ending}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@cases(0.06)
@given(content=damaged(tar()))
def test_damaged_shards(place, outcome, content):
    with place() as here:
        (here.data / "train.tar").write_bytes(content)
        with outcome():
            load(str(here.data))


# --- Parquet -------------------------------------------------------------------------------------------------------

columns = st.one_of(
    st.lists(labels, min_size=6, max_size=6),
    st.lists(st.one_of(st.none(), image_bytes), min_size=6, max_size=6),
    st.lists(st.fixed_dictionaries({"bytes": st.one_of(st.none(), image_bytes),
                                    "path": st.sampled_from([None, "0.png", "/etc/passwd", "../0.png"])}),
             min_size=6, max_size=6),
)  # fmt: skip


@cases(0.02, 10)
@given(content=st.dictionaries(st.sampled_from(["image", "img", "label", "labels", "x"]), columns, max_size=3))
def test_parquet(place, outcome, content):
    with place() as here:
        try:
            table = pa.table(content)
        except (pa.ArrowException, TypeError):  # columns of mixed types are none
            return
        pq.write_table(table, here.data / "train.parquet")
        with outcome():
            load(str(here.data))


def parquet():
    buffer = io.BytesIO()
    rows = [{"bytes": encoded(seed=i), "path": None} for i in range(6)]
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 3}), buffer)
    return buffer.getvalue()


@cases(0.02, 10)
@given(content=damaged(parquet()))
def test_damaged_parquet(place, outcome, content):
    with place() as here:
        (here.data / "train.parquet").write_bytes(content)
        with outcome():
            load(str(here.data))
