"""Labelled images that a Python program holds → the parts of a dataset.

(X, y)                 NumPy arrays, torch tensors, or lists of arrays, tensors or PIL images, of uint8 or 0 to 1, as
                       (N, H, W), (N, H, W, C) or (N, C, H, W); labels are whole numbers or names
a torch Dataset        of (image, label), torchvision's above all; also a list of such pairs
a Hugging Face one     Dataset or DatasetDict, its columns found as in Parquet files
a mapping              from "train", "validation" and "test" to any of these

Everything is read once and copied.  What identifies such data are their contents, as for files.
"""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from torch import Tensor

from potstill.data import tables
from potstill.data.reading import Content, Found, Raw, Reading, content
from potstill.data.split import Part, part_of
from potstill.errors import PotstillError

NAME = "arrays"
EXPECTED = "expected (images, labels), a torch or Hugging Face Dataset, a mapping of parts, a folder or a name"
REPEATED = 4  # images that are read twice, to see whether they are drawn anew each time


def read(data: Any, test: Any, how: Reading) -> Content:
    """What a program holds, ready as files are.

    Args:
        data: training images, perhaps with other parts; see the module's text.
        test: the test part, where ``data`` holds none.
        how: options of reading.

    Raises:
        PotstillError: it is nothing of the kind, or an image or label does not fit; it is named.
    """
    found = _found(data, "train", how)
    if test is not None:
        if "test" in found.parts:
            raise PotstillError("test: the data hold a test part already; leave one of them out.")
        found = Found({**found.parts, "test": _found(test, "test", how).parts["test"]}, found.names, found.notes)
    return content(found, how)


def _found(data: Any, part: Part, how: Reading) -> Found:
    """The parts of some data; ``part`` is what data without parts are."""
    if _is_table(data):
        parts = data if isinstance(data, Mapping) else {part: data}
        if not all(hasattr(table, "with_format") and hasattr(table, "__len__") for table in parts.values()):
            raise PotstillError("data: a stream of Hugging Face's has no rows to number; give a Dataset.")
        return tables.read_hub(NAME, {key: table.with_format(None) for key, table in parts.items()}, how)
    for option in ("label_column", "image_column"):
        if value := getattr(how, option):
            raise PotstillError(f"{option} {value}: has no effect on data without columns; leave it out.")
    if isinstance(data, Mapping):
        return _of_parts(data, how)
    if isinstance(data, tuple):
        return Found({part: _pair(data, part)})
    return _of_items(data, part)


def _is_table(data: Any) -> bool:
    """Whether it is a Dataset or DatasetDict of Hugging Face's; the library is not imported to tell."""
    some = next(iter(data.values()), None) if isinstance(data, Mapping) else data
    return type(some).__module__.split(".")[0] == "datasets"


def _of_parts(data: Mapping[Any, Any], how: Reading) -> Found:
    parts: dict[Part, Raw] = {}
    names = None
    for key, value in data.items():
        part = part_of(str(key))
        if part is None or part in parts:
            raise PotstillError(f"{key!r}: names no part of its own; name them train, validation and test.")
        found = _found(value, part, how)
        parts[part] = found.parts[part]
        names = found.names if names is None else names
    return Found(parts, names)


# --- arrays and lists ----------------------------------------------------------------------------------------------


def _pair(data: tuple[Any, ...], part: Part) -> Raw:
    """Images and labels, each given as a whole."""
    if len(data) != 2:
        raise PotstillError(f"{part}: a tuple of {len(data)}; expected (images, labels): give both.")
    images, labels = data
    for name, values in (("images", images), ("labels", labels)):
        if not isinstance(values, Sized) or isinstance(values, str | Mapping):
            raise PotstillError(f"{part}: {name} are of type {type(values).__name__}; expected an array or a list.")
    return Raw(_images(images, part), _labels(labels), part)


