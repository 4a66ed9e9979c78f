"""A set beside its controls: what they are, what is kept of them, and that nothing is trained twice."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from potstill import files, seeds
from potstill.data.labels import one_hot
from potstill.evaluation import controls
from potstill.evaluation.controls import evaluate, random_rows
from potstill.evaluation.evaluator import Evaluator, TrainingSet
from tests.evaluation.conftest import as_trained, exhaust, real_images


def uniform(rows):
    return torch.full((len(rows), 10), 0.1)


@pytest.fixture
def given(setting):
    """The evaluator, and a set of one real image of each class."""
    problem, evaluator = setting
    return evaluator, as_trained(real_images(problem, random_rows(problem, 1, 0)), evaluator)


@pytest.fixture
def trained(monkeypatch):
    """The sets that networks were trained on, with the epochs; every training gives 0.5."""
    found = []
    monkeypatch.setattr(Evaluator, "tested", lambda self, *a: found.append(a[:2]) or (0.5, None))
    return found


def test_random_control_equals_a_set_of_the_same_images(setting):
    """Two ways to one number: the control's network 0, and a 'distilled' set of the same rows and hard labels."""
    problem, evaluator = setting
    same = as_trained(real_images(problem, random_rows(problem, 2, 0)), evaluator)
    found = exhaust(evaluate(evaluator, same, 2, None, 1))["accuracy"]
    assert found["distilled"]["per_seed"][0] == pytest.approx(found["random"]["per_seed"][0])
    assert set(found) == {"distilled", "random", "full"}


def test_random_rows_are_ipc_of_each_class_and_differ_by_network(setting):
    problem, _ = setting
    first, second = (random_rows(problem, 3, number) for number in (0, 1))
    assert problem.train.labels[first].bincount().tolist() == [3] * 10
    assert not torch.equal(first, second)


def test_what_the_controls_train_on(setting):
    problem, evaluator = setting
    found = {c.name: c for c in controls.controls(problem, 2, uniform, evaluator.protocol, full_seeds=3)}
    assert tuple(found) == controls.CONTROLS
    assert {name: (c.count, c.epochs) for name, c in found.items()} == {
        "random": (2, 3), "random_soft": (2, 3), "full": (3, 1),
    }  # fmt: skip
    rows = random_rows(problem, 2, 1)
    hard, soft, full = (c.training_set(1) for c in found.values())
    assert hard.images.equal(problem.train.images[rows])
    assert soft.images.equal(hard.images)
    assert hard.targets.equal(one_hot(problem.train.labels[rows], 10))
    assert soft.targets.equal(uniform(rows))
    assert (full.images is problem.train.images, full.targets.argmax(1).equal(problem.train.labels)) == (True, True)
    assert {(s.kind, s.step_size) for s in (hard, soft, full)} == {("probabilities", None)}


def test_everything_is_trained_once(given, monkeypatch):
    evaluator, training_set = given
    trained, original = [], Evaluator.train
    monkeypatch.setattr(Evaluator, "train", lambda self, *a: trained.append(1) or original(self, *a))
    first = exhaust(evaluate(evaluator, training_set, 1, uniform))
    assert len(trained) == 8  # distilled, random, random_soft, full: two networks each
    again = exhaust(evaluate(evaluator, training_set, 1, uniform))
    assert len(trained) == 8
    assert again == {**first, "kept": dict.fromkeys(first["accuracy"], 2)}
    exhaust(evaluate(evaluator, replace(training_set, step_size=0.02), 1, None))
    assert len(trained) == 10  # only the changed set is trained anew


def test_an_interrupted_evaluation_continues(given, monkeypatch):
    evaluator, training_set = given
    events = evaluate(evaluator, training_set, 1, None, 0)
    next(event for event in events if event["done"] == 3)
    events.close()
    trained, original = [], Evaluator.train
    monkeypatch.setattr(Evaluator, "train", lambda self, *a: trained.append(1) or original(self, *a))
    exhaust(evaluate(evaluator, training_set, 1, None, 0))
    assert len(trained) == 1


def test_every_network_is_announced_and_so_is_what_is_left_out(given, trained):
    evaluator, training_set = given
    events = []
    found = exhaust(evaluate(evaluator, training_set, 1, None, 1), events.append)
    assert [(e["done"], e["total"], e.get("set"), e.get("network")) for e in events] == [
        (0, 5, "distilled", 0), (1, 5, "distilled", 1), (2, 5, "random", 0), (3, 5, "random", 1), (4, 5, "full", 0),
        (5, 5, None, None),
    ]  # fmt: skip
    assert all((e["stage"], e["left_out"]) == ("evaluation", ["random_soft"]) for e in events)
    assert {name: len(figure["per_seed"]) for name, figure in found["accuracy"].items()} == {
        "distilled": 2, "random": 2, "full": 1,
    }  # fmt: skip


def test_the_full_control_can_be_left_out(given, trained):
    evaluator, training_set = given
    events = []
    found = exhaust(evaluate(evaluator, training_set, 1, uniform, 0), events.append)
    assert "full" not in found["accuracy"]
    assert events[0]["left_out"] == ["full"]


