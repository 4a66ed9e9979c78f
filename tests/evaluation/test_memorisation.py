"""Distances to training images against plain loops, and sets of which it is known what they give away."""

import json
import math
from dataclasses import replace

import pytest
import torch

from potstill.data.dataset import Dataset
from potstill.data.distilled import Distilled
from potstill.data.split import Split
from potstill.data.transform import fit
from potstill.evaluation import memorisation
from potstill.evaluation.memorisation import examine, nearest, sentence, summary
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig
from potstill.training.problem import Problem

CLASSES = ("a", "b")


def drawn(count, seed, shape=(3, 4, 4)):
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def plain(queries, images, own=None):
    """All distances (q, N) in float64, an image to itself as infinite."""
    apart = (queries.double()[:, None] - images.double()[None]) / 255
    distances = apart.square().flatten(2).mean(2).sqrt()
    if own is not None:
        distances[torch.arange(len(queries)), own] = math.inf
    return distances


@pytest.fixture
def problem(monkeypatch, tmp_path):
    """Two classes of 120 random images each; all of them are looked at."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return problem_of(Split(drawn(240, 0), torch.arange(240) % 2))


def problem_of(train):
    data = Dataset("random", CLASSES, train, train[:2], train[:2], f"fingerprint {len(train)}")
    config = NetworkConfig(width=4, depth=1)
    network = flat.flat_network(config, data.shape, 2, torch.device("cpu"))
    return Problem(data, fit("standardise", train.images), config, network, torch.device("cpu"))


def as_set(problem, pixels, labels, rows=None, pictures=1):
    """Pixels, floats in [0, 1] or uint8, as a distilled set."""
    images = problem.transform(pixels)
    return Distilled(images, None, "hard", labels, None, problem.transform, CLASSES, {}, {}, rows, pictures)


# --- distances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [2**24, 48 * 7, 1])  # one block; blocks of seven images; of one
def test_nearest_images_are_those_of_a_plain_loop(monkeypatch, values):
    monkeypatch.setattr(memorisation, "VALUES", values)
    queries, images = drawn(19, 1), drawn(40, 2)
    distances, rows = nearest(queries, images, 6)
    expected, order = plain(queries, images).sort(1)
    torch.testing.assert_close(distances.double(), expected[:, :6], atol=1e-6, rtol=1e-5)
    assert rows.equal(order[:, :6])


@pytest.mark.parametrize("values", [2**24, 48 * 7])
def test_leave_one_out_never_finds_the_image_itself(monkeypatch, values):
    monkeypatch.setattr(memorisation, "VALUES", values)
    images = drawn(30, 3)
    own = torch.tensor([29, 0, 13, 7, 8, 21, 22, 3])
    distances, rows = nearest(images[own], images, 29, own)
    expected, order = plain(images[own], images, own).sort(1)
    assert rows.equal(order[:, :29])
    torch.testing.assert_close(distances.double(), expected[:, :29], atol=1e-6, rtol=1e-5)


def test_equal_images_are_exactly_0_apart_and_near_ones_exactly_as_far_as_they_are():
    """By ‖a‖² + ‖b‖² − 2 ⟨a, b⟩ alone, images that differ in one grey level of one pixel would be 0 apart, or not."""
    images = drawn(5, 4, (3, 32, 32)).clamp(1, 254)
    one_off = images.clone()
    one_off[:, 0, 0, 0] += 1
    assert nearest(images, images, 1)[0].flatten().tolist() == [0.0] * 5
    distances, rows = nearest(one_off, images, 1)
    assert distances.flatten().tolist() == pytest.approx([1 / 255 / math.sqrt(3072)] * 5, rel=1e-3)
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4]


def test_fewer_images_than_are_asked_for():
    images = drawn(3, 5)
    assert nearest(images[:1], images, 50)[0].shape == (1, 3)
    assert nearest(images[:1], images, 50, torch.tensor([0]))[1].sort(1).values.tolist() == [[1, 2]]
    assert nearest(images[:1], images[:1], 50, torch.tensor([0]))[0].shape == (1, 0)
    assert nearest(images[:0], images, 2)[0].shape == (0, 0)


# --- the yardstick -------------------------------------------------------------------------------------------------


def test_the_yardstick_is_leave_one_out_within_a_class(problem):
    for label, found in enumerate(memorisation.yardstick(problem)):
        images = problem.dataset.train.images[problem.dataset.train.labels == label]
        expected = plain(images, images, torch.arange(120)).sort(1).values
        assert found["distances"] == pytest.approx(sorted(expected[:, 0].tolist()), abs=1e-6)
        relative = expected[:, 0] / expected[:, :50].mean(1)
        assert found["relative"] == pytest.approx(sorted(relative.tolist()), abs=1e-5)


def test_the_yardstick_is_kept(problem, monkeypatch):
    first = memorisation.yardstick(problem)
    monkeypatch.setattr(memorisation, "nearest", lambda *_: pytest.fail("was kept"))
    assert memorisation.yardstick(problem) == first


def test_a_budget_bounds_what_is_looked_at_and_a_note_says_so(problem, monkeypatch):
    """Each of 2 classes has half of the budget: 24 comparisons with 120 images of 48 values for the 60 images of it."""
    monkeypatch.setattr(memorisation, "BUDGET", 2 * 24 * 120 * 48)
    found = examine(as_set(problem, drawn(120, 6), torch.arange(120) % 2), problem)
    assert [len(one["distances"]) for one in found["real"]] == [24, 24]
    assert [entry["image"] for entry in found["images"] if entry["label"] == 0] == list(range(0, 120, 6))
    assert "40 of the 120 images were looked at" in found["notes"][0]
    assert "The yardstick is of 48 of the 240 training images" in found["notes"][1]
    assert summary(found)["notes"] == found["notes"]


# --- sets of which it is known -------------------------------------------------------------------------------------


def test_each_entry_is_what_a_plain_loop_finds(problem):
    pixels, labels = drawn(10, 7), torch.arange(10) % 2
    found = examine(as_set(problem, pixels, labels), problem)
    assert sorted(entry["image"] for entry in found["images"]) == list(range(10))
    train = problem.dataset.train
    for entry in found["images"]:
        own = (train.labels == entry["label"]).nonzero().flatten()
        expected, order = plain(pixels[entry["image"]][None], train.images[own])[0].sort()
        assert entry["label"] == labels[entry["image"]]
        assert entry["rows"] == own[order[:3]].tolist()
        assert entry["distances"] == pytest.approx(expected[:3].tolist(), abs=1e-6)
        assert entry["relative"] == pytest.approx(float(expected[0] / expected[:50].mean()), abs=1e-5)
        real = plain(train.images[own], train.images[own], torch.arange(120)).min(1).values
        assert entry["quantile"] == pytest.approx(float((real < expected[0]).double().mean()))
    assert json.loads(json.dumps(found)) == found


def test_selected_images_are_0_from_themselves_and_the_sentence_says_why(problem):
    rows = torch.tensor([4, 9, 100])
    given = as_set(problem, problem.dataset.train.images[rows], problem.dataset.train.labels[rows], rows)
    found = examine(given, problem)
    assert {entry["image"]: (entry["rows"][0], entry["distances"][0]) for entry in found["images"]} == {
        0: (4, 0.0), 1: (9, 0.0), 2: (100, 0.0),
    }  # fmt: skip
    told = summary(found)
    assert (told["selected"], told["same"], told["near_copies"], told["closer_1_percent"]) == (True, 1, 1, 1)
    assert sentence(told) == (
        "These are 3 real training images, chosen and not learned: each lies at distance 0 from one by construction, "
        "and whoever gets the set gets them."
    )


def test_a_learned_set_of_noisy_copies_gives_them_away(problem):
    rows = torch.arange(20)
    noise = 0.03 * torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = (problem.dataset.train.images[rows] / 255 + noise).clamp(0, 1)
    found = examine(as_set(problem, pixels, rows % 2), problem)
    assert all(entry["near_copy"] and entry["rows"][0] == entry["image"] for entry in found["images"])
    told = summary(found)
    assert (told["near_copies"], told["same"]) == (1.0, 0.0)
    assert sentence(told).startswith("Sharing this set gives away training images: 20 of 20 images are near copies")


def test_a_single_copy_among_many_is_told_though_chance_might_give_one(problem):
    pixels = drawn(60, 8)
    pixels[7] = problem.dataset.train.images[31]
    told = summary(examine(as_set(problem, pixels, torch.arange(60) % 2), problem))
    assert told["same"] == pytest.approx(1 / 60)
    assert sentence(told).startswith("Sharing this set gives away training images: 1 of 60 images is a near copy")


def test_an_average_is_near_to_all_and_copies_none(problem):
    """Its distance is √½ of that between two real images, so it is closer than any real one; but to all alike."""
    train = problem.dataset.train
    means = torch.stack([train.images[train.labels == label].float().mean(0) for label in (0, 1)]) / 255
    told = summary(examine(as_set(problem, means.repeat(5, 1, 1, 1), torch.arange(10) % 2), problem))
    assert (told["closer_1_percent"], told["near_copies"]) == (1.0, 0.0)
    assert "what training images of a class have in common: 10 of 10 images" in sentence(told)
    assert "none of 10 images is a near copy" in sentence(told)


def test_fresh_images_give_no_single_one_away(problem):
    """Drawn like the training images, they lie as far from them as those from each other."""
    told = summary(examine(as_set(problem, drawn(100, 9), torch.arange(100) % 2), problem))
    assert told["near_copies"] == 0
    assert told["closer_5_percent"] < 0.15
    assert sentence(told).startswith("Sharing this set gives away no single training image")
    assert "where chance gives about 1." in sentence(told)


def test_real_images_that_look_alike_are_not_accused(problem):
    """Where every training image has a near double, so has a fresh one: here the last, whose double is of class 0."""
    base = drawn(121, 10)
    doubles = (base.int() + torch.randint(-9, 10, base.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    images = torch.stack([base, doubles.to(torch.uint8)], 1).flatten(0, 1)
    alike = problem_of(Split(images[:-1], torch.tensor([1] + [0] * 240)))
    entry = examine(as_set(alike, images[-1:], torch.zeros(1, dtype=torch.int64)), alike)["images"][0]
    assert entry["relative"] < 0.5
    assert not entry["near_copy"]


@pytest.mark.parametrize(
    ("count", "n", "beyond"), [(0, 10, False), (1, 10, False), (2, 10, True), (3, 100, False), (4, 100, True)]
)
def test_counts_beyond_chance(count, n, beyond):
    """By Poisson's law.

    Of 10 images P(1 or more) = 1 − e^−0.1 = 0.095 and P(2 or more) = 0.0047; of 100 P(3 or more) = 0.080 and P(4 or
    more) = 0.019.
    """
    assert memorisation._beyond_chance(count, n) == beyond


def test_slots_of_several_pictures_are_looked_at_as_networks_see_them(problem):
    slots = as_set(problem, drawn(4, 11), torch.tensor([0, 0, 1, 1]), pictures=2)
    found = examine(slots, problem)
    assert found["of"] == len(found["images"]) == 16
    whole = slots.transform.pixels(slots.decoded())
    some = torch.tensor([5, 0, 14])
    assert memorisation.pixels_of(slots, some).equal(whole[some])
    assert [entry["label"] for entry in found["images"]] == [0] * 8 + [1] * 8


def test_a_class_of_one_training_image_has_no_yardstick(problem):
    lonely = problem_of(Split(drawn(31, 12), torch.tensor([1] + [0] * 30)))
    told = summary(found := examine(as_set(lonely, drawn(2, 13), torch.tensor([0, 1])), lonely))
    assert [entry["quantile"] is None for entry in found["images"]] == [False, True]
    assert found["images"][1]["rows"] == [0]
    assert told["classes"][1]["real"] is None
    assert sentence(told)


def test_what_is_drawn_are_the_most_copied_images_and_what_is_nearest_to_them(problem, monkeypatch):
    pixels = drawn(6, 14)
    pixels[4], pixels[3] = problem.dataset.train.images[10], problem.dataset.train.images[21]
    told = summary(examine(as_set(problem, pixels, torch.arange(6) % 2), problem))
    assert [one["most_copied"]["image"] for one in memorisation.drawn(told)] == [4, 3]
    pictures = memorisation.pictures(told, problem)
    assert pictures["pixels"].equal(problem.dataset.train.images[pictures["rows"]])
    assert (pictures["rows"][0], pictures["rows"][3]) == (10, 21)
    monkeypatch.setattr(memorisation, "DRAWN", 1)
    told["classes"][0]["most_copied"] = {**told["classes"][0]["most_copied"], "relative": 0.1}
    assert [one["label"] for one in memorisation.drawn(told)] == [1]


def test_the_set_is_compared_by_its_own_transform(problem):
    """Its file may hold another one than the data are whitened with here."""
    rows = torch.arange(4)
    other = replace(problem, transform=fit("zca", problem.dataset.train.images))
    given = as_set(other, problem.dataset.train.images[rows], rows % 2)
    assert [entry["distances"][0] for entry in examine(given, problem)["images"]] == [0.0] * 4
