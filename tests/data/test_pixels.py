"""What a viewer shows is what is read."""

import numpy as np
import pytest
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import folder_of, pixels, refused


def classes_of(root, save):
    """Two classes of six images; ``save(path, number)`` writes one."""
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(6):
            save(root / name / str(i), i)
    return load(str(root))


def test_photographs_are_turned_upright(tmp_path):
    array = np.full((16, 16, 3), 40, np.uint8)
    array[:8] = 220

    def save(path, i):
        exif, image = Image.Exif(), Image.fromarray(array)
        if i % 2:
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif[0x112] = 6
        image.save(path.with_suffix(".jpg"), exif=exif, quality=95)

    found = classes_of(tmp_path, save)
    assert {int(image[:, :8].float().mean()) for image in found.train.images} == {220}


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_scaled_and_said(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype("<u2" if mode == "I;16" else ">u2")
    found = classes_of(
        tmp_path, lambda path, i: Image.frombytes(mode, (8, 8), values.tobytes()).save(path.with_suffix(".tif"))
    )
    expected = np.round(values.astype(np.int64) / 257)
    assert np.array_equal(found.train.images[0, 0].numpy(), expected)
    assert found.notes[0].startswith("12 images of 16 bits were scaled to 8")


def test_transparency_is_laid_on_white_and_said(tmp_path):
    def save(path, i):
        array = np.zeros((16, 16, 4), np.uint8)
        array[4:12, 4:12, 3] = 255
        Image.fromarray(array).save(path.with_suffix(".png"))

    found = classes_of(tmp_path, save)
    assert found.train.images.unique().tolist() == [0, 255]
    assert found.notes[0].startswith("12 images were transparent and are laid on white")


def test_grey_among_colour_becomes_colour(tmp_path):
    folder_of(tmp_path / "a", {"x": 6}, (8, 8, 3))
    folder_of(tmp_path / "b", {"x": 6}, (8, 8, 1))
    found = load(str(tmp_path))
    assert found.shape == (3, 8, 8)
    grey = [image for image, label in zip(found.train.images, found.train.labels, strict=True) if label == 1]
    assert all(image[0].equal(image[2]) for image in grey)
    assert found.notes[0].startswith("6 grey images became colour")


def test_grey_training_and_colour_test_images(tmp_path):
    folder_of(tmp_path / "train", {"a": 6, "b": 6}, (8, 8, 1))
    folder_of(tmp_path / "test", {"a": 6, "b": 6}, (8, 8, 3))
    assert load(str(tmp_path)).shape == (3, 8, 8)


def test_pages_are_said(tmp_path):
    pages = [Image.fromarray(array) for array in pixels(3)]
    found = classes_of(
        tmp_path, lambda path, i: pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])
    )
    assert found.notes[0].startswith("12 files hold several pages or frames, of which the first was taken")


def test_unreadable_images_are_left_out_on_request(tmp_path):
    folder_of(tmp_path, {"a": 10, "b": 10})
    for i in range(3):
        (tmp_path / "a" / f"{i:03d}.png").write_bytes(b"no image")
    refused(tmp_path, "a/000.png: not a readable image", "--skip-unreadable")
    found = load(str(tmp_path), skip_unreadable=True)
    assert sum(map(len, (found.train, found.val, found.test))) == 17
    assert found.notes[0].startswith("3 unreadable images were left out (")
    assert "a/000.png" in found.notes[0]
    everything = {tuple(image.flatten().tolist()) for s in (found.train, found.val, found.test) for image in s.images}
    assert tuple(pixels(10, seed=1)[0].transpose(2, 0, 1).flatten().tolist()) in everything


def test_a_header_that_claims_more_than_memory(tmp_path):
    folder_of(tmp_path, {"a": 4, "b": 4})
    bomb = Image.fromarray(pixels(1)[0])
    bomb.save(tmp_path / "a" / "000.png")
    content = bytearray((tmp_path / "a" / "000.png").read_bytes())
    import struct
    import zlib

    content[16:24] = struct.pack(">II", 2**30, 2**30)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a" / "000.png").write_bytes(content)
    refused(tmp_path, "000.png: not a readable image")


def test_an_image_that_is_no_file_any_more(tmp_path):
    folder_of(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "999.png").symlink_to(tmp_path / "nowhere.png")
    assert sum(map(len, (load(str(tmp_path)).train,))) > 0


# --- arrays --------------------------------------------------------------------------------------------------------


def test_arrays_of_sixteen_bits_are_scaled(arrays):
    values = np.random.default_rng(0).integers(0, 65536, (40, 4, 4), dtype=np.uint16)
    found = load(arrays(values, np.arange(40) % 2))
    assert "16 bits" in found.notes[0]
    both = {tuple(image.flatten().tolist()) for s in (found.train, found.val, found.test) for image in s.images}
    assert both == {tuple(np.round(value / 257).astype(int).flatten().tolist()) for value in values}


def test_whole_numbers_as_floats_are_bytes(arrays):
    values = pixels(20, (3, 8, 8)).astype(np.float32)
    assert int(load(arrays(values, [0, 1] * 10)).train.images.max()) == 255
    refused(arrays(values / 2 + 0.25, [0, 1] * 10), "pixels from", "divide by 255, or round them")


@pytest.mark.parametrize(
    "images",
    [np.array([["cat"] * 8] * 20), np.zeros((20, 8, 8), [("r", "u1"), ("g", "u1")]), np.ones((20, 8, 8), "c8")],
)
def test_arrays_that_hold_no_numbers(arrays, images):
    refused(arrays(images, [0, 1] * 10), "images of type", "expected numbers")


def test_true_and_false_are_white_and_black(arrays):
    assert load(arrays(pixels(20, (8, 8)) > 127, [0, 1] * 10)).train.images.unique().tolist() == [0, 255]
