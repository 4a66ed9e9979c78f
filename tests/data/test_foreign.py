"""Published sets: what each tensor is follows from its shape, nothing is executed, and images keep their space."""

import pickle

import numpy as np
import pytest
import torch

from potstill import seeds
from potstill.data import foreign
from potstill.data import transform as transforms
from potstill.data.dataset import load as load_dataset
from potstill.errors import PotstillError


@pytest.fixture
def colour(arrays):
    """A hundred and twenty colour images of 8×8 pixels in three classes."""
    draws = seeds.generator(0, "colour")
    pixels = torch.randint(0, 256, (120, 8, 8, 3), generator=draws, dtype=torch.uint8)
    return load_dataset(arrays(pixels.numpy(), np.arange(120) % 3))


def everything(dataset):
    return torch.cat([dataset.train.images, dataset.val.images])


def write(folder, **tensors):
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return {folder / f"{name}.pt": foreign.load(folder / f"{name}.pt") for name in tensors}


def test_datm_writes_logits_and_a_step_size(tmp_path):
    images, logits = torch.randn(6, 3, 8, 8), torch.randn(6, 3) + 9 * torch.eye(3).repeat_interleave(2, 0)
    contents = write(tmp_path, labels_best=logits.requires_grad_(), images_best=images, lr_best=torch.tensor(0.03))
    found = foreign.read_set(contents, 3)
    assert torch.equal(found.images, images)
    assert torch.equal(found.targets, logits)
    assert (found.kind, found.labels.tolist(), found.step_size) == ("logits", [0, 0, 1, 1, 2, 2], pytest.approx(0.03))


def test_mtt_writes_classes(tmp_path):
    found = foreign.read_set(write(tmp_path, a=torch.randn(4, 3, 8, 8), b=torch.tensor([0, 0, 1, 1])), 2)
    assert (found.kind, found.targets, found.labels.tolist(), found.step_size) == ("hard", None, [0, 0, 1, 1], None)


def test_rows_that_sum_to_one_are_probabilities(tmp_path):
    likely = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
    found = foreign.read_set(write(tmp_path, a=torch.randn(2, 3, 8, 8), b=likely), 2)
    assert (found.kind, found.labels.tolist()) == ("raw", [0, 1])


def test_the_class_of_an_image_is_its_place_though_its_label_learned_another(tmp_path):
    logits = 5 * torch.eye(3).repeat_interleave(2, 0)
    logits[3] = torch.tensor([9.0, 0.0, 0.0])
    assert foreign.read_set(write(tmp_path, a=torch.randn(6, 3, 4, 4), b=logits), 3).labels.tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    mixed = logits[[5, 0, 2, 4, 1, 3]]
    found = foreign.read_set(write(tmp_path, a=torch.randn(6, 3, 4, 4), b=mixed), 3)
    assert torch.equal(found.labels, mixed.argmax(1))


@pytest.mark.parametrize("names", foreign.NAMES)
def test_frepo_and_rcig_write_arrays_with_channels_last(tmp_path, names):
    images, values = np.random.default_rng(0).normal(size=(4, 8, 6, 3)).astype("f4"), np.eye(4, 2, dtype="f4") - 0.5
    np.savez(tmp_path / "step.npz", **dict(zip(names, (images, values), strict=True)))
    found = foreign.read_set({tmp_path / "step.npz": foreign.load(tmp_path / "step.npz")}, 2)
    assert np.array_equal(found.images.numpy(), images.transpose(0, 3, 1, 2))
    assert (found.kind, np.array_equal(found.targets.numpy(), values)) == ("values", True)


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_pickle_is_executed(tmp_path, capsys):
    torch.save(Trap(), tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "set.npz", image=np.array([Trap()], dtype=object))
    (tmp_path / "text.pt").write_text("no tensors")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:60])
    for name, words in {
        "new.pt": "no pickle is executed", "old.pt": "no pickle is executed", "text.pt": "no pickle is executed",
        "set.npz": "not a readable .npz file", "cut.npz": "not a readable .npz file", "none.pt": "no such file",
    }.items():  # fmt: skip
        with pytest.raises(PotstillError, match=words):
            foreign.load(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path):
    """Bytes changed at random, and files cut off: of a set, of experts, of the older format, and of arrays."""
    experts = [[[torch.randn(3, 3)] * 3 for _ in range(2)]]
    torch.save(torch.randn(2, 3, 4, 4), tmp_path / "a.pt")
    torch.save(experts, tmp_path / "b.pt")
    torch.save(torch.randn(4, 2), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "d.npz", image=np.zeros((2, 4, 4, 3), "f4"), label=np.eye(2, dtype="f4"))
    draws, refused = np.random.default_rng(0), 0
    for path in sorted(tmp_path.iterdir()):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[draws.integers(0, len(whole), 3)] = draws.integers(0, 256, 3)
            cut = len(whole) if draws.random() < 0.8 else draws.integers(0, len(whole))
            path.write_bytes(damaged[:cut].tobytes())
            try:
                content = foreign.load(path)
                if not foreign.holds_experts(content):
                    foreign.read_set({path: content}, 2)
            except PotstillError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(("tensors", "words"), [
    ({"a": torch.randn(4, 3, 8, 8)}, "no labels among these"),
    ({"a": torch.randn(4, 3)}, "no images among these"),
    ({"a": torch.randn(4, 3, 8, 8), "b": torch.zeros(3, dtype=torch.long)}, "4 images, but .* labels of 3"),
    ({"a": torch.randn(4, 3, 8, 8), "b": torch.randn(4, 5)}, "labels of 5 classes, but the dataset has 3"),
    ({"a": torch.randn(1, 3, 8, 8), "b": torch.tensor([3])}, "labels from 3 to 3, but the dataset has 3"),
    ({"a": torch.randn(1, 3, 8, 8), "b": torch.randn(1, 3, 8, 8)}, "holds images, and so does"),
    ({"a": torch.randn(2, 3, 4)}, "which is no images"),
    ({"a": "text"}, "holds a str"),
    ({"a": {"pictures": torch.randn(3)}}, "holds pictures; a set's arrays are called image/label"),
    ({"a": torch.randn(1, 3, 8, 8), "b": torch.tensor([0]), "c": torch.tensor(-1.0)}, "a step size of -1"),
])  # fmt: skip
def test_files_that_make_no_set_are_refused(tmp_path, tensors, words):
    with pytest.raises(PotstillError, match=words):
        foreign.read_set(write(tmp_path, **tensors), 3)


