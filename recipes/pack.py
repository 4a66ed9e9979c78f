"""Pack an image dataset into one small file, to take along to a machine that nothing can be fetched from.

    python recipes/pack.py --dataset data/cifar10 --out build/cifar10-packed.npz       at most 59 MB, all test images
    python recipes/pack.py --unpack build/cifar10-packed.npz --out data/cifar10        train.npz and test.npz

Images of 32×32 lie in lossless WebP mosaics, 1.7 kB each instead of 3; the pixels are the original ones, bit for bit.
Where they do not all fit, training images are left out, as many of each class.  Needs Pillow on both sides.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIDE = 32  # tiles along each side of a mosaic
BYTES = 59_000_000


def balanced(labels: np.ndarray) -> np.ndarray:
    """An order of the images (N,), the same each time, whose beginnings hold as many of each class."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # the how-many-th of its class
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        turn[own] = np.arange(len(own))
    return shuffled[np.argsort(turn[shuffled], kind="stable")]


def mosaic(images: np.ndarray) -> bytes:
    """Lossless WebP of at most SIDE² images (n, H, W, 3), row by row; black where there are fewer."""
    from PIL import Image

    n, h, w, channels = images.shape
    tiles = np.zeros((SIDE * SIDE, h, w, channels), np.uint8)
    tiles[:n] = images
    picture = tiles.reshape(SIDE, SIDE, h, w, channels).swapaxes(1, 2).reshape(SIDE * h, SIDE * w, channels)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True, quality=100, exact=True)
    return buffer.getvalue()


def tiles(packed: bytes, count: int, size: tuple[int, int]) -> np.ndarray:
    """The first ``count`` images (n, H, W, 3) of a mosaic of images of ``size`` (H, W)."""
    from PIL import Image

    picture = np.asarray(Image.open(io.BytesIO(packed)).convert("RGB"))
    h, w = size
    return picture.reshape(SIDE, h, SIDE, w, 3).swapaxes(1, 2).reshape(-1, h, w, 3)[:count]


def mosaics(images: np.ndarray, most: int) -> Iterator[bytes]:
    """Mosaics of the images in their order, as many as ``most`` bytes hold."""
    for first in range(0, len(images), SIDE * SIDE):
        packed = mosaic(images[first : first + SIDE * SIDE])
        most -= len(packed)
        if most < 0:
            return
        yield packed


def pack(dataset: str, out: Path, most: int = BYTES, train: int | None = None, test: int | None = None) -> None:
    """Write the test images, and training images up to ``most`` bytes; or as many of each as asked for."""
    from potstill import files
    from potstill.data import dataset as datasets

    data = datasets.load(dataset)
    splits = {"test": (data.test,), "train": (data.train, data.val)}
    arrays: dict[str, np.ndarray] = {"classes": np.array(data.classes), "size": np.array(data.shape[1:])}
    for (part, held), limit in zip(splits.items(), (test, train), strict=True):
        images = np.concatenate([split.images.permute(0, 2, 3, 1).numpy() for split in held])
        labels = np.concatenate([split.labels.numpy() for split in held])
        order = balanced(labels)[:limit]
        found = list(mosaics(images[order], most))
        count = min(len(order), len(found) * SIDE * SIDE)
        most -= sum(map(len, found)) + count
        arrays[f"{part}_labels"] = labels[order[:count]].astype(np.uint8)
        arrays |= {f"{part}-{number:03d}": np.frombuffer(one, np.uint8) for number, one in enumerate(found)}
        print(f"{part}: {count} of {len(labels)} images, {sum(map(len, found)) / 1e6:.1f} MB")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes(out, buffer.getvalue())


def unpack(packed: Path, out: Path) -> None:
    """Write train.npz and test.npz, which potstill reads from the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with np.load(packed, allow_pickle=False) as content:
        h, w = content["size"].tolist()
        for part in ("train", "test"):
            labels, parts = content[f"{part}_labels"], sorted(name for name in content if name.startswith(f"{part}-"))
            images = np.concatenate([tiles(content[name].tobytes(), SIDE * SIDE, (h, w)) for name in parts])
            images = images[: len(labels)]
            np.savez(out / f"{part}.npz", images=images, labels=labels.astype(np.int64), classes=content["classes"])


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="what to pack: anything of three channels that potstill reads")
    parser.add_argument("--unpack", type=Path, help="a packed file to unpack into the folder --out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=BYTES, help="at most (default: %(default)s)")
    parser.add_argument("--train", type=int, help="at most so many training images")
    parser.add_argument("--test", type=int, help="at most so many test images")
    given = parser.parse_args()
    if given.unpack:
        unpack(given.unpack, given.out)
    elif given.dataset:
        pack(given.dataset, given.out, given.bytes, given.train, given.test)
    else:
        parser.error("give --dataset to pack, or --unpack")


if __name__ == "__main__":
    main()
