"""IDM: a queue of networks that train on real images."""

import pytest
import torch

from potstill.methods import METHODS, idm
from potstill.runs import run
from tests.conftest import tiny


@pytest.fixture
def setting(tmp_path):
    own = {"real_batch": 20, "queue": 4, "every": 2, "iterations": 8}
    job = run.open_run(tiny("idm", ipc=2, idm=own), tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS["idm"].begin(ctx, settings, None)


def test_the_queue_grows_and_the_oldest_gives_way(setting):
    ctx, settings, begun = setting
    assert idm._size(begun.memory) == 3
    memory = begun.memory
    for iteration in range(4):
        memory = METHODS["idm"].loss(ctx, settings, begun.variables, memory, begun.labels, iteration).memory
    assert (idm._size(memory), int(memory[idm.BORN])) == (4, 5)
    assert torch.equal(memory["network.0"], ctx.fresh("network", 4)), "the fifth took the place of the first"


def test_networks_of_the_queue_train_on_real_images(setting):
    ctx, settings, begun = setting
    theta, right = begun.memory["network.0"], 0.0
    for _ in range(30):
        theta, right = idm._trained(ctx, settings, theta, ctx.draws("training", _))
    assert right > 0.3, "guessing gives 0.1"
