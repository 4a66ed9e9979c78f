"""The step size chosen on validation images, and given back."""

from dataclasses import replace

import pytest

from potstill.errors import PotstillError
from potstill.evaluation import tuning
from potstill.evaluation.controls import random_rows
from potstill.evaluation.evaluator import Evaluator, evaluator_for
from potstill.networks.architectures import NetworkConfig
from tests.evaluation.conftest import exhaust, real_images

EVENT = {"stage": "evaluation", "done": 0, "total": 1}


@pytest.fixture
def given(setting, monkeypatch):
    """The evaluator, a distilled set, and what was trained: accuracies are best at a step size of 0.02."""
    problem, evaluator = setting
    trained = []

    def accuracy(self, training_set, epochs, seed, on):
        assert on is problem.val
        trained.append(training_set.step_size)
        return 0.5 - abs(training_set.step_size - 0.02)

    monkeypatch.setattr(Evaluator, "accuracy", accuracy)
    return evaluator, real_images(problem, random_rows(problem, 1, 0), step_size=0.08), trained


def test_the_learned_step_size_and_smaller_ones_are_tried(given):
    evaluator, distilled, trained = given
    events = []
    tried = exhaust(tuning.try_step_sizes(evaluator, distilled, "chosen", EVENT), events.append)
    assert [entry["step_size"] for entry in tried] == [0.08, 0.04, 0.02, 0.01]
    assert [entry["accuracy"] for entry in tried] == pytest.approx([0.44, 0.48, 0.5, 0.49])
    assert trained == [0.08] * 2 + [0.04] * 2 + [0.02] * 2 + [0.01] * 2
    assert events == [{**EVENT, "doing": f"training with step size {s}"} for s in (0.08, 0.04, 0.02, 0.01)]


def test_smaller_ones_are_tried_while_the_smallest_is_the_best(given, monkeypatch):
    evaluator, distilled, _ = given
    monkeypatch.setattr(tuning, "validation_accuracy", lambda _, training_set: 0.5 - training_set.step_size)
    tried = exhaust(tuning.try_step_sizes(evaluator, distilled, "chosen", EVENT))
    assert [entry["step_size"] for entry in tried] == [0.08, 0.04, 0.02, 0.01, 0.005, 0.0025]
    monkeypatch.setattr(tuning, "validation_accuracy", lambda *_: 0.5)
    assert len(exhaust(tuning.try_step_sizes(evaluator, distilled, "chosen", EVENT))) == 4  # no better, no further


def test_a_set_without_a_step_size_tries_that_of_the_controls(given):
    evaluator, distilled, _ = given
    tried = exhaust(tuning.try_step_sizes(evaluator, replace(distilled, step_size=None), "chosen", EVENT))
    assert [entry["step_size"] for entry in tried] == [0.01, 0.005, 0.0025, 0.00125]


def test_where_the_learned_one_is_wanted_it_alone_is_tried(given):
    evaluator, distilled, trained = given
    tried = exhaust(tuning.try_step_sizes(evaluator, distilled, "learned", EVENT))
    assert trained == [0.08] * 2
    assert tried == [{"step_size": 0.08, "accuracy": pytest.approx(0.44)}]
    assert tuning.with_best(distilled, tried).provenance["step_sizes"] == []


def test_the_best_is_the_first_of_equal_ones(given):
    tried = [{"step_size": s, "accuracy": a} for s, a in ((0.4, 0.5), (0.2, 0.6), (0.1, 0.6))]
    found = tuning.with_best(given[1], tried, chosen_on="validation")
    assert found.step_size == 0.2
    assert found.provenance == {"chosen_on": "validation", "chosen_with_accuracy": 0.6, "step_sizes": tried}


def test_a_step_size_is_chosen_once_and_given_back(given):
    evaluator, distilled, trained = given
    chosen = exhaust(tuning.choose_step_size(evaluator, distilled, "chosen", EVENT))
    assert chosen.step_size == 0.02
    assert chosen.provenance["chosen_with_accuracy"] == pytest.approx(0.5)
    assert [entry["step_size"] for entry in chosen.provenance["step_sizes"]] == [0.08, 0.04, 0.02, 0.01]
    assert chosen.provenance["choosing_seconds"] >= 0
    assert distilled.provenance == {}  # the set given is as it was
    trained.clear()
    assert exhaust(tuning.choose_step_size(evaluator, chosen, "chosen", EVENT)) is chosen
    back = exhaust(tuning.choose_step_size(evaluator, chosen, "learned", EVENT))
    assert (back.step_size, back.provenance["step_sizes"]) == (0.08, [])
    assert back.provenance["chosen_with_accuracy"] == pytest.approx(0.44)
    assert exhaust(tuning.choose_step_size(evaluator, distilled, "learned", EVENT)) is distilled
    assert trained == []


def test_another_network_than_the_sets_chooses_nothing(given):
    evaluator, distilled, trained = given
    mlp = NetworkConfig(name="mlp", width=16)
    other = evaluator_for(evaluator.problem, mlp, evaluator.protocol, evaluator.augment)
    with pytest.raises(PotstillError, match="step_size chosen: .* another network than the set's"):
        exhaust(tuning.choose_step_size(other, distilled, "chosen", EVENT))
    assert trained == []
