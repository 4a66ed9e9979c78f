"""The experts' curriculum: its fractions, the images it shows when, and experts that it changes."""

import json

import pytest
import torch

from potstill import files, seeds
from potstill.errors import PotstillError
from potstill.runs import run
from potstill.runs.api import run_to_completion
from potstill.training import curriculum, experts, trajectories
from potstill.training.curriculum import easy_first, kept
from potstill.training.sgd import Recipe, sgd
from tests.conftest import tiny

EASY = {"curriculum": True}


def test_the_published_parts_at_a_hundred_epochs():
    assert [kept(epoch, 100) for epoch in (0, 4, 20)] == [(0, 0.75), (0, 0.8), (0, 1)]
    assert {kept(epoch, 100) for epoch in range(20, 40)} == {(0, 1)}
    assert {kept(epoch, 100) for epoch in range(40, 61)} == {(0.1, 1)}
    assert {kept(epoch, 100) for epoch in range(61, 100)} == {(0.2, 1)}


@pytest.mark.parametrize("epochs", [50, 25, 10])
def test_shorter_experts_see_the_same_at_the_same_part_of_their_training(epochs):
    assert [kept(epoch, epochs) for epoch in range(epochs)] == [kept(e, 100) for e in range(0, 100, 100 // epochs)]


def test_the_mean_part_is_what_epochs_add_up_to():
    first, all_, tenth, fifth = sum(0.75 + 0.25 * e / 20 for e in range(20)), 20, 21 * 0.9, 39 * 0.8
    assert curriculum.mean_part(100) == pytest.approx((first + all_ + tenth + fifth) / 100)


def test_an_epoch_sees_the_easiest_or_the_hardest_of_each_class():
    draws = seeds.generator(0, "test")
    labels, hardness = torch.arange(60) % 2, torch.rand(60, generator=draws)
    labels[:20] = 2  # classes of 20
    order = easy_first(hardness, labels, 100)
    for epoch, count in ((0, 15), (16, 19), (30, 20), (50, 18), (70, 16)):
        rows = order.rows(epoch)
        assert sorted(labels[rows].bincount().tolist()) == [count] * 3
        assert len(rows.unique()) == len(rows)
        for label in range(3):
            seen, own = hardness[rows[labels[rows] == label]], hardness[labels == label].sort().values
            assert torch.equal(seen.sort().values, own[:count] if epoch <= 20 else own[20 - count :])


def test_no_class_is_ever_left_without_an_image():
    order = easy_first(torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0, 1, 1]), 10)
    assert all(order.rows(epoch).tolist()[0] == 0 for epoch in range(10))
    assert {len(order.rows(epoch)) for epoch in range(10)} <= {2, 3}


def test_training_sees_the_rows_of_each_epoch_and_no_others():
    images, seen = torch.arange(12.0).view(12, 1, 1, 1), []

    def gradient(theta, batch, targets):
        assert torch.equal(batch.flatten(), targets.flatten())
        seen[-1] += batch.flatten().tolist()
        return torch.zeros_like(theta)

    training = sgd(gradient, torch.zeros(1), images, images.view(12, 1), Recipe(3, 4, 0.1), 0,
                   rows=lambda epoch: torch.arange(epoch, 12, 2))  # fmt: skip
    for epoch in range(3):
        seen.append([])
        next(training)
        assert sorted(seen[-1]) == list(range(epoch, 12, 2))
    assert seen[0] != sorted(seen[0]), "in an order of its own"


def test_el2n_is_the_distance_of_probabilities_and_label():
    outputs = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).log()
    found = curriculum.error_norms(outputs, torch.eye(2))
    assert found.tolist() == pytest.approx([0.3 * 2**0.5, 0.2 * 2**0.5])


def trained(settings, folder):
    job = run.open_run(settings, folder)
    run_to_completion(run.train_experts(job))
    return trajectories.open_store(job.experts_folder)


def train(settings, folder, needed=None):
    """Training as a generator, in a folder of experts alone."""
    problem = run.prepare_problem(settings)
    return run.train_all(settings, problem, folder, needed or run.expert_needs(settings))


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    return trained(tiny(expert=EASY), tmp_path_factory.mktemp("easy"))