def _images(images: Any, part: Part) -> Any:
    """One array (N, ...), or Pillow's images with their names."""
    if isinstance(images, Tensor | np.ndarray) and getattr(images, "dtype", None) != np.dtype(object):
        return as_array(images)
    listed = list(images)
    if listed and all(_is_picture(image) for image in listed):
        return [(f"{part} image {row}", image) for row, image in enumerate(listed)]
    arrays = [np.asarray(image) if _is_picture(image) else as_array(image) for image in listed]
    shapes = list(dict.fromkeys(array.shape for array in arrays))
    if len(shapes) > 1:
        raise PotstillError(
            f"{part}: images of shapes {shapes[0]} and {shapes[1]}; make them alike, or give all as PIL images with "
            "resize=PIXELS."
        )
    return np.stack(arrays) if arrays else np.empty((0, 0, 0), np.uint8)


def as_array(values: Any) -> np.ndarray:
    """Numbers as NumPy has them; tensors from any device, with or without gradients."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _labels(labels: Any) -> list[Any]:
    """Labels as Python's own values, whatever numbers or names they were."""
    whole = labels.tolist() if hasattr(labels, "tolist") else labels
    return [label.tolist() if hasattr(label, "tolist") else label for label in whole]


def _is_picture(image: Any) -> bool:
    return any(kind.__module__.startswith("PIL.") for kind in type(image).__mro__)


# --- datasets ------------------------------------------------------------------------------------------------------


def _of_items(data: Any, part: Part) -> Found:
    """A torch Dataset or a list, item by item."""
    _refuse_others(data)
    items = _Items(data if hasattr(data, "__getitem__") and hasattr(data, "__len__") else list(data), part)
    labels = _labels([items.pair(row)[1] for row in range(len(items))])
    for row in range(min(REPEATED, len(items))):
        _refuse_random(items, row)
    if len(items) and _is_picture(items.pair(0)[0]):
        return Found({part: Raw(items, labels, part)}, _names(data, labels))  # read again one by one, when decoded
    images = _images([items.pair(row)[0] for row in range(len(items))], part)
    return Found({part: Raw(images, labels, part)}, _names(data, labels))


class _Items:
    """The items of a dataset, each read when it is asked for: decoded pictures of any size need not all be held."""

    def __init__(self, data: Any, part: Part) -> None:
        self.data, self.part = data, part

    def __len__(self) -> int:
        return len(self.data)

    def pair(self, row: int) -> tuple[Any, Any]:
        """An image and its label."""
        name = f"{self.part} item {row}"
        try:
            item = self.data[row]
        except Exception as error:  # of the dataset's own code
            raise PotstillError(
                f"{name}: reading it fails ({type(error).__name__}: {error}); mend the data."
            ) from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PotstillError(f"{name}: of type {type(item).__name__}; expected a pair of an image and a label.")
        return item[0], item[1]

    def __getitem__(self, row: int) -> tuple[str, Any]:
        """The name of an image for messages, and the image of Pillow's."""
        image, name = self.pair(row)[0], f"{self.part} image {row}"
        if not _is_picture(image):
            raise PotstillError(f"{name}: of type {type(image).__name__}, where others are PIL images; give one kind.")
        return name, image


def _refuse_others(data: Any) -> None:
    if type(data).__name__ == "DataLoader":
        raise PotstillError("data: a DataLoader gives batches in a drawn order; give its dataset, loader.dataset.")
    if isinstance(data, Tensor | np.ndarray):
        raise PotstillError("data: an array without labels; give (images, labels).")
    if isinstance(data, str | bytes) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise PotstillError(f"data of type {type(data).__name__}: {EXPECTED}; give one of these.")


def _refuse_random(items: _Items, row: int) -> None:
    """Refuse an image that is drawn anew at each reading: no two runs would see the same data."""
    first, again = (as_array(items.pair(row)[0]) for _ in range(2))
    if first.shape != again.shape or not np.array_equal(first, again):
        raise PotstillError(
            f"{items.part} item {row}: is another image at each reading; leave random transforms out: augmentation is "
            "drawn while training (augment=)."
        )


def _names(data: Any, labels: Sequence[Any]) -> list[str] | None:
    """Class names that a dataset, or the one a subset is of, knows; None where they do not fit whole numbers."""
    names = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)
    whole = all(isinstance(label, int) for label in labels)
    if not whole or not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return list(names) if len(set(names)) == len(names) > max(labels, default=0) else None
