"""Every way in, and one clear sentence for every way it can be wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import folder_of, parquet, pixels, refused, sizes

# --- what works ----------------------------------------------------------------------------------------------------


def test_digits_are_embedded_and_divided():
    digits = load("digits", validation=0.2)
    assert digits.shape == (1, 8, 8)
    assert sum(sizes(digits)) == 1797
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255
    assert digits.fingerprint == load("digits", validation=0.2).fingerprint
    assert digits.fingerprint != load("digits", validation=0.1).fingerprint


def test_splits_are_disjoint_and_hold_every_class(arrays):
    values = np.arange(200, dtype=np.uint8)  # each image is its own number
    images = np.broadcast_to(values[:, None, None], (200, 4, 4))
    dataset = load(arrays(images, values % 4), validation=0.25)
    parts = [set(split.images[:, 0, 0, 0].tolist()) for split in (dataset.train, dataset.val, dataset.test)]
    assert set.union(*parts) == set(range(200))
    assert sum(map(len, parts)) == 200
    for split in (dataset.train, dataset.val, dataset.test):
        assert torch.equal(split.images[:, 0, 0, 0].long() % 4, split.labels)
        assert len(split.labels.unique()) == 4


@pytest.mark.parametrize("above", [("train", "test"), ("train", "val"), None])
@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 9, 1)])
def test_folder_of_class_folders(tmp_path, above, shape):
    for name in above or ("",):
        folder_of(tmp_path / "d" / name, {"cat": 12, "dog": 10}, shape)
    dataset = load(str(tmp_path / "d"), validation=0.2)
    assert dataset.classes == ("cat", "dog")
    assert dataset.shape == (shape[2], *shape[:2])
    assert sizes(dataset) == ((18, 4, 22) if above else (14, 4, 4))
    again = load(str(tmp_path / "d"), validation=0.2)  # from the cache
    assert again.fingerprint == dataset.fingerprint


def test_a_class_may_be_called_train(tmp_path):
    folder_of(tmp_path / "d" / "train", {"test": 10, "train": 10})
    assert load(str(tmp_path / "d")).classes == ("test", "train")
    folder_of(tmp_path / "e", {"boat": 10, "train": 10})
    assert load(str(tmp_path / "e")).classes == ("boat", "train")


def test_a_stray_image_makes_no_class(tmp_path):
    folder_of(tmp_path / "d" / "train", {"cat": 10, "dog": 10})
    folder_of(tmp_path / "d" / "test", {"cat": 2, "dog": 2})
    (tmp_path / "d" / "train" / "preview.png").write_bytes(next((tmp_path / "d").rglob("*.png")).read_bytes())
    assert load(str(tmp_path / "d")).classes == ("cat", "dog")


def test_a_folder_around_it_all_is_looked_through(tmp_path):
    folder_of(tmp_path / "flowers" / "flowers", {"rose": 10, "tulip": 10})
    assert load(str(tmp_path / "flowers")).classes == ("rose", "tulip")
    assert load(str(tmp_path / "flowers" / "flowers")).classes == ("rose", "tulip")


def test_folder_keeps_the_pixels(tmp_path):
    folder_of(tmp_path / "train", {"a": 4, "b": 4})
    folder_of(tmp_path / "test", {"a": 2, "b": 2})
    dataset = load(str(tmp_path), validation=0.25)
    found = {tuple(image.permute(1, 2, 0).flatten().tolist()) for image in dataset.test.images}
    assert found == {tuple(a.flatten().tolist()) for seed in (0, 1) for a in pixels(2, seed=seed)}


def test_mixed_sizes_are_resized_on_request(tmp_path):
    folder_of(tmp_path / "a", {"x": 4}, (20, 30, 3))
    folder_of(tmp_path / "b", {"x": 4}, (16, 16, 3))
    assert load(str(tmp_path), resize=8).shape == (3, 8, 8)


def test_changed_files_are_read_again(tmp_path):
    folder_of(tmp_path, {"a": 6, "b": 6})
    first = load(str(tmp_path))
    Image.fromarray(pixels(1, seed=9)[0]).save(tmp_path / "a" / "new.png")
    assert sum(sizes(load(str(tmp_path)))) == sum(sizes(first)) + 1


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz_layouts(arrays, layout):
    images = pixels(40, (6, 7, 3))
    stored = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2), "NHW": images[..., 0]}[layout]
    dataset = load(arrays(stored, np.arange(40) % 4))
    assert dataset.shape == (1 if layout == "NHW" else 3, 6, 7)
    everything = torch.cat([dataset.train.images, dataset.val.images, dataset.test.images]).double()
    assert float(everything.mean()) == pytest.approx(stored.mean())


def test_npz_of_floats_and_with_test_arrays(tmp_path):
    x = pixels(40, (4, 4, 1))
    y = np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x_train=x / 255.0, y_train=y, x_test=x[:10] / 255.0, y_test=y[:10])
    dataset = load(str(tmp_path / "d.npz"))
    assert len(dataset.test) == 10
    assert torch.equal(dataset.test.images[:, 0], torch.from_numpy(x[:10, :, :, 0]))


def test_folder_with_train_and_test_npz(tmp_path):
    for name, n in (("train", 40), ("test", 20)):
        np.savez(tmp_path / f"{name}.npz", images=pixels(n), labels=np.arange(n) % 2, classes=np.array(["a", "b"]))
    dataset = load(str(tmp_path))
    assert (dataset.classes, sizes(dataset)) == (("a", "b"), (36, 4, 20))


def test_npz_files_by_the_words_of_their_names(tmp_path):
    """ "interval" and "latest" name no split."""
    for name, n in (("train-interval", 40), ("val", 10), ("latest/test", 20)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / f"{name}.npz", images=pixels(n), labels=np.arange(n) % 2)
    assert sizes(load(str(tmp_path))) == (40, 10, 20)
    np.savez(tmp_path / "batch-2.npz", images=pixels(6), labels=np.arange(6) % 2)
    refused(tmp_path, "a second file of train images", "join them into one .npz")


def test_arrays_are_resized_on_request(arrays):
    assert load(arrays(pixels(20, (12, 8, 3)), [0, 1] * 10), resize=6).shape == (3, 6, 6)
    assert load(arrays(pixels(20, (12, 8, 1)), [0, 1] * 10), resize=6).shape == (1, 6, 6)
    refused("digits", "resize -2", resize=-2)


def test_a_cache_that_cannot_be_written_is_no_obstacle(arrays, monkeypatch, caplog):
    source = arrays(pixels(20), [0, 1] * 10)
    monkeypatch.setenv("POTSTILL_CACHE", "/proc/nowhere")
    with caplog.at_level("WARNING", "potstill"):
        assert sum(sizes(load(source))) == 20
    assert "not kept for the next time" in caplog.text


def test_folder_of_parquet_files(tmp_path):
    parquet(tmp_path / "train-0000.parquet", pixels(20), np.arange(20) % 2)
    parquet(tmp_path / "test-0000.parquet", pixels(6, seed=1), np.arange(6) % 2)
    dataset = load(str(tmp_path), validation=0.1)
    assert (dataset.classes, sizes(dataset)) == (("a", "b"), (18, 2, 6))
    assert torch.equal(dataset.test.images.permute(0, 2, 3, 1), torch.from_numpy(pixels(6, seed=1)))


def test_cifar10_whole(real_data, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, str(real_data / "unpack.py"), str(tmp_path), "--only", "cifar10", "--format", "npz"]
    subprocess.run(command, check=True, capture_output=True)
    cifar = load(str(tmp_path / "cifar10"))
    assert (sizes(cifar), cifar.shape, cifar.classes[3]) == ((45_000, 5_000, 10_000), (3, 32, 32), "cat")
    both = torch.cat([cifar.train.images, cifar.val.images]).double() / 255
    means = [round(float(m), 4) for m in both.mean((0, 2, 3))]
    assert means == [0.4914, 0.4822, 0.4465]


# --- what is refused -----------------------------------------------------------------------------------------------


def test_corrupt_image_is_named(tmp_path):
    folder_of(tmp_path, {"a": 5, "b": 5})
    whole = (tmp_path / "b" / "002.png").read_bytes()
    (tmp_path / "b" / "002.png").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "002.png", "not a readable image", "replace it or remove it")
    (tmp_path / "b" / "002.png").write_text("no image")
    refused(tmp_path, "002.png", "not a readable image")


def test_corrupt_image_in_a_table_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = pa.array([{"bytes": b"junk", "path": None}] * 4)
    pq.write_table(pa.table({"image": rows, "label": pa.array([0, 1, 0, 1])}), tmp_path / "train.parquet")
    refused(tmp_path, "row 0", "not a readable image")


def test_damaged_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
    refused(tmp_path, "Parquet files cannot be read", "write them again")


def test_empty_class(tmp_path):
    folder_of(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "c").mkdir()
    refused(tmp_path, "class 'c' has no images", "add some, or remove the folder")


def test_class_of_one_image(tmp_path):
    folder_of(tmp_path, {"a": 5, "b": 1})
    refused(tmp_path, "only 1 training image", "add images or drop the class")


def test_unknown_class_in_test(tmp_path):
    folder_of(tmp_path / "train", {"a": 5, "b": 5})
    folder_of(tmp_path / "test", {"a": 5, "z": 5})
    refused(tmp_path, "class 'z' has no folder", "rename or remove it")


def test_mixed_sizes(tmp_path):
    folder_of(tmp_path / "a", {"x": 3}, (8, 8, 3))
    folder_of(tmp_path / "b", {"x": 3}, (9, 8, 3))
    refused(tmp_path, "8×9 pixels, but", "has 8×8", "pass --resize PIXELS")


@pytest.mark.parametrize(("labels", "word"), [([0, 1, -1, 1] * 5, "-1"), ([0, 1, 2, 5] * 5, "label 5")])
def test_labels_out_of_range(arrays, labels, word):
    refused(arrays(pixels(20), labels, classes=np.array(["a", "b", "c"])), word, "out of range")


def test_empty_arrays_and_missing_labels(arrays, tmp_path):
    refused(arrays(np.zeros((0, 8, 8), np.uint8), np.zeros(0, int)), "holds no images")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    png = (folder_of(tmp_path / "f", {"a": 1}) / "a" / "000.png").read_bytes()
    rows = pa.array([{"bytes": png, "path": None}] * 4)
    (tmp_path / "t").mkdir()
    pq.write_table(
        pa.table({"image": rows, "label": pa.array(["x", "y", None, "y"])}), tmp_path / "t" / "train.parquet"
    )
    refused(tmp_path / "t", "train image 2: has no label")


def test_labels_that_are_no_numbers_and_too_few(arrays):
    refused(arrays(pixels(20), [0.5, 1.0] * 10), "train label 0.5 of type float", "one whole number or one name")
    refused(arrays(pixels(20), [0, 1] * 9), "20 images but 18 labels")


def test_nan(arrays):
    images = pixels(20) / 255.0
    images[7, 0, 0, 0] = np.nan
    refused(arrays(images, [0, 1] * 10), "image 7 holds NaN", "replace or remove it")


def test_pixels_out_of_range(arrays):
    refused(arrays(pixels(20) * 3.0, [0, 1] * 10), "expected uint8 from 0 to 255 or floats from 0 to 1")


def test_arrays_of_another_shape_or_name(arrays, tmp_path):
    refused(arrays(np.zeros((20, 8)), [0, 1] * 10), "images of shape (20, 8)", "expected (N, H, W)")
    np.savez(tmp_path / "data.npz", pictures=np.zeros(3))
    refused(tmp_path / "data.npz", "holds ['pictures']", "expected images and labels")


def test_a_pickle_is_never_read(tmp_path):
    """The file would create a witness if it were unpickled."""
    import os
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "witness"),)

    images = np.empty(2, object)
    images[:] = [Bomb(), 1]
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(2))
    refused(tmp_path / "data.npz", "pickle", "never read")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "raw.npz", "pickle", "never read")
    assert not (tmp_path / "witness").exists()


def test_damaged_npz(arrays, tmp_path):
    whole = (tmp_path / arrays(pixels(20), [0, 1] * 10)).read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "data.npz", "not a readable .npz file")


def test_one_class(arrays):
    refused(arrays(pixels(20), [0] * 20), "1 class; classification needs two or more")


def test_nothing_there(tmp_path):
    refused(tmp_path / "nowhere", "there is no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no class folders")
    (tmp_path / "file.txt").write_text("x")
    refused(tmp_path / "file.txt", "not .npz")


def test_a_name_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name):
        raise ConnectionError("offline: could not reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    refused("someone/cifar", "neither a folder or file here nor a Hugging Face dataset", "offline")


def test_validation_is_a_fraction():
    refused("digits", "fraction between 0 and 1", validation=1.5)


def test_label_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"img": datasets.Image(), "fine_label": names, "coarse_label": names})
    rows = {"img": [Image.fromarray(i) for i in pixels(12)], "fine_label": [0, 1] * 6, "coarse_label": [1, 0] * 6}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    refused(tmp_path, "several label columns", "--label-column")
    refused(tmp_path, "no column 'nonsense'", label_column="nonsense")
    assert sum(sizes(load(str(tmp_path), label_column="fine_label"))) == 12
