"""Small datasets for the tests, and what is refused of them."""

import numpy as np
import pytest
from PIL import Image

from potstill.data.dataset import load
from potstill.errors import PotstillError


def pixels(n, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def folder_of(root, counts, shape=(8, 8, 3), suffix=".png"):
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i, array in enumerate(pixels(count, shape, number)):
            Image.fromarray(array[:, :, 0] if shape[2] == 1 else array).save(root / name / f"{i:03d}{suffix}")
    return root


def sizes(dataset):
    return len(dataset.train), len(dataset.val), len(dataset.test)


def parquet(path, images, labels, names=("a", "b")):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [Image.fromarray(image) for image in images], "label": list(labels)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def refused(source, *words, **how):
    with pytest.raises(PotstillError) as error:
        load(str(source), **how)
    for word in words:
        assert word in str(error.value)
