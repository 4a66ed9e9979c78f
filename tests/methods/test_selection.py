"""Selections: random rows, the experts' labels, and the set that a selection is."""

import pytest
import torch

from potstill.methods import METHODS, initial
from potstill.runs import run
from potstill.runs.api import run_to_completion
from tests.conftest import tiny


def test_random_rows_are_of_each_class_and_follow_the_seed(tmp_path):
    contexts = [run.open_run(tiny("random", ipc=3, seed=seed), tmp_path / str(seed)).context(0) for seed in (0, 0, 1)]
    rows = [initial.random_rows(ctx) for ctx in contexts]
    assert contexts[0].problem.train.labels[rows[0]].bincount().tolist() == [3] * 10
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert len(set(rows[0].tolist())) == 30


@pytest.mark.parametrize("epoch", [None, 2])
def test_soft_labels_are_what_the_experts_say_at_an_epoch(tmp_path, epoch):
    own = {"labels": "soft", "label_epoch": epoch}
    job = run.open_run(tiny("random", ipc=2, random=own), tmp_path)
    run_to_completion(run.train_experts(job))
    ctx, settings = job.context(0), job.settings.stages[0]
    begun = METHODS["random"].begin(ctx, settings, None)
    assert begun.variables["logits"].shape == (20, 10)
    split, rows, votes = ctx.problem.train, begun.rows, []
    for expert in range(2):
        theta, buffers = ctx.experts.last(expert) if epoch is None else ctx.experts.snapshot(expert, epoch)
        votes.append(ctx.problem.network(theta, split.images[rows], buffers, training=False))
    right = torch.stack([vote.argmax(1) == split.labels[rows] for vote in votes])
    for slot in range(20):
        sure = [vote[slot] for vote, ok in zip(votes, right[:, slot], strict=True) if ok] or [v[slot] for v in votes]
        assert torch.allclose(begun.variables["logits"][slot], torch.stack(sure).mean(0), atol=1e-5)


def test_the_last_snapshot_is_the_end_and_others_are_rows_of_the_file(tmp_path):
    job = run.open_run(tiny("random", expert={"keep_all": True}, random={"labels": "soft"}), tmp_path)
    run_to_completion(run.train_experts(job))
    store = job.experts
    assert torch.equal(store.snapshot(0, 4)[0], store.last(0)[0])
    assert torch.equal(store.snapshot(0, 2)[0], store.segment(0, 2, 1)[0])
