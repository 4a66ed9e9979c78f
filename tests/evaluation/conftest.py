"""A tiny problem with an evaluator, and distilled sets that are nothing but real images."""

import pytest
import torch

from potstill.data.distilled import Distilled
from potstill.evaluation.evaluator import evaluator_for, training_set_of
from potstill.evaluation.protocol import protocol_of
from potstill.runs.run import prepare_problem
from tests.conftest import tiny


@pytest.fixture
def setting(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    config = tiny()
    problem = prepare_problem(config)
    return problem, evaluator_for(problem, config.network, protocol_of(config.evaluation), config.augment)


def real_images(problem, rows, step_size=0.01):
    """The rows of the training set as a distilled set with hard labels."""
    logits = torch.full((len(rows), 10), -20.0)
    logits[torch.arange(len(rows)), problem.train.labels[rows]] = 20.0
    return Distilled(
        problem.train.images[rows], logits, "logits", problem.train.labels[rows], step_size, problem.transform,
        problem.dataset.classes, {"network": vars(problem.network_config), "augment": []}, {},
    )  # fmt: skip


def as_trained(distilled, evaluator):
    return training_set_of(distilled, evaluator.config, evaluator.problem.device)


def exhaust(events, seen=lambda event: None):
    """What a generator of events returns; each event is shown to ``seen``."""
    while True:
        try:
            seen(next(events))
        except StopIteration as end:
            return end.value
