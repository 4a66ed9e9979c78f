"""Protocols: the published recipe, what a configuration changes, and what is refused."""

from dataclasses import asdict

import pytest

from potstill.errors import PotstillError
from potstill.evaluation.protocol import PROTOCOLS, EvaluationConfig, described, protocol_of


def test_standard_is_the_published_recipe():
    protocol = PROTOCOLS["standard"]
    recipe = protocol.recipe(protocol.epochs, 0.02, ("flip",))
    assert (recipe.epochs, recipe.decay_after, recipe.batch_size) == (1001, 501, 128)
    assert (recipe.momentum, recipe.weight_decay, recipe.step_size) == (0.9, 5e-4, 0.02)
    assert (protocol.seeds, protocol.selection) == (5, "validation")
    assert PROTOCOLS["paper"].selection == "test"


def test_a_configuration_changes_a_protocol():
    changed = protocol_of(EvaluationConfig(protocol="quick", seeds=7))
    assert (changed.name, changed.seeds, changed.epochs) == ("quick", 7, 300)
    assert protocol_of(EvaluationConfig(full_seeds=0)) == PROTOCOLS["standard"]
    assert EvaluationConfig(protocol="paper", seeds=3).selection == "test"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, r"evaluation\.seeds 0: at least 1 is needed; raise --evaluation\.seeds"),
        ({"full_epochs": -1}, r"evaluation\.full_epochs -1: at least 1 is needed; raise --evaluation\.full-epochs"),
        ({"full_seeds": -1}, r"evaluation\.full_seeds -1: cannot be negative; raise --evaluation\.full-seeds"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(PotstillError, match=message):
        protocol_of(EvaluationConfig(**changes))


def test_a_protocol_that_was_cut_says_so():
    assert described(asdict(PROTOCOLS["standard"])) == "standard"
    cut = protocol_of(EvaluationConfig(epochs=2, seeds=1))
    assert described(asdict(cut)) == "standard with epochs 2, networks 1"
