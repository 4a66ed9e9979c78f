"""How hard each training image is, by what experts say of it in the course of their training.

    EL2N         mean over experts of ‖softmax f(x) − y‖ (Paul et al., NeurIPS 2021)
    GraNd        mean of ‖∂ℓ/∂(W, b)‖ of the last layer, ‖softmax f(x) − y‖ √(1 + ‖h(x)‖²) (the same)
    forgetting   how often right at one epoch and wrong at the next; ∞ if it never was right (Toneva et al., ICLR 2019)
    AUM          Σ_epochs (p_y − max_{k≠y} p_k), high for easy images (Pleiss et al., NeurIPS 2020)

Scores are computed once for a store of experts, and kept.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import files
from potstill.data.labels import one_hot
from potstill.methods.method import Context, Experts
from potstill.methods.selection import BATCH, at_epoch
from potstill.networks import flat
from potstill.store import once
from potstill.training.curriculum import error_norms
from potstill.training.trajectories import Trajectories

Score = Literal["el2n", "grand", "forgetting", "aum"]
EARLY = 0.1  # of the experts' epochs, after which EL2N and GraNd are taken; published: 5 to 10 %
VERSION = 1  # of the numbers; raised whenever they change


def needs(score: Score, epoch: int | None) -> Experts:
    """The snapshots that a score reads: one epoch's, or all of them."""
    if score in ("forgetting", "aum") or epoch is None:
        return Experts(None)
    return at_epoch(epoch)


def hardness(ctx: Context, score: Score, epoch: int | None) -> Tensor:
    """How hard each training image is (N,), on the CPU: the score, or for AUM its negative.

    Args:
        ctx: whose first ``expert_count`` experts are asked for EL2N and GraNd, and whose first one for the others.
        score: which one.
        epoch: of the experts, for EL2N and GraNd; None: a tenth of their epochs.
    """
    experts, split = ctx.experts, ctx.problem.train
    assert experts is not None
    last = experts.identity["expert"]["epochs"]
    epoch = max(1, round(EARLY * last)) if epoch is None else epoch
    count = 1 if score in ("forgetting", "aum") else ctx.expert_count
    when = list(range(1, last + 1)) if score in ("forgetting", "aum") else epoch

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        match score:
            case "forgetting":
                outputs = (_outputs(ctx, experts, 0, e) for e in range(1, last + 1))
                found = forgetting(torch.stack([o.argmax(1) == split.labels for o in outputs]))
            case "aum":
                found = -sum(margin(_outputs(ctx, experts, 0, e), split.labels) for e in range(1, last + 1))  # type: ignore[assignment]
            case "el2n":
                found = torch.stack([_error(ctx, experts, number, epoch) for number in range(count)]).mean(0)
            case "grand":
                norms = (_last_layer_norm(ctx, experts, number, epoch) for number in range(count))
                found = torch.stack(list(norms)).mean(0)
        return {"score": found.cpu()}, {}

    identity = [VERSION, score, files.fingerprint(experts.identity), ctx.problem.dataset.fingerprint, when, count]
    return once("scores", identity, make)[0]["score"]


def forgetting(right: Tensor) -> Tensor:
    """How often each image (E, N) was right at one epoch and wrong at the next; infinite where it was never right."""
    forgotten = (right[:-1] & ~right[1:]).sum(0).float()
    return forgotten.masked_fill(~right.any(0), torch.inf)


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """p_y − max_{k≠y} p_k (N,) of outputs (N, K)."""
    p = outputs.softmax(1)
    own = p.gather(1, labels[:, None])[:, 0]
    return own - p.scatter(1, labels[:, None], -torch.inf).max(1).values


def _error(ctx: Context, experts: Trajectories, number: int, epoch: int) -> Tensor:
    """‖softmax f(x) − y‖ (N,)."""
    return error_norms(_outputs(ctx, experts, number, epoch), one_hot(ctx.problem.train.labels, ctx.classes))


@torch.no_grad()
def _last_layer_norm(ctx: Context, experts: Trajectories, number: int, epoch: int) -> Tensor:
    """‖∂ℓ/∂(W, b)‖ (N,) of the last layer: the error times √(1 + ‖h‖²)."""
    network, images = ctx.problem.network, ctx.problem.train.images
    theta, buffers = (x.to(ctx.problem.device) for x in experts.snapshot(number, epoch))
    squares = [network.features(theta, part, buffers, training=False).square().sum(1) for part in images.split(BATCH)]
    return _error(ctx, experts, number, epoch) * (1 + torch.cat(squares)).sqrt()


def _outputs(ctx: Context, experts: Trajectories, number: int, epoch: int) -> Tensor:
    theta, buffers = (x.to(ctx.problem.device) for x in experts.snapshot(number, epoch))
    return flat.predict(ctx.problem.network, theta, ctx.problem.train.images, buffers)


def last_layer(ctx: Context, images: Tensor, labels: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Errors softmax f(x) − y (n, K) and features h(x) (n, F) of an expert at its end: ∂ℓ/∂W is their outer product."""
    assert ctx.experts is not None
    theta, buffers = (x.to(ctx.problem.device) for x in ctx.experts.last(expert))
    network = ctx.problem.network
    with torch.no_grad():
        h = torch.cat([network.features(theta, part, buffers, training=False) for part in images.split(BATCH)])
        outputs = flat.predict(network, theta, images, buffers)
    return F.softmax(outputs, 1) - one_hot(labels, ctx.classes), h
