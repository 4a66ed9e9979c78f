"""The growing window, and what is refused."""

import pytest

from potstill import seeds
from potstill.config import PRESETS, WindowConfig
from potstill.errors import PotstillError
from potstill.methods import start_epochs


def test_upper_grows_as_published():
    published = WindowConfig(0, 20, 10, 1000)
    for k in range(0, 1500, 7):
        assert start_epochs.upper(published, k) == min(10 + (20 - 10) * k // 1000, 20)
    assert start_epochs.upper(WindowConfig(0, 4), 0) == 4


@pytest.mark.parametrize("name", PRESETS)
def test_draws_stay_inside_and_reach_both_ends(name):
    config = PRESETS[name].window
    for k in (0, 500, 5000):
        drawn = {start_epochs.draw_start(config, k, seeds.generator(0, "s", i)) for i in range(1500)}
        assert min(drawn) == config.start
        assert max(drawn) == start_epochs.upper(config, k) - 1


def test_a_window_beyond_the_snapshots_is_refused_with_the_remedy():
    with pytest.raises(
        PotstillError, match=r"window \[40, 60\) \+ 2 epochs exceeds the 22 snapshots .* lower --window.stop"
    ):
        start_epochs.check(WindowConfig(40, 60), 2, None, 21, "experts/")


def test_a_snapshot_that_was_not_kept_is_named():
    with pytest.raises(PotstillError, match="needs the snapshot of epoch 5, which experts/ does not keep"):
        start_epochs.check(WindowConfig(0, 5), 2, [0, 1, 2, 3, 4, 30], 30, "experts/")


@pytest.mark.parametrize(
    "config", [WindowConfig(3, 3), WindowConfig(-1, 3), WindowConfig(2, 5, 1), WindowConfig(0, 5, 6)]
)
def test_an_empty_window_is_refused(config):
    with pytest.raises(PotstillError, match="0 <= start < initial <= stop"):
        start_epochs.check(config, 2, None, 100, "experts/")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_their_own_experts(name):
    config = PRESETS[name]
    start_epochs.check(config.window, config.distil.expert_epochs, None, config.expert.epochs, "the experts")
