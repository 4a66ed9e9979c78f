"""AT-BPTT++: AT-BPTT whose differentiated steps go along a few directions of large curvature alone.

Inside the window a student's gradient g is replaced by U diag(s / max |s|) Vᵀ g, as long as g was, with U, s, V a
singular value decomposition of low rank of the Hessian of its loss ("cache-and-refresh low-rank Hessian approximation",
as the public code aether-hang/at-bptt-plus of 30 May 2026 runs it; no paper yet).  It is found at the window's first
step from products of the Hessian with vectors, and held constant.  It goes on to the new students of the next
iterations, until the norm of the gradient where the window ends has changed, or for some iterations.

So the steps that are differentiated are not those that a network takes which is trained on the set.  They lead uphill
along directions of negative curvature, of which a fresh network has many: on the digits a third to a half of 32, and
sixteen such steps lower the loss of a fresh network by hardly anything, where plain ones lower it to a fifth.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from potstill.adjoint.curvature import LowRank, low_rank
from potstill.adjoint.inner import Inner, Preconditioned
from potstill.adjoint.unroll import micro_batches
from potstill.bounds import Count, Rate, Whole
from potstill.data import augment
from potstill.methods import at_bptt, bptt
from potstill.methods.at_bptt import AtBptt, Window
from potstill.methods.method import Begun, Context, Memory, Method, Probe, Start

NORMS = "norms"  # (T,) the gradients' of the iteration before
VECTORS, VALUES = "curved directions", "curvatures"  # (P, r), (r,) of the map in use; all 0 while there is none
EXTRA = 4  # columns of the range finder beyond the rank, published


@dataclass(frozen=True)
class AtBpttPlus(AtBptt):
    """Automatic truncated backpropagation along directions of large curvature."""

    hessian_rank: Whole = 32
    """Directions of largest curvature along which the window's steps go. 0: all directions, as at-bptt."""
    hessian_change: Rate = 0.2
    """The directions are found anew where the gradient's norm at the window's end has changed by this part or more."""
    hessian_period: Count = 20
    """They are found anew every so many iterations in any case."""


def begin(ctx: Context, settings: AtBpttPlus, start: Start | None) -> Begun:
    """As AT-BPTT; no directions yet."""
    begun = at_bptt.begin(ctx, settings, start)
    if not settings.hessian_rank:
        return begun
    size, device = sum(ctx.problem.network.sizes), ctx.problem.device
    rank = min(settings.hessian_rank, size)
    curvature = {VECTORS: torch.zeros(size, rank, device=device), VALUES: torch.zeros(rank, device=device)}
    return replace(begun, memory=begun.memory | curvature | {NORMS: torch.zeros(settings.unroll)})


def along_curvature(ctx: Context, settings: AtBpttPlus, memory: Memory, window: Window) -> tuple[Inner, Memory]:
    """The students' optimiser by gradients along the directions of largest curvature, and what to remember of them."""
    inner = bptt.optimiser(settings)
    if not settings.hessian_rank:
        return inner, {}
    found = _curvature(ctx, settings, window) if is_due(settings, memory, window) else None
    known = LowRank(memory[VECTORS], memory[VALUES]) if found is None else found
    remembered = {VECTORS: known.vectors, VALUES: known.values, NORMS: window.norms}
    return Preconditioned(inner, known) if bool(known.values.any()) else inner, remembered


def is_due(settings: AtBpttPlus, memory: Memory, window: Window) -> bool:
    """Whether the directions are to be found anew: |G_i − G_i₋₁| / G_i′ ≥ δ at the end i, or the time has come.

    G are the norms of this iteration's training, G′ those of the one before.
    """
    if not bool(memory[VALUES].any()) or window.iteration % settings.hessian_period == 0:
        return True
    before = float(memory[NORMS][window.end])
    return float(at_bptt.changes(window.norms)[window.end]) >= settings.hessian_change * before


def _curvature(ctx: Context, settings: AtBpttPlus, window: Window) -> LowRank | None:
    """From the Hessian of the loss of the window's first batch; None where that is 0 or not finite."""
    step, size = window.steps[0], len(window.theta)
    parts = [(augment.apply(window.images[rows], drawing), window.targets[rows])
             for rows, drawing in micro_batches(step, ctx.micro_batch)]  # fmt: skip

    def product(vector: Tensor) -> Tensor:
        return sum((ctx.derivatives.directional(window.theta, x, z, vector, ())[1] for x, z in parts),
                   torch.zeros_like(vector))  # fmt: skip

    columns = min(settings.hessian_rank + EXTRA, size)
    random = torch.randn(size, columns, generator=ctx.draws("curvature", window.iteration)).to(window.theta)
    return low_rank(product, random, settings.hessian_rank)


def probe(settings: AtBpttPlus) -> Probe:
    """One iteration as it is, in which the directions are found: the others cost no more."""
    cheaper = at_bptt.probe(settings)
    return replace(cheaper, timed=(0,), vectors=cheaper.vectors + 3 * (settings.hessian_rank + EXTRA))


loss = partial(at_bptt.real_loss, optimiser=along_curvature)

AT_BPTT_PLUS = Method(
    name="at-bptt-plus", title="Automatic truncated backpropagation along curvature", family="backpropagation",
    citation="AT-BPTT++, as in its public code (aether-hang/at-bptt-plus, 2026)",
    settings=AtBpttPlus, begin=begin, loss=loss, learns=at_bptt.learns, needs=bptt.needs, inner=bptt.inner,
    kind=bptt.kind, check=at_bptt.check,
    loss_label=at_bptt.AT_BPTT.loss_label, metrics=at_bptt.AT_BPTT.metrics,
    measured=bptt.MEASURED, measure=bptt.measure_with(loss, at_bptt.learns), probe=probe,
    refining=at_bptt.AT_BPTT.refining, tuned=at_bptt.for_digits(300),
    published={
        ("cifar10", 10): at_bptt.cell(32, 16, 8, 1e-3, 100, hessian_change=0.2),
        ("cifar100", 10): at_bptt.cell(300, 100, 30, 1e-3, 100, hessian_change=0.05),
    },
)  # fmt: skip