def test_replay_buffers_are_told_from_sets():
    assert foreign.holds_experts([[[torch.zeros(3)], [torch.zeros(3)]]])
    for other in (torch.zeros(3), [], [torch.zeros(3)], [[torch.zeros(3)]], {"a": torch.zeros(3)}, [[[]]]):
        assert not foreign.holds_experts(other)


# --- spaces --------------------------------------------------------------------------------------------------------


def in_space(images):
    return foreign.Foreign(images, None, "hard", torch.zeros(len(images), dtype=torch.long), None)


def test_images_whitened_by_the_authors_stay_and_tests_are_whitened_as_theirs(colour):
    """Their whitening is fitted on all training images; ours keeps some aside."""
    flat = everything(colour).float().flatten(1) / 255
    covariance = torch.cov(flat.T.double())
    scale, basis = torch.linalg.eigh(covariance)
    matrix = (basis @ ((scale + 0.1) ** -0.5).diag() @ basis.T).float()
    images = torch.randn(2, 3, 8, 8)
    own = transforms.fit("zca", colour.train.images)
    kept, transform = foreign.placed(in_space(images), "zca", colour, own)
    assert torch.equal(kept, images)
    expected = (colour.test.images.float().flatten(1) / 255 - flat.mean(0)) @ matrix
    assert torch.allclose(transform(colour.test.images).flatten(1), expected, atol=1e-4)
    assert not torch.allclose(own(colour.test.images).flatten(1), expected, atol=1e-3)


def test_images_standardised_by_the_authors_numbers(colour):
    own, images = transforms.fit("zca", colour.train.images), torch.randn(2, 3, 8, 8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    kept, transform = foreign.placed(in_space(images), "standardise", colour, own, mean, std)
    assert torch.equal(kept, images)
    expected = (colour.test.images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(transform(colour.test.images), expected, atol=1e-5)
    with pytest.raises(PotstillError, match="give as many of each as the 3 channels"):
        foreign.placed(in_space(images), "standardise", colour, own, mean, std[:2])


def test_pixels_are_whitened_by_ours_also_where_they_leave_their_range(colour):
    own = transforms.fit("zca", colour.train.images)
    pixels = torch.rand(2, 3, 8, 8) * 3 - 1
    images, transform = foreign.placed(in_space(pixels), "pixels", colour, own)
    assert transform is own
    assert torch.allclose(own.invert(images), pixels, atol=1e-4)


def frepo(pixels, training):
    """The published whitening, in its order of axes and its words, in float64."""
    mean, std = training.mean((0, 2, 3)), training.transpose(0, 1).flatten(1).std(1)
    whole, some = (
        ((x - mean[:, None, None]) / std[:, None, None]).permute(0, 2, 3, 1).flatten(1) for x in (training, pixels)
    )
    centred = whole - whole.mean(0)
    covariance = centred.T @ centred / len(whole)
    u, s, _ = torch.linalg.svd(covariance + 0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance)))
    white = (some - whole.mean(0)) @ (u * s**-0.5 @ u.T)
    return white.view(len(pixels), *pixels.shape[2:], 3).permute(0, 3, 1, 2)


def test_frepos_whitening_is_undone(arrays, colour):
    draws = seeds.generator(0, "frepo")
    made = torch.randint(0, 256, (400, 8, 8, 3), generator=draws, dtype=torch.uint8)
    many = load_dataset(arrays(made.numpy(), np.arange(400) % 3))
    pixels = torch.rand(3, 3, 8, 8, generator=draws, dtype=torch.float64) * 2 - 0.5
    own = transforms.fit("standardise", many.train.images)
    white = in_space(frepo(pixels, everything(many).double() / 255).float())
    images, transform = foreign.placed(white, "frepo", many, own)
    assert transform is own
    assert torch.allclose(own.invert(images).double(), pixels, atol=1e-4)
    with pytest.raises(PotstillError, match="96 training images with 192 values each is not determined"):
        foreign.placed(white, "frepo", colour, own)


def test_images_of_another_shape_name_both(colour):
    own = transforms.fit("standardise", colour.train.images)
    with pytest.raises(PotstillError, match=r"images \(3, 9, 8\): those of data are \(3, 8, 8\)"):
        foreign.placed(in_space(torch.zeros(1, 3, 9, 8)), "zca", colour, own)