def test_experts_differ_and_their_stores_do_not_mix(easy, tmp_path):
    plain = trained(tiny(), tmp_path)
    assert plain.identity["expert"].keys() == easy.identity["expert"].keys() - {"curriculum"}
    assert not torch.equal(plain.last(0)[0], easy.last(0)[0])
    with pytest.raises(PotstillError, match=r"expert\.curriculum: 'EL2N of 3 networks after 10 epochs', not None"):
        run_to_completion(train(tiny(), easy.folder))
    with pytest.raises(PotstillError, match=r"expert\.curriculum: None, not 'EL2N of 3 networks after 10 epochs'"):
        run_to_completion(train(tiny(expert=EASY), plain.folder))


def test_an_interrupted_expert_resumes_bit_for_bit(easy, tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "CHECKPOINT_SECONDS", 0.0)
    training = train(tiny(expert=EASY), tmp_path)
    events = [next(training) for _ in range(8)]  # into the second expert
    training.close()
    assert [event["doing"] for event in events if "doing" in event] == ["telling easy images from hard ones"]
    assert (tmp_path / "expert-01.partial.safetensors").exists()
    run_to_completion(train(tiny(expert=EASY), tmp_path))
    found = trajectories.open_store(tmp_path)
    assert all(torch.equal(found.last(n)[0], easy.last(n)[0]) for n in range(2))


def test_scores_are_found_once(easy, tmp_path, monkeypatch):
    monkeypatch.setattr(curriculum, "errors", lambda *_: pytest.fail("trained again"))
    run_to_completion(train(tiny(expert={**EASY, "count": 1, "epochs": 1}, datm={"start_epochs": (0, 1),
                                 "expert_epochs": 1}), tmp_path))  # fmt: skip


def test_easy_images_are_those_that_networks_soon_know(easy):
    """An expert is right on the first images of the order more often than on the last ones."""
    problem = run.prepare_problem(tiny())
    job = experts._Job(problem, easy.folder, tiny(expert=EASY).expert, 0, tiny().augment, "auto", (), range(1))
    order = experts._curriculum(job)
    assert sorted(torch.cat(order.classes).tolist()) == list(range(len(problem.train.labels)))
    right = (problem.network(easy.last(0)[0], problem.train.images).argmax(1) == problem.train.labels).double()
    ends = [torch.cat([part(own) for own in order.classes]) for part in (lambda own: own[:40], lambda own: own[-40:])]
    assert float(right[ends[0]].mean()) > float(right[ends[1]].mean()) + 0.1


def test_networks_that_diverge_are_a_sentence(tmp_path):
    with pytest.raises(PotstillError, match="the curriculum: .* diverged; lower --expert.step-size"):
        run_to_completion(train(tiny(expert={**EASY, "step_size": 1e30}), tmp_path))


def test_pad_needs_it_and_other_methods_leave_it_to_the_flag(tmp_path):
    assert run.expert_needs(tiny("pad")).curriculum is True
    assert run.expert_needs(tiny()).curriculum is None
    assert run.expert_needs(tiny(("pad", "datm"), datm={"start_epochs": (0, 1)})).curriculum is True
    assert run.expert_recipe(tiny("pad"), run.expert_needs(tiny("pad"))).curriculum
    assert not run.expert_recipe(tiny(), run.expert_needs(tiny())).curriculum
    assert run.expert_recipe(tiny(expert=EASY), run.expert_needs(tiny(expert=EASY))).curriculum
    left = tiny("pad", pad={"curriculum": None}, expert=EASY)
    assert run.expert_recipe(left, run.expert_needs(left)).curriculum


def test_a_store_from_before_the_curriculum_goes_on(tmp_path):
    """Its identity has no word of it."""
    store = trained(tiny(), tmp_path)
    manifest = files.read_json(store.folder / trajectories.MANIFEST)
    assert "curriculum" not in json.dumps(manifest)
    run_to_completion(train(tiny(expert={"count": 3}), store.folder))
    assert len(trajectories.open_store(store.folder)) == 3
