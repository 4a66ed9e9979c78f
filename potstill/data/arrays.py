"""Images and labels as numeric arrays in ``.npz`` files, by the names that people give them.

x_train, y_train, x_test, y_test                         Keras; also with a capital
train_images, train_labels, val_images, …, test_labels   MedMNIST
images, labels (or x, y; data, target), perhaps classes  one file, or one for each part: train.npz, test.npz
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potstill.data.pixels import claimed
from potstill.data.reading import Found, Raw
from potstill.data.split import Part, part_of_path
from potstill.errors import PotstillError

IMAGES, LABELS = ("images", "x", "data", "image"), ("labels", "y", "target", "targets", "label")
WORDS: dict[str, Part] = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
PREFIXED: dict[str, tuple[Part, bool]] = {
    f"{x}_{word}" if x in ("x", "y") else f"{word}_{x}": (part, x in IMAGES)
    for word, part in WORDS.items()
    for x in ("x", "y", "images", "labels")
}
"""Names that tell the part as well, and whether they hold its images."""
LARGEST = 2**40  # bytes that a file's headers may claim in all; more is damage, or a trap


def read(root: Path, files: Sequence[Path]) -> Found:
    """The arrays of one file, or of one for each part.

    Raises:
        PotstillError: arrays of other names, a part twice, a pickle, or a damaged file.
    """
    parts: dict[Part, Raw] = {}
    names: dict[Part, Sequence[str] | None] = {}
    for file in files:
        content = _open_npz(file)
        classes = content.pop("classes", None)
        for part, (images, labels) in _pairs(file, content, part_of_path(file.relative_to(root)) or "train").items():
            if part in parts:
                raise PotstillError(
                    f"{file}: a second file of {part} images beside {parts[part].where}; join them into one .npz."
                )
            parts[part] = Raw(images, labels.tolist(), str(file))
            names[part] = None if classes is None else [str(name) for name in classes.reshape(-1).tolist()]
    if "train" not in parts:
        raise PotstillError(f"{root}: no training arrays; expected train.npz or x_train and y_train.")
    given = next((found for found in (names["train"], *names.values()) if found is not None), None)
    return Found({part: _by_name(raw, names[part], given) for part, raw in parts.items()}, given)


def _by_name(raw: Raw, own: Sequence[str] | None, given: Sequence[str] | None) -> Raw:
    """A part whose classes are named in another order: its labels as those names, where they are numbers of them."""
    if own is None or own == given or not all(isinstance(k, int) and 0 <= k < len(own) for k in raw.labels):
        return raw
    return Raw(raw.images, [own[k] for k in raw.labels], raw.where)


def _pairs(
    file: Path, content: dict[str, np.ndarray], part: Part
) -> dict[Part, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Images and labels of each part; ``part`` where the names of the arrays tell none."""
    found: dict[Part, dict[bool, np.ndarray]] = {}
    for name, array in content.items():
        if name.lower() in PREFIXED:
            own, holds_images = PREFIXED[name.lower()]
            found.setdefault(own, {})[holds_images] = array
    if not found:
        lower = {name.lower(): array for name, array in content.items()}
        for holds_images, known in ((True, IMAGES), (False, LABELS)):
            if (key := next((name for name in known if name in lower), None)) is not None:
                found.setdefault(part, {})[holds_images] = lower[key]
    if any(array.ndim == 0 for pair in found.values() for array in pair.values()):
        raise PotstillError(f"{file}: holds single values where images or labels should be; give arrays.")
    if list(found.get("test", ())) == [True]:  # images without labels
        found["test"][False] = np.full(len(found["test"][True]), -1)
    lacking = next((own for own, pair in found.items() if len(pair) < 2), None)
    if not found or lacking:
        raise PotstillError(
            f"{file}: holds {sorted(content)}; expected images and labels, or x_train and y_train "
            "(and x_test and y_test), or train_images and train_labels (and so on)."
        )
    return {own: (pair[True], pair[False]) for own, pair in found.items()}


def _open_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as packed:
            claimed([sum(entry.file_size for entry in packed.infolist())], 1, LARGEST, str(file))
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except MemoryError as error:
        raise PotstillError(
            f"{file}: claims more than memory holds ({error}); it is damaged, or must be read in smaller parts."
        ) from error
    except (ValueError, OSError, EOFError, TypeError, KeyError, SyntaxError, NotImplementedError, RuntimeError,
            OverflowError, UnicodeDecodeError, RecursionError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        if "pickle" in str(error) or "Object arrays" in str(error) or _is_pickle(file):
            raise PotstillError(
                f"{file}: is or holds a pickle, which is never read because it can run code; save plain numeric "
                "arrays with numpy.savez."
            ) from error
        raise PotstillError(f"{file}: not a readable .npz file ({error}); write it again.") from error


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
