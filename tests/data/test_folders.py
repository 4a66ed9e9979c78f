"""Which folders are the classes, which the parts, and which files are images of them."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from potstill.data.dataset import load
from tests.data.making import folder_of, pixels, refused, sizes


def put(path, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1, (8, 8, 3), seed)[0]).convert(mode).save(path)


def tiny_imagenet(root, classes=10, per_class=6, grey_every=5):
    """A folder as tiny-imagenet-200 is published, with a test part that has no labels."""
    names = [f"n{number:08d}" for number in range(classes)]
    for number, name in enumerate(names):
        for i in range(per_class):
            mode = "L" if (number + i) % grey_every == 0 else "RGB"
            put(root / f"train/{name}/images/{name}_{i}.JPEG", number * 10 + i, mode)
        (root / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    for part in ("val", "test"):
        for i in range(2 * classes):
            put(root / f"{part}/images/{part}_{i}.JPEG", i)
    rows = (f"val_{i}.JPEG\t{names[i % classes]}\t0\t0\t62\t62\n" for i in range(2 * classes))
    (root / "val/val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(reversed(names)))
    (root / "words.txt").write_text("".join(f"{name}\tthing {i}, object {i}\n" for i, name in enumerate(names)))
    return root


def test_tiny_imagenet_as_it_is_published(tmp_path):
    found = load(str(tiny_imagenet(tmp_path / "tiny-imagenet-200")), validation=0.2)
    assert found.classes == tuple(f"thing {i}" for i in range(10))
    assert found.shape == (3, 8, 8)
    assert sizes(found) == (50, 10, 20)
    assert found.test.labels.tolist() == [i % 10 for i in range(20)]
    assert any("test/ holds 20 images without labels and is left aside" in note for note in found.notes)
    assert any(note.startswith("12 grey images became colour") for note in found.notes)


def test_a_list_that_names_what_is_not_there(tmp_path):
    root = tiny_imagenet(tmp_path / "t")
    with (root / "val/val_annotations.txt").open("a") as lines:
        lines.write("val_99.JPEG\tn00000001\t0\t0\t1\t1\n")
    refused(root, "val_annotations.txt, line 21", "no file 'val_99.JPEG'")


# --- classes and parts ---------------------------------------------------------------------------------------------


def test_flat_parts_are_never_taken_for_classes(tmp_path):
    for i in range(12):
        put(tmp_path / f"train/{'cat' if i % 2 else 'dog'}.{i}.jpg")
        put(tmp_path / f"test/{i}.jpg")
    refused(tmp_path, "train: holds 12 images and no class folders", "metadata.csv")


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("train", "tests"), ("Train", "holdout")])
def test_parts_by_their_words(tmp_path, names):
    for name, count in zip(names, (10, 5), strict=True):
        folder_of(tmp_path / name, {"cat": count, "dog": count})
    assert sizes(load(str(tmp_path))) == (18, 2, 10)


def test_validation_beside_test_is_kept_as_such(tmp_path):
    for name, count in (("train", 10), ("val", 4), ("test", 5)):
        folder_of(tmp_path / name, {"cat": count, "dog": count})
    assert sizes(load(str(tmp_path))) == (20, 8, 10)


def test_a_flat_test_part_is_left_aside(tmp_path):
    folder_of(tmp_path / "train", {"cat": 10, "dog": 10})
    put(tmp_path / "test" / "1.png")
    found = load(str(tmp_path))
    assert sum(sizes(found)) == 20
    assert found.notes == ("test/ holds 1 images without labels and is left aside",)


def test_a_class_that_the_test_part_lacks_is_named_without_a_folder_that_is_not_there(tmp_path):
    folder_of(tmp_path / "train", {"cat": 6, "dog": 6})
    folder_of(tmp_path / "test", {"cat": 6})
    (tmp_path / "test" / "dog").mkdir()
    refused(tmp_path, "class 'dog' has no test images")


def test_a_part_beside_what_is_none_is_a_question(tmp_path):
    folder_of(tmp_path, {"boat": 6, "car": 6})
    folder_of(tmp_path / "train", {"diesel": 6, "steam": 6})
    refused(tmp_path, "train/ is named as a part", "boat, car beside it")


def test_two_folders_for_one_part(tmp_path):
    for name in ("train", "training", "test"):
        folder_of(tmp_path / name, {"cat": 6, "dog": 6})
    refused(tmp_path, "train/ and training/ are both named for train")


def test_no_part_to_train_on(tmp_path):
    for name in ("val", "test"):
        folder_of(tmp_path / name, {"cat": 6, "dog": 6})
    refused(tmp_path, "no part to train on")


def test_classes_a_level_deeper_are_a_question(tmp_path):
    folder_of(tmp_path / "a", {"airfield": 6, "alcove": 6})
    folder_of(tmp_path / "b", {"bakery": 6, "beach": 6})
    refused(tmp_path, "two folders deep, as in a/airfield", "are the classes a, b, or the folders below?")


# --- files ---------------------------------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_no_images(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat/._000.png").write_bytes(b"\0\5\x16\7" + bytes(100))
    put(tmp_path / "cat/.ipynb_checkpoints/000-checkpoint.png")
    put(tmp_path / "__MACOSX/cat/000.png")
    assert sum(sizes(load(str(tmp_path)))) == 12


def test_every_ending_that_can_be_read_in_any_case(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6}, suffix=".jpg")
    for path, ending in zip(sorted((tmp_path / "cat").iterdir())[:3], (".jfif", ".JPG", ".JPE"), strict=True):
        path.rename(path.with_suffix(ending))
    (tmp_path / "dog" / "notes.docx").write_text("no image")
    found = load(str(tmp_path))
    assert sum(sizes(found)) == 12
    assert found.notes == ("1 files in the class folders are no images and were not read (.docx)",)


def test_a_class_of_other_files_says_so(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "1.heix").write_text("?")
    refused(tmp_path, "class 'emu' has no images (none of its 1 files has the ending of one)")


def test_class_folders_outrank_stray_arrays(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "more" / "x").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "cat"):
        np.savez(place / "set.npz", images=pixels(40), labels=np.arange(40) % 4)
    (tmp_path / "more" / "x").rmdir()
    (tmp_path / "more").rmdir()
    assert load(str(tmp_path)).classes == ("cat", "dog")


def test_the_folder_of_a_run_is_no_data(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    run = tmp_path / "runs" / "x-ipc1"
    put(run / "experts" / "picture.png")
    (run / "config.json").write_text('{"version": "0.2.0", "config": {}}')
    assert load(str(tmp_path)).classes == ("cat", "dog")


def test_a_pipe_among_the_images_does_not_hang(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert sum(sizes(load(str(tmp_path)))) == 12


def test_links_in_a_circle(tmp_path):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    assert sum(sizes(load(str(tmp_path)))) == 12


def test_a_linked_class_folder_that_leads_elsewhere_is_read_again(tmp_path):
    for number, name in enumerate(("n1", "n2", "n3")):
        folder_of(tmp_path / "pool", {name: 6})
        for path in (tmp_path / "pool" / name).iterdir():
            put(path, number)
            os.utime(path, ns=(0, 0))
    (tmp_path / "d").mkdir()
    for name, target in (("a", "n1"), ("b", "n2")):
        (tmp_path / "d" / name).symlink_to(tmp_path / "pool" / target)
    first = load(str(tmp_path / "d"))
    (tmp_path / "d" / "a").unlink()
    (tmp_path / "d" / "a").symlink_to(tmp_path / "pool" / "n3")
    assert load(str(tmp_path / "d")).fingerprint != first.fingerprint


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_are_compared_in_one_unicode_form(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        folder_of(tmp_path / part, {unicodedata.normalize(form, "Café"): 6, "Tea": 6})
    assert load(str(tmp_path)).classes == ("Café", "Tea")


def test_names_that_are_not_utf8_or_not_visible(tmp_path):
    folder_of(tmp_path, {"tea": 6, "bell\x07": 6, "right‏": 6, "می‌خواهم": 6})
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    for i in range(6):
        put(tmp_path / "t.png", i)
        os.rename(tmp_path / "t.png", os.fsencode(tmp_path) + b"/caf\xe9/%d.png" % i)
    names = load(str(tmp_path)).classes
    assert set(names) == {"tea", r"bell\x07", r"right\u200f", "می‌خواهم", r"caf\xe9"}


def test_a_subset_of_the_classes(tmp_path):
    folder_of(tmp_path, {"cat": 6, "cow": 6, "dog": 6})
    found = load(str(tmp_path), classes=("dog", "cat"))
    assert found.classes == ("cat", "dog")
    assert sorted(found.train.labels.unique().tolist()) == [0, 1]
    refused(tmp_path, "classes 'dig'", "did you mean dog?", classes=("dig", "cat"))


@pytest.mark.parametrize(("option", "value"), [("label_column", "x"), ("image_column", "x")])
def test_an_option_without_effect_is_refused(tmp_path, option, value):
    folder_of(tmp_path, {"cat": 6, "dog": 6})
    refused(tmp_path, f"{option} x: has no effect on class folders", **{option: value})
    refused("digits", "resize 16: has no effect on the digits", resize=16)
