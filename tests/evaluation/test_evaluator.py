"""Training on a set, whatever its targets are; and which images an accuracy is of."""

from dataclasses import replace

import pytest
import torch

from potstill.data import dataset
from potstill.data.labels import one_hot
from potstill.errors import PotstillError
from potstill.evaluation import evaluator as evaluators
from potstill.evaluation.controls import evaluate, random_rows
from potstill.evaluation.evaluator import Evaluator, TrainingSet, evaluator_for, train, validation_accuracy
from potstill.networks.architectures import NetworkConfig
from potstill.networks.losses import loss_for
from tests.evaluation.conftest import as_trained, exhaust, real_images


def test_a_training_set_has_a_row_of_targets_for_each_image():
    images, targets = torch.zeros(3, 1, 8, 8), torch.full((3, 10), 0.1)
    assert TrainingSet(images, targets).alpha == 0.01
    assert TrainingSet(images, targets, step_size=0.5).alpha == 0.5
    for rows in (2, 0):
        with pytest.raises(PotstillError, match=f"training set of {rows} images and .* rows of targets: .* give"):
            TrainingSet(images[:rows], targets[: 3 * (rows > 0)])


def test_a_set_is_trained_with_its_step_size_only_by_its_own_network(setting):
    problem, evaluator = setting
    given = real_images(problem, random_rows(problem, 1, 0), step_size=0.033)
    assert as_trained(given, evaluator).step_size == 0.033
    other = evaluator_for(problem, NetworkConfig(name="mlp", width=16), evaluator.protocol, evaluator.augment)
    assert as_trained(given, other).step_size is None


@pytest.mark.parametrize("kind", ["probabilities", "raw", "values"])
def test_training_lowers_the_loss_of_the_kind_of_targets(setting, kind):
    problem, evaluator = setting
    rows = random_rows(problem, 2, 0)
    targets = one_hot(problem.train.labels[rows], 10) * (2.0 if kind == "raw" else 1.0)
    given = TrainingSet(problem.train.images[rows], targets, kind, 0.05)
    evaluator, loss = replace(evaluator, augment=()), loss_for(evaluator.network, kind)
    before, after = (loss(evaluator.train(given, epochs, 0)[0], given.images, targets) for epochs in (0, 60))
    assert after < 0.5 * before


def test_twice_the_raw_weights_are_twice_the_step_size(setting):
    """Σ y log p is linear in y, and nothing normalises it; without momentum and decay, so are the steps."""
    problem, evaluator = setting
    plain = replace(evaluator, protocol=replace(evaluator.protocol, momentum=0.0, weight_decay=0.0))
    rows = random_rows(problem, 1, 0)
    images, targets = problem.train.images[rows], one_hot(problem.train.labels[rows], 10)
    doubled, _ = plain.train(TrainingSet(images, 2 * targets, "raw", 0.01), 3, 0)
    longer, _ = plain.train(TrainingSet(images, targets, "probabilities", 0.02), 3, 0)
    assert torch.allclose(doubled, longer, atol=1e-6)


def test_a_network_that_diverges_has_accuracy_0(setting):
    problem, evaluator = setting
    rows = random_rows(problem, 1, 0)
    given = TrainingSet(problem.train.images[rows], one_hot(problem.train.labels[rows], 10), "values", 1e20)
    assert not evaluator.train(given, 3, 0)[0].isfinite().all()
    assert evaluator.accuracy(given, 3, 0, problem.val) == 0.0
    assert evaluator.tested(given, 3, 0, problem.val) == (0.0, None)


def test_confusions_of_very_many_classes_are_not_counted(setting, monkeypatch):
    problem, evaluator = setting
    training_set = TrainingSet(problem.train.images[:1], one_hot(problem.train.labels[:1], 10))
    assert sum(map(sum, evaluator.tested(training_set, 1, 0, problem.val)[1])) == len(problem.val.labels)
    monkeypatch.setattr(evaluators, "COUNTED", 9)
    assert evaluator.tested(training_set, 1, 0, problem.val)[1] is None


