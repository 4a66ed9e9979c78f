"""IDX files and CIFAR's binary version."""

import gzip
import struct

import numpy as np
import pytest

from potstill.data.dataset import load
from tests.data.making import pixels, refused, sizes


def idx(path, array, packed=False):
    content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def mnist(root, packed=False):
    root.mkdir(exist_ok=True)
    for name, count in (("train", 40), ("t10k", 20)):
        ending = ".gz" if packed else ""
        idx(root / f"{name}-images-idx3-ubyte{ending}", pixels(count, (8, 8)), packed)
        idx(root / f"{name}-labels-idx1-ubyte{ending}", (np.arange(count) % 4).astype(np.uint8), packed)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_as_it_is_published(tmp_path, packed):
    found = load(str(mnist(tmp_path, packed)))
    assert (found.classes, found.shape, sizes(found)) == (("0", "1", "2", "3"), (1, 8, 8), (36, 4, 20))
    assert np.array_equal(found.test.images[:, 0].numpy(), pixels(20, (8, 8)))


def test_packed_and_unpacked_side_by_side_are_one(tmp_path):
    mnist(tmp_path, True)
    assert sizes(load(str(mnist(tmp_path)))) == (36, 4, 20)


def test_what_is_wrong_with_an_idx_file(tmp_path):
    path = mnist(tmp_path / "a") / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(tmp_path / "a", "its header claims 40 × 8 × 8 values", "it is damaged")
    path.write_bytes(b"\0\0\x0d\x03" + whole[4:])
    refused(tmp_path / "a", "no IDX file of unsigned bytes")
    path.write_bytes(whole[:7])
    refused(tmp_path / "a", "cut short")
    path.write_bytes(whole[:4] + struct.pack(">III", 2**31, 2**31, 2**31) + whole[16:])
    refused(tmp_path / "a", "its header claims")
    path.unlink()
    refused(tmp_path / "a", "the train part has no file of images")
    (mnist(tmp_path / "b", True) / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b junk")
    refused(tmp_path / "b", "not a readable gzip file")


def test_two_sets_in_one_folder(tmp_path):
    mnist(tmp_path)
    idx(tmp_path / "emnist-letters-train-images-idx3-ubyte", pixels(4, (8, 8)))
    refused(tmp_path, "are both for train", "give a folder with one of them")


def records(count, *labels):
    return np.concatenate([*(np.array(k, np.uint8)[:, None] for k in labels), pixels(count, (3072,))], 1).tobytes()


def test_cifar10s_binary_version(tmp_path):
    for number in (1, 2):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(records(20, [i % 2 for i in range(20)]))
    (tmp_path / "test_batch.bin").write_bytes(records(10, [i % 2 for i in range(10)]))
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    found = load(str(tmp_path))
    assert (found.classes, found.shape) == (("airplane", "automobile"), (3, 32, 32))
    assert sizes(found) == (36, 4, 10)
    assert np.array_equal(found.test.images.reshape(10, -1).numpy(), pixels(10, (3072,)))
    refused(tmp_path, "no labels 'coarse'", label_column="coarse")
    (tmp_path / "test_batch.bin").write_bytes(records(10, [0] * 10)[:-5])
    refused(tmp_path, "no whole number of CIFAR's records")


def test_cifar100s_binary_version_has_two_kinds_of_labels(tmp_path):
    fine = [i % 4 for i in range(40)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.bin").write_bytes(records(40, [k // 2 for k in fine], fine))
    (tmp_path / "fine_label_names.txt").write_text("apple\npear\nbus\ntrain\n")
    (tmp_path / "coarse_label_names.txt").write_text("fruit\nvehicle\n")
    assert load(str(tmp_path)).classes == ("apple", "pear", "bus", "train")
    found = load(str(tmp_path), label_column="coarse")
    assert found.classes == ("fruit", "vehicle")
    assert found.test.labels.tolist() == [k // 2 for k in fine]
    refused(tmp_path, "no labels 'middle'", label_column="middle")
