"""Images and labels as numeric arrays in ``.npz`` files."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from potstill.data.pixels import resized, to_bytes
from potstill.data.split import Content, Split, split_of
from potstill.errors import PotstillError


def read(files: list[Path], resize: int | None) -> Content:
    """One ``.npz`` with x_train, y_train (and x_test, y_test) or images and labels; or train.npz and test.npz."""
    parts: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    names: list[str] | None = None
    for file in files:
        content = _open_npz(file)
        names = [str(name) for name in content["classes"]] if "classes" in content else names
        if "x_train" in content:
            pairs = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
        else:
            pairs = {split_of(file.stem): ("images", "labels")}
        for part, (x, y) in pairs.items():
            if x in content and y in content:
                if part in parts:
                    raise PotstillError(
                        f"{file}: a second file of {part} images beside {parts[part][2]}; join them into one .npz."
                    )
                parts[part] = (content[x], content[y], str(file))
            elif part != "test" or "x_train" not in content:
                raise PotstillError(
                    f"{file}: holds {sorted(content)}; expected images and labels, or x_train and y_train "
                    "(and x_test and y_test)."
                )
    if "train" not in parts:
        raise PotstillError(f"{files[0].parent}: no training arrays; expected train.npz or x_train and y_train.")
    test = parts.get("test", parts.get("validation"))  # a validation file serves as test where there is no other
    chosen = {"train": parts["train"]} if test is None else {"train": parts["train"], "test": test}
    splits = {part: _from_arrays(*values, names, resize) for part, values in chosen.items()}
    count = int(splits["train"].labels.max()) + 1
    return tuple(names or map(str, range(count))), splits


def _open_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise PotstillError(
                f"{file}: is or holds a pickle, which is never read because it can run code; save plain numeric "
                "arrays with numpy.savez."
            ) from error
        raise PotstillError(f"{file}: not a readable .npz file ({error}); write it again.") from error


def _from_arrays(
    images: np.ndarray, labels: np.ndarray, where: str, names: list[str] | None, resize: int | None
) -> Split:
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or (images.shape[1] not in (1, 3) and images.shape[3] not in (1, 3)):
        raise PotstillError(
            f"{where}: images of shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3."
        )
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    labels = labels.reshape(-1)
    if len(labels) != len(images):
        raise PotstillError(f"{where}: {len(images)} images but {len(labels)} labels; make them the same number.")
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole and not (np.issubdtype(labels.dtype, np.floating) and np.array_equal(labels, np.round(labels))):
        raise PotstillError(f"{where}: labels of type {labels.dtype}; expected whole numbers from 0.")
    if not len(labels):
        raise PotstillError(f"{where}: holds no images.")
    if labels.min() < 0 or labels.max() >= (len(names) if names is not None else len(labels)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        top = len(names) - 1 if names is not None else "the number of classes less one"
        raise PotstillError(f"{where}: label {wrong} is out of range; labels count from 0 to {top}.")
    if images.dtype != np.uint8:
        images = to_bytes(images, where)
    if resize:
        images = np.stack([resized(image, resize) for image in images])
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))
