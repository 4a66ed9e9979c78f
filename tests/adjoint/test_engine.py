"""What is chosen where, and what is refused; gradients of training, and threads that share a network."""

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch

from potstill.adjoint import engine
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.data import augment
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.architectures import Architecture, NetworkConfig
from potstill.networks.losses import LabelKind, label_loss, loss_for, target_loss
from tests.conftest import needs_compiler
from tests.networks.test_losses import labels_of

SHAPE = (3, 32, 32)


def network(**changes):
    return flat.flat_network(NetworkConfig(**changes), SHAPE, 10)


def test_multiplications_are_counted():
    # three 3×3 convolutions at 32², 16², 8² positions, and one linear layer
    by_hand = 1024 * 27 * 128 + 256 * 1152 * 128 + 64 * 1152 * 128 + 2048 * 10
    for norm in ("instance", "batch", "none"):  # norms and poolings are not counted
        assert engine.multiplications(network(norm=norm), SHAPE) == by_hand


@pytest.mark.parametrize("name", get_args(Architecture))
def test_multiplications_are_weights_times_positions_in_every_architecture(name):
    flat_network = network(name=name)
    counted = []

    def count(layer, _, output):
        counted.append(layer.weight.numel() * (output.shape[2:].numel() if output.dim() == 4 else 1))

    module = flat_network.as_module(flat_network.fresh(0))
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    module(torch.zeros(1, *SHAPE))
    assert engine.multiplications(flat_network, SHAPE) == sum(counted)


def test_multiplications_are_counted_once(monkeypatch):
    counted = engine.multiplications(network(width=9), SHAPE)
    monkeypatch.setattr(engine, "FlopCounterMode", None)
    assert engine.multiplications(network(width=9), SHAPE) == counted


@pytest.mark.parametrize("kind", get_args(LabelKind))
def test_the_gradient_of_training_is_the_mean_losss(kind):
    small = flat.flat_network(NetworkConfig(width=4, depth=2), SHAPE, 10, precision=torch.float64)
    theta = small.fresh(0).double()
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = labels_of(kind, 6, 10).double()
    here = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_for(small, kind)(here, images, labels) / 6, here)
    found = engine.training_gradient(small, SHAPE, 6, 1.0, "no", kind)(theta, images, labels)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_the_mean_loss_of_parts_has_the_gradient_of_all(compile):
    """Of parts of unlike size, of which compiled is the first one's."""
    small = flat.flat_network(NetworkConfig(width=4, depth=2), SHAPE, 10, precision=torch.float64)
    images = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, theta = labels_of("probabilities", 5, 10).double(), small.fresh(0).double().requires_grad_()
    parts = [*zip(images.split(2), labels.split(2), strict=True)]
    found = engine.mean_loss(small, theta, parts, 5, compile).square()
    expected = (target_loss(small)(theta, images, labels) / 5).square()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    (ours,), (oracle,) = (torch.autograd.grad(value, theta) for value in (found, expected))
    assert torch.allclose(ours, oracle, rtol=1e-10, atol=1e-14)


def test_the_gradient_of_training_moves_the_callers_statistics():
    small = network(width=4, depth=2, norm="batch")
    theta, images, labels = small.fresh(0), torch.randn(6, *SHAPE), torch.eye(10)[:6]
    gradient = engine.training_gradient(small, SHAPE, 6, 1.0, "no")
    found, expected = small.initial_buffers(), small.initial_buffers()
    without, with_buffers = gradient(theta, images, labels), gradient(theta, images, labels, buffers=found)
    small(theta, images, expected)
    assert torch.equal(found, expected)
    assert not torch.equal(found, small.initial_buffers())
    assert torch.equal(without, with_buffers)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_threads_may_share_a_network(norm):
    """Each trains a network of its own and distils with it; all find exactly what they find alone."""
    shape, classes, shared = (3, 8, 8), 4, flat.flat_network(NetworkConfig(width=6, depth=2, norm=norm), (3, 8, 8), 4)
    loss, gradient = label_loss(shared), engine.mean_gradient(target_loss(shared))

    def work(seed):
        draws = torch.Generator().manual_seed(seed)
        images, z = torch.randn(12, *shape, generator=draws), torch.randn(12, classes, generator=draws)
        theta, buffers = shared.fresh(seed), shared.initial_buffers()
        for _ in range(30):
            theta = theta - 0.05 * gradient(theta, images, z.softmax(1), buffers=buffers)
        leaves = [images.requires_grad_(), z.requires_grad_(), torch.tensor(0.05, requires_grad=True)]
        steps = [InnerStep(torch.arange(12), augment.draw((), 12, shape[1:], draws))] * 10
        end = unroll(shared.fresh(seed + 10), *leaves, steps, loss)
        predicted = flat.predict(shared, theta, images, buffers)
        return theta, buffers, predicted, *torch.autograd.grad((end - theta).square().sum(), leaves)

    alone = [work(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(work, range(3)))
    for ours, theirs in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("parts", [1, 5, 7, 20])
def test_a_gradient_by_parts_is_that_of_the_batch(parts):
    """Held to the whole batch in float64."""
    small = flat.flat_network(NetworkConfig(width=6, depth=2), (3, 8, 8), 4, precision=torch.float64)
    draws = torch.Generator().manual_seed(0)
    theta = small.fresh(0).double()
    images = torch.randn(12, 3, 8, 8, generator=draws, dtype=torch.float64)
    targets = torch.rand(12, 4, generator=draws, dtype=torch.float64)
    whole = engine.mean_gradient(target_loss(small))(theta, images, targets)
    assert torch.allclose(engine.mean_gradient(target_loss(small), parts)(theta, images, targets), whole, rtol=1e-10)


def test_as_many_images_at_once_as_stay_in_cache():
    wide, narrow = (flat.flat_network(NetworkConfig(width=width, depth=3), (3, 32, 32), 10) for width in (128, 32))
    coupled = flat.flat_network(NetworkConfig(width=128, depth=3, norm="batch"), (3, 32, 32), 10)
    found = [engine.at_once(one, (3, 32, 32)) for one in (wide, narrow)]
    assert found == [engine.CACHE_BATCH["cpu"], engine.SMALL_BATCH]
    assert engine.at_once(coupled, (3, 32, 32)) > 10**9, "batch norm sees the whole batch"


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


@pytest.mark.parametrize(("units", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_is_lowered_where_the_device_has_units_for_it(monkeypatch, units, precision):
    monkeypatch.setattr(engine, "has_bfloat16_units", lambda device: units)
    for width in (32, 128):
        assert engine.choose_precision("auto", torch.device("cpu"), network(width=width), SHAPE) == precision


def test_batch_norm_stays_in_float32():
    coupled, cpu = network(norm="batch"), torch.device("cpu")
    assert engine.choose_precision("auto", cpu, coupled, SHAPE) == torch.float32
    with pytest.raises(PotstillError, match="batch norm keeps float32 statistics"):
        engine.choose_precision("bfloat16", cpu, coupled, SHAPE)


MEGABYTES = """
import gc, torch
from potstill.adjoint import engine
engine.keep_freed_memory()

def resident():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) // 1024

torch.ones(1)  # what a first tensor takes
before = resident()
parts = [torch.ones(1_000_000) for _ in range(100)]
last = torch.ones(1)  # behind them, so that the heap cannot shrink
del parts
gc.collect()
kept = resident()
engine.hand_back_freed_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_is_kept_until_it_is_handed_back():
    told = subprocess.run([sys.executable, "-c", MEGABYTES], capture_output=True, text=True, check=True).stdout
    kept, left = map(int, told.split())
    assert kept > 350 > 100 > left
