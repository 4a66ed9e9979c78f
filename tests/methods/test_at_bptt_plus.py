"""AT-BPTT++: its directions by the dense Hessian, when they are found anew, and what is left of it without them."""

import itertools
from dataclasses import replace

import pytest
import torch

from potstill.adjoint.curvature import low_rank
from potstill.adjoint.inner import Adam, Preconditioned
from potstill.data import augment
from potstill.methods import METHODS, at_bptt_plus
from potstill.methods.at_bptt import Window
from potstill.methods.at_bptt_plus import NORMS, VALUES, VECTORS, AtBpttPlus
from potstill.methods.trajectory import draw_steps
from potstill.networks.losses import loss_for
from potstill.runs import loop, run, state
from tests.conftest import tiny

METHOD = METHODS["at-bptt-plus"]
SHORT = {"unroll": 6, "window": 3, "radius": 1, "real_batch": 100, "lr_images": 0.01, "lr_labels": 0.01}


def job(folder, method="at-bptt-plus", **own):
    given = tiny(method, ipc=1, network={"width": 4}, **{method: {**SHORT, **own}})
    opened = run.open_run(given, folder)
    return opened.context(0), given.stages[0]


def window_of(ctx, begun, iteration=0, norms=None):
    steps = draw_steps(ctx, 10, 2, 10, ctx.draws("student", iteration))
    norms = torch.ones(6) if norms is None else norms
    return Window(ctx.fresh("n", 0), begun.variables["images"], begun.variables["raw"], steps, norms, 4, iteration)


def test_its_directions_are_those_that_the_dense_hessian_gives(tmp_path):
    """Of the loss of the window's first batch, at the parameters before it."""
    ctx, own = job(tmp_path, hessian_rank=3)
    begun = METHOD.begin(ctx, own, None)
    window = window_of(ctx, begun)
    inner, remembered = at_bptt_plus.along_curvature(ctx, own, begun.memory, window)
    assert isinstance(inner, Preconditioned)
    step, loss = window.steps[0], loss_for(ctx.problem.network, "raw")
    x, z = augment.apply(window.images[step.rows], step.drawing), window.targets[step.rows]
    hessian = torch.autograd.functional.hessian(lambda theta: loss(theta, x, z), window.theta)
    random = torch.randn(len(hessian), 3 + 4, generator=ctx.draws("curvature", 0))
    expected = low_rank(lambda v: hessian @ v, random, 3)
    probes = torch.randn(5, len(hessian), generator=ctx.draws("test", 0))
    assert torch.allclose(remembered[VALUES], expected.values, atol=1e-4)
    assert all(torch.allclose(inner.turn(v), expected(v), atol=1e-3) for v in probes)
    assert torch.equal(remembered[NORMS], window.norms)


def test_micro_batches_find_the_same(tmp_path):
    ctx, own = job(tmp_path, hessian_rank=2)
    begun = METHOD.begin(ctx, own, None)
    whole, parts = (
        at_bptt_plus.along_curvature(replace(ctx, micro_batch=size), own, begun.memory, window_of(ctx, begun))[1]
        for size in (None, 3)
    )
    assert torch.allclose(whole[VALUES], parts[VALUES], atol=1e-4)


def test_they_are_found_anew_by_time_or_by_change(tmp_path):
    own = AtBpttPlus(hessian_change=0.2, hessian_period=20)
    memory = {VECTORS: torch.eye(3)[:, :1], VALUES: torch.ones(1), NORMS: torch.full((6,), 2.0)}

    def due(iteration, norms, own=own, memory=memory):
        window = Window(torch.zeros(3), torch.empty(0), torch.empty(0), [], torch.tensor(norms), 4, iteration)
        return at_bptt_plus.is_due(own, memory, window)

    calm, steep = [1.0, 1.0, 1.0, 1.0, 1.3, 9.0], [1.0, 1.0, 1.0, 1.0, 1.5, 1.5]
    assert [due(k, calm) for k in (19, 20, 21, 40)] == [False, True, False, True]
    assert due(21, steep), "0.5 is a quarter of the 2 before"
    assert not due(21, steep, replace(own, hessian_change=0.3))
    assert due(21, calm, memory={**memory, VALUES: torch.zeros(1)}), "there are none yet"


def test_what_is_not_due_goes_on_as_it_is(tmp_path):
    ctx, own = job(tmp_path, hessian_rank=2, hessian_change=10.0)
    begun = METHOD.begin(ctx, own, None)
    _, found = at_bptt_plus.along_curvature(ctx, own, begun.memory, window_of(ctx, begun))
    inner, later = at_bptt_plus.along_curvature(ctx, own, found, window_of(ctx, begun, 1))
    assert torch.equal(later[VECTORS], found[VECTORS])
    assert torch.equal(inner.turn.vectors, found[VECTORS])


def test_a_hessian_that_is_not_finite_leaves_what_there_was(tmp_path):
    ctx, own = job(tmp_path, hessian_rank=2)
    begun = METHOD.begin(ctx, own, None)
    window = replace(window_of(ctx, begun), theta=torch.full_like(ctx.fresh("n", 0), torch.nan))
    inner, remembered = at_bptt_plus.along_curvature(ctx, own, begun.memory, window)
    assert isinstance(inner, Adam)
    assert not bool(remembered[VALUES].any())


def run_for(ctx, own, method, count, first=None):
    first = state.begin(method, own, method.begin(ctx, own, None)) if first is None else first
    return [reached for reached, _ in itertools.islice(loop.iterate(method, ctx, own, first), count)]


def test_without_directions_it_is_at_bptt_bit_for_bit(tmp_path):
    plus = run_for(*job(tmp_path / "plus", hessian_rank=0), METHOD, 4)[-1]
    plain = run_for(*job(tmp_path / "plain", "at-bptt"), METHODS["at-bptt"], 4)[-1]
    assert all(torch.equal(plus.variables[name], plain.variables[name]) for name in plain.variables)
    assert plus.memory.keys() == plain.memory.keys()
    other = run_for(*job(tmp_path / "along", hessian_rank=2), METHOD, 4)[-1]
    assert not torch.equal(other.variables["images"], plain.variables["images"])


def test_directions_in_use_go_through_a_checkpoint_bit_for_bit(tmp_path):
    """Stopped at an iteration after which they are not found anew."""
    ctx, own = job(tmp_path, hessian_rank=2, hessian_change=100.0)
    whole = run_for(ctx, own, METHOD, 5)
    whole[1].save(tmp_path / "checkpoint.safetensors", {})
    read, _ = state.load_state(tmp_path / "checkpoint.safetensors", ctx.problem.device)
    resumed = run_for(ctx, own, METHOD, 3, read)[-1]
    assert torch.equal(whole[-1].memory[VECTORS], whole[1].memory[VECTORS]), "the same ones all along"
    assert all(torch.equal(whole[-1].memory[name], resumed.memory[name]) for name in (VECTORS, VALUES, NORMS))
    assert torch.equal(whole[-1].variables["images"], resumed.variables["images"])


@pytest.mark.parametrize(("cell", "change"), [(("cifar10", 10), 0.2), (("cifar100", 10), 0.05)])
def test_its_cells_are_at_bptts_with_directions(cell, change):
    own, plain = METHOD.published[cell], METHODS["at-bptt"].published[cell]
    assert own == {**plain, "hessian_change": change}
    assert AtBpttPlus().hessian_rank == 32
