"""The artefact: what goes in comes out, of every kind of labels; what is no set is refused."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import potstill
from potstill import files, seeds
from potstill.data import distilled as module
from potstill.data import transform as transforms
from potstill.data.distilled import Distilled, decode
from potstill.errors import PotstillError

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "records").glob("*.safetensors"))
KEPT = sorted((ROOT / "tests" / "kept" / "0.1.0").glob("*/distilled.safetensors"))
KINDS = {
    "logits": torch.tensor([[1.0, -2.0, 0.5]] * 6),
    "values": torch.tensor([[0.6, -0.3, -0.3]] * 6),
    "raw": torch.tensor([[0.0, 2.5, 0.5]] * 6),
    "hard": None,
}


def of_kind(distilled, kind):
    return replace(distilled, kind=kind, targets=KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(distilled, tmp_path, kind):
    given = replace(of_kind(distilled, kind), rows=torch.arange(6) * 7, pictures=2)
    given.save(tmp_path / "distilled.safetensors")
    for path in (tmp_path / "distilled.safetensors", tmp_path, str(tmp_path)):
        again = potstill.load(path)
        assert torch.equal(again.images, given.images)
        assert torch.equal(again.labels, given.labels)
        assert torch.equal(again.rows, given.rows)
        assert (again.kind, again.pictures, again.step_size) == (kind, 2, 0.02)
        assert (again.classes, again.recipe, again.provenance) == (given.classes, given.recipe, {"iteration": 3})
        assert again.targets is None if kind == "hard" else torch.equal(again.targets, given.targets)
        assert torch.allclose(again.transform(given.pixels), given.transform(given.pixels), atol=1e-3)


def at_one_scale(distilled):
    """The set in the space of zca-image."""
    draws = seeds.generator(0, "set")
    pixels = torch.randint(0, 256, (60, 3, 6, 5), generator=draws, dtype=torch.uint8)
    transform = transforms.fit("zca-image", pixels)
    return replace(distilled, images=transform(pixels[:6]), transform=transform)


def test_round_trip_of_images_at_one_scale(distilled, tmp_path):
    given = at_one_scale(distilled)
    given.save(tmp_path / module.FILE)
    again = potstill.load(tmp_path)
    assert repr(again).endswith("zca-image)")
    assert torch.equal(again.images, given.images)
    assert (float(again.transform.mean), float(again.transform.norm), float(again.transform.floor)) == (
        float(given.transform.mean), float(given.transform.norm), float(given.transform.floor)
    )  # fmt: skip
    assert torch.allclose(again.transform(given.pixels), given.transform(given.pixels), atol=1e-3)
    assert int((again.pixels.int() - given.pixels.int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("transform.floor", None, r"tensor 'transform.floor': is missing"),
        ("transform.norm", None, r"tensor 'transform.norm': is missing"),
        ("transform.basis", None, r"tensor 'transform.basis': is missing"),
        ("transform.mean", torch.zeros(90), r"transform.mean \(90,\): images \(3, 6, 5\) need \(\)"),
        ("transform.norm", torch.ones(6), r"transform.norm \(6,\): images \(3, 6, 5\) need \(\)"),
        ("transform.floor", torch.tensor(0.0), r"transform.floor 0: must be above 0"),
        ("transform.floor", torch.tensor(torch.nan), r"transform.floor: 1 of 1 values are NaN"),
    ],
)
def test_tensors_of_images_at_one_scale_that_do_not_fit_are_refused(distilled, tmp_path, name, value, words):
    at_one_scale(distilled).save(tmp_path / module.FILE)
    tensors, header = files.read_tensors(tmp_path / module.FILE, module.KIND)
    tensors.pop(name)
    tensors |= {} if value is None else {name: value}
    with pytest.raises(PotstillError, match=words):
        module.check(tensors, header)


def test_without_a_step_size_and_rows(distilled, tmp_path):
    replace(distilled, step_size=None).save(tmp_path / module.FILE)
    again = potstill.load(tmp_path)
    assert (again.step_size, again.rows, again.pictures) == (None, None, 1)


def test_a_set_that_is_read_and_saved_stays_the_same(distilled, tmp_path):
    distilled.save(tmp_path / "a.safetensors")
    potstill.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    first, second = (potstill.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert torch.equal(first.images, second.images)
    assert torch.allclose(first.transform(first.pixels), second.transform(first.pixels), atol=1e-5)


def test_pixels_are_the_true_colours(distilled):
    draws = seeds.generator(0, "set")
    original = torch.randint(0, 256, (60, 3, 6, 5), generator=draws, dtype=torch.uint8)[:6]
    assert int((distilled.pixels.int() - original.int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("kind", "target_kind"),
    [("logits", "probabilities"), ("values", "values"), ("raw", "raw"), ("hard", "probabilities")],
)
def test_what_networks_train_on(distilled, kind, target_kind):
    given = of_kind(distilled, kind)
    images, targets = given.tensors()
    expected = {"logits": given.soft_labels, "hard": F.one_hot(given.labels, 3).float()}.get(kind, given.targets)
    assert images is given.images
    assert torch.equal(targets, expected)
    assert given.target_kind == target_kind
    assert torch.allclose(given.soft_labels.sum(1), torch.ones(6))


def test_a_set_is_printed_in_a_line(distilled):
    assert repr(distilled) == "Distilled(6 images of 5×6 in colour, 3 classes, labels: logits, step size 0.02, zca)"
    several = replace(of_kind(distilled, "hard"), step_size=None, pictures=2, images=distilled.images[:, :1])
    assert "5×6, 2×2 pictures each, 3 classes, labels: hard, no step size" in repr(several)


# --- several pictures a slot ---------------------------------------------------------------------------------------


def test_decoded_pictures_are_the_enlarged_tiles_of_a_slot():
    images = torch.randn(3, 2, 8, 6, generator=seeds.generator(0, "slots"))
    found = decode(images, 2)
    assert found.shape == (12, 2, 8, 6)
    for slot in range(3):
        for i in range(2):
            for j in range(2):
                tile = images[slot : slot + 1, :, 4 * i : 4 * i + 4, 3 * j : 3 * j + 3]
                expected = F.interpolate(tile, (8, 6), mode="bilinear")[0]
                assert torch.allclose(found[4 * slot + 2 * i + j], expected)


def test_a_size_that_tiles_do_not_divide_is_padded_below_and_at_the_right():
    images = torch.randn(1, 1, 5, 7, generator=seeds.generator(0, "slots"))
    found = decode(images, 3)  # tiles of 2 × 3 of a slot of 6 × 9
    assert found.shape == (9, 1, 5, 7)
    last = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]).view(1, 1, 2, 3)
    last[0, 0, 0, 0] = images[0, 0, 4, 6]
    assert torch.allclose(found[8:], F.interpolate(last, (5, 7), mode="bilinear"))
    assert decode(images, 1) is images


def test_decoding_is_differentiable():
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: decode(x, 2), images)


def test_targets_follow_their_slots(distilled):
    several = replace(distilled, pictures=2)
    images, targets = several.tensors()
    assert (len(several), len(images), len(targets)) == (6, 24, 24)
    assert torch.equal(images, several.decoded())
    assert torch.equal(targets[::4], distilled.soft_labels)
    assert torch.equal(targets[3::4], distilled.soft_labels)


# --- the loader ----------------------------------------------------------------------------------------------------


def test_loader(distilled):
    plain = list(distilled.loader(batch_size=4, shuffle=False, augment=False))
    assert [len(x) for x, _ in plain] == [4, 2]
    assert torch.equal(plain[0][0], distilled.images[:4])
    torch.manual_seed(0)
    (first, _), *_ = distilled.loader(batch_size=6, shuffle=False)
    mirrored = [torch.equal(a, b.flip(2)) or torch.equal(a, b) for a, b in zip(first, distilled.images, strict=True)]
    assert all(mirrored)


def test_loader_with_a_spawned_worker(distilled):
    loader = distilled.loader(batch_size=3, shuffle=False, num_workers=1, multiprocessing_context="spawn")
    assert pickle.loads(pickle.dumps(loader.collate_fn)) == loader.collate_fn
    images, targets = (torch.cat(column) for column in zip(*loader, strict=True))
    assert images.shape == distilled.images.shape
    assert torch.equal(targets, distilled.soft_labels)


# --- what is no set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(6, 3, 30)}, r"images \(6, 3, 30\): a set holds at least one image"),
        ({"images": torch.zeros(0, 3, 6, 5)}, r"images \(0, 3, 6, 5\): a set holds at least one image"),
        ({"images": torch.full((6, 3, 6, 5), torch.nan)}, r"images: 540 of 540 values are NaN or infinite"),
        ({"images": torch.zeros(6, 3, 6, 4)}, r"transform.mean \(90,\): images \(3, 6, 4\) need \(72,\)"),
        ({"targets": torch.zeros(6, 2)}, r"logits \(6, 2\): 6 images of 3 classes need \(6, 3\)"),
        ({"targets": torch.tensor([[torch.inf, 0, 0]] * 6)}, r"logits: 6 of 18 values are NaN or infinite"),
        ({"targets": None}, r"tensor 'logits': is missing"),
        ({"kind": "raw", "targets": torch.full((6, 3), -1.0)}, r"raw labels down to -1: weights are not negative"),
        ({"kind": "soft"}, r"labels 'soft': not a kind of labels; expected one of logits, values, raw, hard"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, r"labels from 0 to 3: there are 3 classes, counted from 0"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels \(3,\) of torch.int64: 6 images need 6 whole numbers"),
        ({"labels": torch.zeros(6)}, r"labels \(6,\) of torch.float32: 6 images need 6 whole numbers"),
        ({"rows": torch.arange(5)}, r"rows \(5,\) of torch.int64: 6 images need 6 whole numbers"),
        ({"rows": torch.arange(6) - 1}, r"rows down to -1: rows of the training split count from 0"),
        ({"step_size": 0.0}, r"step size 0.0: must be above 0 and finite"),
        ({"step_size": float("nan")}, r"step size nan: must be above 0 and finite"),
        ({"pictures": 0}, r"pictures 0: a slot of 5×6 pixels holds 1 to 5 pictures a side"),
        ({"pictures": 6}, r"pictures 6: a slot of 5×6 pixels holds 1 to 5 pictures a side"),
    ],
)
def test_what_is_no_set_is_refused_when_saved_and_when_read(distilled, tmp_path, monkeypatch, change, words):
    wrong = replace(distilled, **change)
    with pytest.raises(PotstillError, match=words):
        wrong.save(tmp_path / "refused.safetensors")
    assert not list(tmp_path.iterdir())
    if str(change.get("step_size")) == "nan":
        return  # which no file can hold
    with monkeypatch.context() as unchecked:
        unchecked.setattr(module, "check", lambda tensors, header: None)
        wrong.save(tmp_path / "wrong.safetensors")
    with pytest.raises(PotstillError, match=words):
        potstill.load(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("transform.basis", None, r"tensor 'transform.basis': is missing"),
        ("transform.scale", torch.ones(3), r"transform.basis \(90, \d+\): images \(3, 6, 5\) need \(90, 3\)"),
        ("transform.unit", None, r"tensor 'transform.unit': is missing"),
        ("transform.unit", torch.ones(3), r"transform.unit \(3,\): images \(3, 6, 5\) need"),
        ("transform.mean", torch.full((90,), torch.nan), r"transform.mean: 90 of 90 values are NaN"),
        ("labels", None, r"tensor 'labels': is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(distilled, tmp_path, name, value, words):
    distilled.save(tmp_path / module.FILE)
    tensors, header = files.read_tensors(tmp_path / module.FILE, module.KIND)
    tensors.pop(name)
    tensors |= {} if value is None else {name: value}
    with pytest.raises(PotstillError, match=words):
        module.check(tensors, header)


def test_a_header_without_its_fields_is_refused(distilled, tmp_path):
    distilled.save(tmp_path / module.FILE)
    tensors, header = files.read_tensors(tmp_path / module.FILE, module.KIND)
    for name in ("classes", "step_size", "transform", "recipe", "provenance"):
        with pytest.raises(PotstillError, match=f"header without '{name}'"):
            module.check(tensors, {key: value for key, value in header.items() if key != name})
    with pytest.raises(PotstillError, match="transform 'pca': is not known"):
        module.check(tensors, {**header, "transform": "pca"})


def test_what_half_precision_cannot_hold_is_refused(distilled, tmp_path):
    large = replace(distilled, images=distilled.images * 1e6)
    large.save(tmp_path / "large.safetensors")
    with pytest.raises(PotstillError, match="NaN or infinite; .*or save it without compact"):
        large.save(tmp_path / "compact.safetensors", compact=True)


# --- smaller, and older, files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", transforms.WHITENING)
def test_a_compact_file_fits_its_transform_again(tmp_path, arrays, kind):
    rng = np.random.default_rng(0)
    path = arrays(rng.integers(0, 256, (90, 6, 5, 3), dtype=np.uint8), np.arange(90) % 3)
    settings = {"transform": kind, "network": {"width": 4, "depth": 1}, "evaluations": 1}
    whole = potstill.distill(
        path, 1, out=tmp_path / "run", expert={"count": 1, "epochs": 2},
        datm={"iterations": 1, "inner_steps": 1, "start_epochs": (0, 1), "expert_epochs": 1}, **settings,
    )  # fmt: skip
    whole.save(tmp_path / "compact.safetensors", compact=True)
    assert (tmp_path / "compact.safetensors").stat().st_size < (tmp_path / "run" / module.FILE).stat().st_size
    with pytest.raises(PotstillError, match=f"leaves its {kind} transform out"):
        potstill.load(tmp_path / "compact.safetensors")
    compact = potstill.load(tmp_path / "compact.safetensors", dataset=path)
    assert (compact.images - whole.images).abs().max() < 0.01
    assert torch.allclose(compact.transform(whole.pixels), whole.transform(whole.pixels), atol=1e-3)
    other = tmp_path / "other.npz"
    np.savez(other, images=rng.integers(0, 256, (90, 6, 5, 3), dtype=np.uint8), labels=np.arange(90) % 3)
    with pytest.raises(PotstillError, match="is not the data"):
        potstill.load(tmp_path / "compact.safetensors", dataset=other)


def source_of(path, real_data, folder):
    """The data of a record, where its file leaves the transform out."""
    name = path.name.split("-")[0]
    command = [sys.executable, str(real_data / "unpack.py"), str(folder), "--only", name, "--format", "npz"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / name


@pytest.mark.parametrize("path", [*RECORDS, *KEPT], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_set_of_every_version_is_read_shown_trained_on_and_exported(path, tmp_path, request):
    """Of every file: its tensors as they lie in it, without any conversion between."""
    tensors, header = files.read_tensors(path, module.KIND)
    assert header["version"] in ("0.1.0", "0.2.0")
    kind = header.get("labels", "logits")  # the only kind that 0.1.0 knew
    whitened = header["transform"].startswith("zca")
    data = source_of(path, request.getfixturevalue("real_data"), tmp_path) if whitened else None
    found = potstill.load(path, dataset=data)
    pictures = header.get("pictures", 1)  # 0.1.0 knew whole images only
    assert (found.kind, found.pictures, found.rows, found.step_size) == (kind, pictures, None, header["step_size"])
    assert torch.equal(found.images, tensors["images"].float())
    if kind == "logits":
        assert torch.equal(found.soft_labels, tensors["logits"].float().softmax(1))
    else:
        assert torch.equal(found.soft_labels.argmax(1), found.labels)
    of_slots = tensors[kind].float() if kind == "values" else found.soft_labels
    assert torch.equal(found.tensors()[1], of_slots.repeat_interleave(pictures**2, 0))
    assert torch.equal(found.decoded(), module.decode(tensors["images"].float(), pictures))
    assert module.png(module.grid(found.pixels, found.labels)).startswith(b"\x89PNG")
    found.export(tmp_path / "set.npz")
    arrays = np.load(tmp_path / "set.npz")
    assert np.array_equal(arrays["images"], found.decoded().numpy())
    by_picture = found.soft_labels.repeat_interleave(pictures**2, 0)
    assert np.array_equal(arrays["soft_labels"], by_picture.numpy())
    network = potstill.train(found, epochs=1)
    assert network(found.transform(found.pixels)).shape == (len(found), len(found.classes))
    found.save(tmp_path / "again.safetensors")
    again = potstill.load(tmp_path / "again.safetensors")
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.soft_labels, found.soft_labels)
    assert torch.allclose(again.transform(found.pixels), found.transform(found.pixels), atol=1e-3)


def test_four_small_colour_images_make_no_large_file(tmp_path):
    """Natural images have few directions that matter: a set of four must not weigh what all of them would."""
    from tests.data.test_transform import smooth

    transform = transforms.fit("zca", smooth(size=32))
    images = transform(smooth(4, 32))
    Distilled(
        images, None, "hard", torch.tensor([0, 1, 2, 3]), None, transform, tuple("abcd"), {"network": {}}, {}
    ).save(tmp_path / module.FILE)  # fmt: skip
    assert (tmp_path / module.FILE).stat().st_size < 3072**2 * 4 / 8
    again = potstill.load(tmp_path)
    assert float((again.transform(smooth(4, 32)) - images).abs().max()) < 1e-3
