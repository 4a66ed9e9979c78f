"""Intervals, protocols and controls; and that the test images choose nothing."""

from dataclasses import replace

import pytest
import torch

from potstill import seeds
from potstill.config import EvaluationConfig, NetworkConfig
from potstill.data import dataset
from potstill.errors import PotstillError
from potstill.evaluation import evaluator
from potstill.evaluation.evaluator import PROTOCOLS, interval
from potstill.runs.api import exhaust
from potstill.training.problem import prepare
from tests.conftest import tiny
from tests.data.conftest import distilled  # noqa: F401  (a fixture)


def test_interval_is_the_t_interval():
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 5, 12):
        values = torch.rand(n, generator=seeds.generator(0, "v", n)).double().tolist()
        found = interval(values)
        mean = sum(values) / n
        low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(values))
        assert found["ci95"] == pytest.approx([low, high], abs=1e-4)
        assert found["mean"] == pytest.approx(mean)
    assert interval([0.5])["ci95"] is None


def test_standard_is_the_published_recipe():
    protocol = PROTOCOLS["standard"]
    recipe = protocol.recipe(protocol.epochs, 0.02, ("flip",))
    assert (recipe.epochs, recipe.decay_after, recipe.batch_size) == (1001, 501, 128)
    assert (recipe.momentum, recipe.weight_decay, recipe.step_size) == (0.9, 5e-4, 0.02)
    assert (protocol.seeds, protocol.selection) == (5, "validation")
    assert PROTOCOLS["paper"].selection == "test"


def test_protocols_take_changes_and_refuse_nonsense():
    changed = evaluator.protocol_of(EvaluationConfig(protocol="quick", seeds=7))
    assert (changed.seeds, changed.epochs) == (7, 300)
    with pytest.raises(PotstillError, match=r"evaluation\.seeds 0: at least 1"):
        evaluator.protocol_of(EvaluationConfig(seeds=0))


@pytest.fixture
def setting(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    config = tiny()
    problem = prepare(config)
    protocol = evaluator.protocol_of(config.evaluation)
    return problem, evaluator.judge(problem, config.network, protocol, config.augment)


def as_set(problem, rows, labels=None):
    from potstill.data.distilled import Distilled

    logits = torch.full((len(rows), 10), -20.0)
    logits[torch.arange(len(rows)), problem.train.labels[rows]] = 20.0
    return Distilled(
        problem.train.images[rows], logits, "logits", problem.train.labels[rows], 0.01, problem.transform,
        problem.dataset.classes, {"network": vars(problem.network_config), "augment": []}, {},
    )  # fmt: skip


def test_random_control_equals_a_set_of_the_same_images(setting):
    """Two ways to one number: the control's network 0, and a 'distilled' set of the same rows and hard labels."""
    problem, judge = setting
    rows = evaluator.random_rows(problem, 2, 0)
    found = exhaust(evaluator.evaluate(judge, as_set(problem, rows), 2, None, 1))["accuracy"]
    assert found["distilled"]["per_seed"][0] == pytest.approx(found["random"]["per_seed"][0])
    assert set(found) == {"distilled", "random", "full"}


def test_random_rows_are_ipc_of_each_class_and_differ_by_network(setting):
    problem, _ = setting
    first, second = (evaluator.random_rows(problem, 3, number) for number in (0, 1))
    assert problem.train.labels[first].bincount().tolist() == [3] * 10
    assert not torch.equal(first, second)


def test_everything_is_trained_once(setting, monkeypatch):
    problem, judge = setting
    trained = []
    original = evaluator.Judge.train
    monkeypatch.setattr(evaluator.Judge, "train", lambda self, *a: trained.append(1) or original(self, *a))
    given = as_set(problem, evaluator.random_rows(problem, 1, 0))
    first = exhaust(evaluator.evaluate(judge, given, 1, lambda rows: torch.full((len(rows), 10), 0.1)))
    assert len(trained) == 8  # distilled, random, random_soft, full: two networks each
    again = exhaust(evaluator.evaluate(judge, given, 1, lambda rows: torch.full((len(rows), 10), 0.1)))
    assert len(trained) == 8
    assert again == first
    exhaust(evaluator.evaluate(judge, replace(given, step_size=0.02), 1, None))
    assert len(trained) == 10  # only the changed set is trained anew


def test_the_full_control_can_be_left_out(setting):
    problem, judge = setting
    given = as_set(problem, evaluator.random_rows(problem, 1, 0))
    assert "full" not in exhaust(evaluator.evaluate(judge, given, 1, None, 0))["accuracy"]


def test_a_set_is_trained_with_its_step_size_only_by_its_own_network(setting, monkeypatch):
    problem, judge = setting
    used = []
    original = evaluator.Judge.accuracy

    def spy(self, images, targets, epochs, step_size, seed, on):
        used.append(step_size)
        return original(self, images, targets, epochs, step_size, seed, on)

    monkeypatch.setattr(evaluator.Judge, "accuracy", spy)
    given = replace(as_set(problem, evaluator.random_rows(problem, 1, 0)), step_size=0.033)
    exhaust(evaluator.evaluate(judge, given, 1, None, 0))
    assert used == [0.033, 0.033, 0.01, 0.01]
    other = evaluator.judge(problem, NetworkConfig(name="mlp", width=16), judge.protocol, judge.augment)
    used.clear()
    exhaust(evaluator.evaluate(other, given, 1, None, 0))
    assert used == [0.01] * 4


def test_judging_a_state_sees_the_split_it_is_told(setting, monkeypatch):
    problem, judge = setting
    state = as_set(problem, evaluator.random_rows(problem, 1, 0))
    seen = []
    monkeypatch.setattr(evaluator.Judge, "accuracy", lambda self, *a: seen.append(a[-1]) or 0.5)
    evaluator.judge_state(judge, state.images, state.logits, 0.01)
    evaluator.judge_state(judge, state.images, state.logits, 0.01, "test")
    assert [on is problem.val for on in seen] == [True, True, False, False]
    assert seen[2] is problem.test


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet", "lenet", "mlp"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_any_network_can_be_judged(setting, name, norm):
    problem, judge = setting
    protocol = replace(judge.protocol, epochs=2, seeds=1)
    other = evaluator.judge(problem, NetworkConfig(name=name, width=16, norm=norm), protocol, judge.augment)
    given = as_set(problem, evaluator.random_rows(problem, 2, 0))
    images, targets = given.tensors()
    small = dataset.Split(problem.dataset.test.images[:40], problem.dataset.test.labels[:40])
    on = replace(problem, dataset=replace(problem.dataset, test=small)).test
    assert 0 <= other.accuracy(images, targets, 2, 0.01, 0, on) <= 1


def test_train_gives_back_a_network_that_predicts(setting):
    problem, _ = setting
    given = as_set(problem, evaluator.random_rows(problem, 5, 0))
    network = evaluator.train(given, epochs=30)
    with torch.no_grad():
        found = network(given.transform(problem.dataset.test.images)).argmax(1)
    accuracy = float((found == problem.dataset.test.labels).float().mean())
    again = evaluator.train(given, epochs=30)
    assert accuracy > 0.4
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not network.training