def test_a_validation_accuracy_is_of_the_split_it_is_asked_for(setting, monkeypatch):
    problem, evaluator = setting
    given = as_trained(real_images(problem, random_rows(problem, 1, 0)), evaluator)
    seen = []
    monkeypatch.setattr(Evaluator, "accuracy", lambda self, *a: seen.append(a[-1]) or 0.25 * len(seen))
    assert validation_accuracy(evaluator, given) == 0.375  # the mean of two networks
    validation_accuracy(replace(evaluator, protocol=replace(evaluator.protocol, selection="test")), given)
    assert [on is problem.val for on in seen] == [True, True, False, False]
    assert seen[2] is problem.test


def test_validation_and_final_networks_are_not_the_same(setting, monkeypatch):
    """A set chosen on validation images is tested by networks that took no part in choosing it."""
    problem, evaluator = setting
    given = as_trained(real_images(problem, random_rows(problem, 1, 0)), evaluator)
    used = {"choosing": set(), "final": set()}
    now = "choosing"
    monkeypatch.setattr(Evaluator, "tested", lambda self, *a: used[now].add(a[2]) or (0.5, None))
    validation_accuracy(evaluator, given)
    now = "final"
    exhaust(evaluate(evaluator, given, 1, None, 0))
    assert {name: len(found) for name, found in used.items()} == {"choosing": 2, "final": 2}
    assert not used["choosing"] & used["final"]


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet", "lenet", "mlp"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_any_network_can_be_trained(setting, name, norm):
    problem, evaluator = setting
    protocol = replace(evaluator.protocol, epochs=2, seeds=1)
    other = evaluator_for(problem, NetworkConfig(name=name, width=16, norm=norm), protocol, evaluator.augment)
    given = as_trained(real_images(problem, random_rows(problem, 2, 0)), other)
    small = dataset.Split(problem.dataset.test.images[:40], problem.dataset.test.labels[:40])
    on = replace(problem, dataset=replace(problem.dataset, test=small)).test
    assert 0 <= other.accuracy(given, 2, 0, on) <= 1


def test_train_gives_back_a_network_that_predicts(setting):
    problem, _ = setting
    given = real_images(problem, random_rows(problem, 5, 0))
    network = train(given, epochs=30)
    with torch.no_grad():
        found = network(given.transform(problem.dataset.test.images)).argmax(1)
    accuracy = float((found == problem.dataset.test.labels).float().mean())
    again = train(given, epochs=30)
    assert accuracy > 0.4
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not network.training


def test_train_takes_a_step_size_and_a_network_by_name(setting, monkeypatch):
    problem, _ = setting
    given = real_images(problem, random_rows(problem, 1, 0), step_size=0.033)
    used, original = [], evaluators._fit

    def spy(network, training_set, *rest, **named):
        used.append(training_set.alpha)
        return original(network, training_set, *rest, **named)

    monkeypatch.setattr(evaluators, "_fit", spy)
    train(given, epochs=1)
    train(given, "convnet", epochs=1)  # its own
    train(given, "mlp", epochs=1)
    train(given, NetworkConfig(name="mlp", width=16), epochs=1, step_size=0.5)
    assert used == [0.033, 0.033, 0.01, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs 0: at least 1 is needed"),
        ({"epochs": -1}, "epochs -1: "),
        ({"epochs": 2.5}, "epochs 2.5: is a float, where a whole number is needed"),
        ({"seed": "x"}, "seed 'x': is a str"),
        ({"device": 7}, "device 7: is a int, where text is needed"),
        ({"step_size": 0.0}, "step_size 0.0: a number above 0 is needed"),
        ({"step_size": -1.0}, "step_size -1.0: a number above 0 is needed"),
        ({"step_size": float("nan")}, "step_size nan: a finite number is needed"),
        ({"network": "resnet19"}, "network 'resnet19': choose among convnet, wide-convnet, resnet18"),
        ({"network": torch.nn.Linear(2, 2)}, "network of type Linear: give a function"),
        ({"network": {"widht": 3}}, "network.widht: no such setting"),
    ],
)
def test_train_refuses_what_means_nothing(setting, changes, message):
    problem, _ = setting
    with pytest.raises(PotstillError, match=message):
        train(real_images(problem, random_rows(problem, 1, 0)), **changes)
