"""Selections: random rows, and herding's rule against the definition."""

import torch

from potstill.methods import initial, selection
from potstill.runs import run
from tests.conftest import tiny


def test_herding_takes_the_image_that_brings_the_mean_nearest():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    mean, chosen = features.mean(0), []
    for _ in range(12):  # the definition, by trying every image
        left = [i for i in range(40) if i not in chosen]
        chosen.append(min(left, key=lambda i: float((mean - features[[*chosen, i]].mean(0)).norm())))
    assert selection.herd(features, 12).tolist() == chosen


def test_the_mean_of_a_herd_is_nearer_than_that_of_random_rows():
    """A public implementation takes the argmax of the distance: the mean then runs away."""
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    mean = features.mean(0)
    apart = [float((features[rows].mean(0) - mean).norm()) for rows in (selection.herd(features, 20), torch.arange(20))]
    assert apart[0] < 0.2 * apart[1]


def test_random_rows_are_of_each_class_and_follow_the_seed(tmp_path):
    contexts = [run.open_run(tiny("random", ipc=3, seed=seed), tmp_path / str(seed)).context(0) for seed in (0, 0, 1)]
    rows = [initial.random_rows(ctx) for ctx in contexts]
    assert contexts[0].problem.train.labels[rows[0]].bincount().tolist() == [3] * 10
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert len(set(rows[0].tolist())) == 30
