"""What a Python program holds is read as the same images and labels in files would be."""

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data import dataset
from potstill.errors import PotstillError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)  # (N, H, W, C)
GREY = RNG.integers(0, 256, (60, 6, 5), dtype=np.uint8)
Y = np.arange(60) % 3


class Items(torch.utils.data.Dataset):
    """A dataset of pairs, with what torchvision's have beside them."""

    classes = ["cat", "dog", "eel"]  # noqa: RUF012

    def __init__(self, images, labels, change=lambda image: image):
        self.images, self.labels, self.change = images, labels, change

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.change(self.images[row]), self.labels[row]


def all_images(found):
    """Every image of a dataset in the order in which they were given."""
    rows = torch.cat([found.train.rows, found.val.rows, found.test.rows])
    images = torch.cat([found.train.images, found.val.images, found.test.images])
    return images[rows.argsort()].numpy()


CHANNELS_FIRST = COLOUR.transpose(0, 3, 1, 2)
SAME = {
    "NumPy, channels last": COLOUR,
    "NumPy, channels first": CHANNELS_FIRST,
    "floats from 0 to 1": COLOUR / 255,
    "a tensor": torch.from_numpy(CHANNELS_FIRST.copy()),
    "a tensor of floats with a gradient": (torch.from_numpy(CHANNELS_FIRST / 255).float()).requires_grad_(),
    "bytes in whole floats": torch.from_numpy(COLOUR.astype(np.float32)),
    "a list of arrays": list(COLOUR),
    "a list of tensors": list(torch.from_numpy(CHANNELS_FIRST.copy())),
    "PIL images": [Image.fromarray(image) for image in COLOUR],
}


@pytest.mark.parametrize("kind", SAME)
def test_images_of_any_kind_are_the_same_data(kind):
    expected = dataset.load((COLOUR, Y))
    found = dataset.load((SAME[kind], Y))
    assert np.array_equal(all_images(found), CHANNELS_FIRST)
    assert found.fingerprint == expected.fingerprint
    assert found.name == "arrays"


@pytest.mark.parametrize(
    "labels", [Y.tolist(), torch.from_numpy(Y), Y.astype(np.uint8), list(map(np.int64, Y)), list(torch.from_numpy(Y))]
)
def test_labels_of_any_kind_are_the_same(labels):
    assert dataset.load((GREY, labels)).fingerprint == dataset.load((GREY, Y)).fingerprint


def test_labels_may_be_names():
    assert dataset.load((GREY, [["eel", "cat", "dog"][k] for k in Y])).classes == ("cat", "dog", "eel")


def test_the_same_data_in_a_file_have_the_same_contents(arrays):
    assert dataset.load(arrays(GREY, Y)).fingerprint == dataset.load((GREY, Y)).fingerprint


def test_data_are_named_by_their_contents():
    other = GREY.copy()
    other[7, 2, 3] ^= 1
    first, second = (dataset.name_in_settings(dataset.load((images, Y))) for images in (GREY, other))
    assert first.startswith("arrays:")
    assert first != second
    with pytest.raises(PotstillError, match=r"arrays:\w+: these data were given in Python.*give them again"):
        dataset.load(first)


def test_a_test_part_is_given_or_taken():
    taken = dataset.load((GREY, Y))
    assert (len(taken.train), len(taken.val), len(taken.test)) == (42, 6, 12)
    given = dataset.load((GREY, Y), test=(GREY[:9], Y[:9]))
    assert (len(given.train), len(given.val), len(given.test)) == (54, 6, 9)
    by_name = dataset.load({"train": (GREY, Y), "test": (GREY[:9], Y[:9])})
    assert by_name.fingerprint == given.fingerprint
    with pytest.raises(PotstillError, match="hold a test part already"):
        dataset.load({"train": (GREY, Y), "test": (GREY[:9], Y[:9])}, test=(GREY, Y))
    with pytest.raises(PotstillError, match="'first': names no part of its own"):
        dataset.load({"first": (GREY, Y)})
    with pytest.raises(PotstillError, match="test: belongs to data in memory"):
        dataset.load("digits", test=(GREY, Y))


