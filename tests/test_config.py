"""The presets against the published table, written out once more."""

import pytest

from potstill.config import DSA, PRESETS, default

# cell: N, M, lr images, lr logits, lr step size, batch, T-, T (None: no growth), T+, expand, threshold, depth
PUBLISHED = {
    "cifar10-ipc1": (80, 2, 100, 5, 1e-7, 10, 0, None, 4, None, 1.1, 3),
    "cifar10-ipc10": (80, 2, 100, 2, 1e-5, 100, 0, 10, 20, 1000, 1.0, 3),
    "cifar10-ipc50": (80, 2, 1000, 2, 1e-5, 500, 0, 20, 40, 2000, 1.0, 3),
    "cifar10-ipc500": (40, 2, 50, 10, 1e-5, 1000, 40, None, 60, None, 1.0, 3),
    "cifar10-ipc1000": (100, 2, 50, 10, 1e-5, 1000, 40, None, 60, None, 1.0, 3),
    "cifar100-ipc1": (40, 3, 1000, 10, 1e-5, 1000, 0, 10, 20, 1000, 1.0, 3),
    "cifar100-ipc10": (80, 2, 1000, 10, 1e-5, 1000, 0, 30, 50, 2000, 1.0, 3),
    "cifar100-ipc50": (80, 2, 1000, 10, 1e-5, 1000, 20, None, 70, None, 1.0, 3),
    "cifar100-ipc100": (80, 2, 50, 10, 1e-5, 1000, 30, None, 70, None, 1.0, 3),
    "tiny-imagenet-ipc1": (40, 2, 10000, 10, 1e-4, 1000, 0, 15, 20, 2000, 1.0, 4),
    "tiny-imagenet-ipc10": (40, 2, 100, 10, 1e-4, 500, 10, None, 50, None, 1.0, 4),
    "tiny-imagenet-ipc50": (20, 2, 100, 10, 1e-4, 1000, 40, None, 70, None, 1.0, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_the_published_cell(name):
    config = PRESETS[name]
    steps, span, lr_images, lr_logits, lr_step, batch, low, initial, high, expand, threshold, depth = PUBLISHED[name]
    d, w = config.distil, config.window
    assert (d.inner_steps, d.expert_epochs, d.batch_size) == (steps, span, batch)
    assert (d.lr_images, d.lr_logits, d.lr_step_size, d.threshold) == (lr_images, lr_logits, lr_step, threshold)
    assert (w.start, w.initial, w.stop) == (low, initial, high)
    assert expand is None or w.expand == expand
    assert config.ipc == int(name.rsplit("ipc")[-1])
    assert (config.network.name, config.network.width, config.network.depth) == ("convnet", 128, depth)
    assert (config.network.norm, config.network.pooling) == ("instance", "avg")


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_all_published_cells_share(name):
    config = PRESETS[name]
    expert = config.expert
    assert (expert.count, expert.epochs, expert.batch_size, expert.step_size) == (100, 100, 256, 0.01)
    assert (expert.rho, expert.alpha) == (0.01, 0.3)
    assert (config.distil.iterations, config.distil.step_size) == (10_000, 0.01)
    assert (config.transform, config.augment) == ("zca", DSA)
    assert config.distil.start == ("random" if name == "cifar100-ipc50" else "correct")
    assert config.distil.label_experts == (1 if name == "cifar100-ipc50" else None)


def test_there_are_the_twelve_cells_and_three_of_digits():
    assert set(PRESETS) == {*PUBLISHED, "digits-ipc1", "digits-ipc10", "digits-ipc50"}


@pytest.mark.parametrize(("dataset", "ipc", "stop"), [
    ("digits", 1, 3), ("digits", 8, 29), ("digits", 40, 29),
])  # fmt: skip
def test_the_window_of_the_digits_follows_the_size(dataset, ipc, stop):
    config = default(dataset, ipc)
    assert (config.dataset, config.ipc, config.window.stop) == (dataset, ipc, stop)
    assert config.expert.epochs >= config.window.stop - 1 + config.distil.expert_epochs
