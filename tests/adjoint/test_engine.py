"""What is chosen where, and what is refused."""

import pytest
import torch

from potstill.adjoint import engine
from potstill.config import NetworkConfig
from potstill.errors import PotstillError
from potstill.networks import flat

SHAPE = (3, 32, 32)


def network(**changes):
    return flat.flat_network(NetworkConfig(**changes), SHAPE, 10)


def test_multiplications_are_counted():
    # three 3×3 convolutions at 32², 16², 8² positions, and one linear layer
    by_hand = 1024 * 27 * 128 + 256 * 1152 * 128 + 64 * 1152 * 128 + 2048 * 10
    assert engine.multiplications(network(), SHAPE) == by_hand


def test_short_jobs_run_plainly_and_long_ones_compiled(monkeypatch):
    monkeypatch.setattr(engine.shutil, "which", lambda name: "/usr/bin/" + name)
    short, _ = engine.inner_derivatives(network(), SHAPE, 10, 1e2, "auto", None)
    long, _ = engine.inner_derivatives(network(), SHAPE, 10, 1e7, "auto", None)
    forbidden, _ = engine.inner_derivatives(network(), SHAPE, 10, 1e7, "no", None)
    assert (short.compiled, long.compiled, forbidden.compiled) == (False, True, False)


def test_without_a_compiler_everything_runs_plainly(monkeypatch):
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    derivatives, _ = engine.inner_derivatives(network(), SHAPE, 10, 1e9, "auto", None)
    assert not derivatives.compiled
    with pytest.raises(PotstillError, match="no C\\+\\+ compiler .* leave --compile at auto"):
        engine.inner_derivatives(network(), SHAPE, 10, 1e9, "yes", None)


def test_micro_batches_are_even_and_fit_the_cache():
    for batch, expected in ((10, 10), (100, 25), (50, 25), (33, 17)):
        _, micro = engine.inner_derivatives(network(), SHAPE, batch, 1.0, "no", None)
        assert micro == expected
    _, small = engine.inner_derivatives(network(width=8), SHAPE, 1000, 1.0, "no", None)
    assert small is None


def test_batch_norm_refuses_micro_batches_and_compiling():
    coupled = network(norm="batch")
    with pytest.raises(PotstillError, match="batch norm couples the images"):
        engine.inner_derivatives(coupled, SHAPE, 100, 1.0, "no", 10)
    derivatives, micro = engine.inner_derivatives(coupled, SHAPE, 100, 1e9, "auto", None)
    assert (derivatives.compiled, micro) == (False, None)


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert engine.choose_precision("float16", cpu, network(), SHAPE) == torch.float16
    assert engine.choose_precision("auto", cpu, network(width=8), SHAPE) == torch.float32


def test_batch_norm_stays_in_float32():
    coupled, cpu = network(norm="batch"), torch.device("cpu")
    assert engine.choose_precision("auto", cpu, coupled, SHAPE) == torch.float32
    with pytest.raises(PotstillError, match="batch norm keeps float32 statistics"):
        engine.choose_precision("bfloat16", cpu, coupled, SHAPE)