def test_rows_say_where_images_stood():
    found = dataset.load((GREY, Y), classes=["1", "2"])
    for split in (found.train, found.val, found.test):
        assert np.array_equal(split.images[:, 0].numpy(), GREY[split.rows])
    assert set(Y[found.train.rows]) == {1, 2}


def test_torch_datasets_and_lists_of_pairs():
    expected = dataset.load((COLOUR, Y))
    pictures = [Image.fromarray(image) for image in COLOUR]
    whole = dataset.load(Items(pictures, Y.tolist()))
    assert whole.classes == ("cat", "dog", "eel")
    assert np.array_equal(all_images(whole), CHANNELS_FIRST)
    assert dataset.load(list(zip(pictures, Y.tolist(), strict=True))).fingerprint == expected.fingerprint
    subset = torch.utils.data.Subset(Items(pictures, Y.tolist()), range(30))
    assert dataset.load(subset).classes == ("cat", "dog", "eel")


def test_an_iterable_dataset_is_read_once_through():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(COLOUR, Y.tolist(), strict=True))

    assert dataset.load(Stream()).fingerprint == dataset.load((COLOUR, Y)).fingerprint


def test_pictures_of_several_sizes_are_resized():
    pictures = [Image.fromarray(np.full((8 + k % 3, 9, 3), 40 * (k % 3), np.uint8)) for k in range(60)]
    with pytest.raises(PotstillError, match=r"train image 1: 9×9 pixels, but train image 0 has 9×8; pass --resize"):
        dataset.load((pictures, Y))
    assert dataset.load((pictures, Y), resize=8).shape == (3, 8, 8)
    assert pictures[1].size == (9, 9)


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])})
    columns = {"image": [Image.fromarray(image) for image in COLOUR], "label": Y.tolist()}
    table = datasets.Dataset.from_dict(columns, features=features)
    found = dataset.load(table)
    assert found.classes == ("cat", "dog", "eel")
    assert np.array_equal(all_images(found), CHANNELS_FIRST)
    assert dataset.load(table.with_format("torch")).fingerprint == found.fingerprint
    with pytest.raises(PotstillError, match="a stream of Hugging Face's"):
        dataset.load(table.to_iterable_dataset())
    both = dataset.load(datasets.DatasetDict({"train": table, "test": table.select(range(9))}))
    assert (len(both.train), len(both.test)) == (54, 9)
    assert dataset.load(table, test=table.select(range(9))).fingerprint == both.fingerprint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((RNG.integers(0, 9, (60, 3, 8, 3)), Y), r"\(60, 3, 8, 3\), which may be .* give PIL images"),
        ((GREY.reshape(60, -1), Y), r"train: images of shape \(60, 30\); expected \(N, H, W\)"),
        ((GREY, Y[:-1]), "60 images but 59 labels"),
        ((GREY,), "a tuple of 1; expected"),
        ((GREY, None), "labels are of type NoneType"),
        ((GREY * 1.5 - 300, Y), "pixels from -300 to"),
        ((GREY, np.eye(3)[Y]), "of type list: a label is one whole number"),
        (([GREY[0], GREY[1][:3], *GREY[2:]], Y), r"images of shapes \(6, 5\) and \(3, 5\); make them alike"),
        (([], []), "train: holds no images"),
        (GREY, "an array without labels"),
        (7, "data of type int: expected"),
        (torch.utils.data.DataLoader([1, 2]), "a DataLoader gives batches"),
        (list(GREY), "train item 0: of type ndarray; expected a pair"),
        (Items(GREY, Y.tolist(), lambda image: image + RNG.integers(0, 9)), "is another image at each reading"),
        (Items(GREY, Y.tolist(), lambda image: image[9]), "train item 0: reading it fails .IndexError"),
        ([(Image.fromarray(GREY[0]), 0), (GREY[1], 1)] * 9, "train image 1: of type ndarray, where others are PIL"),
    ],
)
def test_what_does_not_fit_is_told(data, message):
    with pytest.raises(PotstillError, match=message):
        dataset.load(data)


def test_options_without_effect_are_refused():
    with pytest.raises(PotstillError, match="label_column fine: has no effect"):
        dataset.load((GREY, Y), label_column="fine")