def test_figures_are_kept_under_the_identities_of_0_1_0(given, trained, tmp_path):
    """Or every control of every machine would be trained again."""
    evaluator, training_set = given
    exhaust(evaluate(evaluator, training_set, 1, uniform, None, ["experts", 2]))
    problem, augment = evaluator.problem, ["crop", "scale", "rotate"]
    network = {"name": "convnet", "width": 8, "depth": 2, "norm": "instance", "pooling": "avg"}
    common = [
        4, problem.dataset.fingerprint, "standardise", network, 128, 0.9, 5e-4, augment, "torch.float32",
        problem.device.type,
    ]  # fmt: skip
    contents = files.fingerprint(training_set.images, training_set.targets, 0.01)
    series = (
        [3, "distilled", contents],
        [3, "random", 1],
        [3, "random_soft", 1, ["experts", 2]],
        [1, "full"],
    )
    expected = {files.fingerprint([*common, *identity, number]) for identity in series for number in (0, 1)}
    assert {path.stem for path in (tmp_path / "cache" / "networks").iterdir()} == expected


def test_the_same_numbers_as_targets_of_another_kind_are_another_set(given, trained):
    evaluator, training_set = given
    for kind in ("probabilities", "raw", "values"):
        exhaust(evaluate(evaluator, replace(training_set, kind=kind), 1, None, 0))
    assert [s.kind for s, _ in trained] == ["probabilities"] * 4 + ["raw"] * 2 + ["values"] * 2


def test_soft_labels_are_asked_for_only_where_a_network_is_trained(given, trained):
    evaluator, training_set = given
    asked = []
    for _ in range(2):
        exhaust(evaluate(evaluator, training_set, 1, lambda rows: asked.append(1) or uniform(rows), 0))
    assert len(asked) == 2


@pytest.mark.parametrize("damaged", ["", "[1]", "{}", "\xff"])
def test_a_damaged_entry_is_made_anew(given, trained, tmp_path, damaged):
    evaluator, training_set = given
    first = exhaust(evaluate(evaluator, training_set, 1, None, 0))
    for path in (tmp_path / "cache" / "networks").iterdir():
        path.write_bytes(damaged.encode("latin-1"))
    assert exhaust(evaluate(evaluator, training_set, 1, None, 0))["accuracy"] == first["accuracy"]
    assert len(trained) == 8
    again = exhaust(evaluate(evaluator, training_set, 1, None, 0))
    assert (first["kept"], again["kept"]) == ({}, {"distilled": 2, "random": 2})
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "networks").iterdir()]
    assert [entry["accuracy"] for entry in kept] == [0.5] * 4


def test_a_cache_that_cannot_be_written_is_told_once_and_fails_nothing(given, trained, tmp_path, monkeypatch, caplog):
    evaluator, training_set = given
    (tmp_path / "file").touch()
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "potstill"):
        found = exhaust(evaluate(evaluator, training_set, 1, None, 1))["accuracy"]
    assert {name: figure["mean"] for name, figure in found.items()} == {"distilled": 0.5, "random": 0.5, "full": 0.5}
    assert len(trained) == 5
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "is not kept for the next time" in messages[0]
    assert "set POTSTILL_CACHE" in messages[0]


def test_the_step_size_of_the_controls_is_not_that_of_the_set(given, trained):
    evaluator, training_set = given
    exhaust(evaluate(evaluator, replace(training_set, step_size=0.033), 1, uniform))
    assert [s.alpha for s, _ in trained] == [0.033] * 2 + [0.01] * 6
    assert [epochs for _, epochs in trained] == [3] * 6 + [1] * 2
    assert all(isinstance(s, TrainingSet) for s, _ in trained)


def test_confusions_are_those_of_the_networks_of_the_set(given):
    """Counted by a loop over the predictions of the same networks, trained here once more."""
    evaluator, training_set = given
    found = exhaust(evaluate(evaluator, training_set, 1, None, 0))
    test = evaluator.problem.test
    expected = [[0] * 10 for _ in range(10)]
    for number in range(2):
        seed = seeds.derive(0, "evaluation network", number)
        theta, buffers = evaluator.train(training_set, evaluator.protocol.epochs, seed)
        predicted = evaluator.network(theta, test.images, buffers, training=False).argmax(1)
        for truth, taken_for in zip(test.labels.tolist(), predicted.tolist(), strict=True):
            expected[truth][taken_for] += 1
    assert found["confusion"] == {"counts": expected, "networks": 2}
    right = sum(expected[k][k] for k in range(10)) / (2 * len(test.labels))
    assert right == pytest.approx(found["accuracy"]["distilled"]["mean"], abs=1e-6)


def test_accuracies_kept_from_before_confusions_were_counted_have_none(given, tmp_path):
    evaluator, training_set = given
    first = exhaust(evaluate(evaluator, training_set, 1, None, 0))
    for path in (tmp_path / "cache" / "networks").iterdir():
        kept = json.loads(path.read_text())
        del kept["confusion"], kept["checksum"]  # as entries of 0.1.0 are
        path.write_text(json.dumps(kept))
    again = exhaust(evaluate(evaluator, training_set, 1, None, 0))
    assert again == {**first, "kept": {"distilled": 2, "random": 2}, "confusion": None}


def test_confusions_are_summed_over_the_networks_that_have_them():
    assert controls.summed([[[1, 2], [0, 3]], None, [[4, 0], [1, 1]]]) == {"counts": [[5, 2], [1, 4]], "networks": 2}
    assert controls.summed([None]) is None
