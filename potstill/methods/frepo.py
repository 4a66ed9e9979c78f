"""FRePo: the last features of networks that train on the set should explain real images by ridge regression.

Zhou et al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022.  Neither an unroll nor a second
derivative: the cheapest way to learn labels.
"""

from collections import ChainMap
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.adjoint.inner import Adam, Moments
from potstill.bounds import Count, Fraction, Positive, Rate
from potstill.data import labels as kinds
from potstill.data.labels import one_hot
from potstill.methods import initial, matching, ridge
from potstill.methods.method import Begun, Context, Memory, Method, Outcome, Probe, Start, Variables
from potstill.methods.outer import Rule
from potstill.networks.flat import FlatNetwork
from potstill.networks.losses import loss_for

STEPS, LEFT = "steps", "left"  # that each network of the pool has taken, and that it may still take


@dataclass(frozen=True)
class Frepo:
    """Neural feature regression with pooling."""

    iterations: Count = 2000
    """Outer iterations (published: 500,000)."""
    real_batch: Count = 1024
    """Real images an iteration; all of them where there are fewer."""
    pool: Count = 10
    """Networks that train on the set as it is learned; one of them, at random, serves each iteration."""
    life: Count = 100
    """Iterations that a network of the pool serves before a fresh one replaces it."""
    inner_step_size: Positive = 3e-4
    """Step size of their training, by Adam on the squared error."""
    batch_size: Count = 500
    """Synthetic images a step of it."""
    ridge: Rate = 1e-6
    """λ of the regression, relative to the mean of the kernel's diagonal."""
    flip: bool = False
    """Regress on the set and its mirror images, as published for CIFAR-10."""
    lr_images: Rate = 3e-3
    """Outer learning rate of the images, relative to their norm (LAMB; published: 0.0003)."""
    lr_labels: Rate = 3e-3
    """Outer learning rate of the labels, relative to their norm."""
    cooldown: Fraction = 1.0
    """Last fraction of the iterations over which the rates fall; published: by a cosine over all of them."""
    initial: Literal["random", "noise"] = "random"
    """Begin with random real images, or with noise."""


def learns(settings: Frepo) -> dict[str, Rule]:
    """Images and labels, by LAMB."""
    rates = {"images": settings.lr_images, "values": settings.lr_labels}
    return {name: Rule(lr, "lamb", cooldown=settings.cooldown) for name, lr in rates.items()}


def begin(ctx: Context, settings: Frepo, start: Start | None) -> Begun:
    """Random real images or noise with centred one-hot labels; or a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start)
    return Begun({"images": images, "values": centred(ctx, labels, start)}, labels, _pool(ctx, settings))


def centred(ctx: Context, labels: Tensor, start: Start | None) -> Tensor:
    """Regression targets (n, K): (one-hot − 1/K) / √(K/10), or what the labels of a set amount to."""
    if start is None:
        return kinds.from_hard(labels, ctx.classes, "values") / (ctx.classes / 10) ** 0.5
    return kinds.convert(start.targets, start.kind, labels, ctx.classes, "values").clone()


def _pool(ctx: Context, settings: Frepo) -> Memory:
    """Fresh networks whose lives are of different length, so that they are not replaced at once."""
    left = settings.life - torch.arange(settings.pool) * settings.life // settings.pool
    return {LEFT: left, **pool_of(ctx, settings.pool)}


def pool_of(ctx: Context, size: int) -> Memory:
    """Fresh networks, the moments of their optimisers, and how many steps each has taken."""
    networks = [fresh(ctx, number, -1) for number in range(size)]
    return {STEPS: torch.zeros(size, dtype=torch.int64), **dict(ChainMap(*networks))}


def fresh(ctx: Context, number: int, iteration: int) -> Memory:
    """Network ``number`` of the pool as it begins after an iteration."""
    theta = ctx.fresh("pool", number, iteration + 1)
    zeros = torch.zeros_like(theta)
    return {f"theta.{number}": theta, f"first.{number}": zeros, f"second.{number}": zeros.clone()}


def regression_loss(
    ctx: Context, settings: Frepo, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """½ ‖F_t F_sᵀ (F_s F_sᵀ + λ tr/n I)⁻¹ y_s − y_t‖², mean over real images, plus how unsure y_s is (its equation 6).

    F are the last features of a network of the pool, which then takes a step on the set.  Several processes share the
    real images.
    """
    number = int(torch.randint(settings.pool, (), generator=ctx.draws("network", iteration)))
    theta, values = memory[f"theta.{number}"], variables["values"]
    synthetic, targets = with_mirrors(settings.flip, variables["images"], values)
    real, truth = real_batch(ctx, settings.real_batch, iteration)
    seen = list(range(len(real)))[ctx.rank :: ctx.world]
    found, solved = (
        matching.constant_features(ctx, theta, real[seen]).double(),
        ctx.problem.network.features(theta, synthetic).double(),
    )
    predicted = ridge.predict(found @ solved.T, solved @ solved.T, targets.double(), settings.ridge)
    share = len(seen) / len(real)
    loss = ridge.squared_error(predicted, truth[seen].double()) * share + ridge.unsureness(values) * share
    return Outcome(loss.float(), _advanced(ctx, settings, memory, number, variables, iteration))


def with_mirrors(flip: bool, images: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) and values (n, K), and where ``flip`` says so also their mirror images (2 n, ...)."""
    if not flip:
        return images, values
    return torch.cat([images, images.flip(3)]), torch.cat([values, values])


def real_batch(ctx: Context, size: int, iteration: int) -> tuple[Tensor, Tensor]:
    """Random real images (b, C, H, W) and their centred labels (b, K)."""
    split = ctx.problem.train
    rows = torch.randperm(len(split.labels), generator=ctx.draws("real", iteration))[:size]
    rows = rows.to(ctx.problem.device)
    return split.images[rows], one_hot(split.labels[rows], ctx.classes) - 1 / ctx.classes


def _advanced(
    ctx: Context, settings: Frepo, memory: Memory, number: int, variables: Variables, iteration: int
) -> Memory:  # fmt: skip
    """The pool after one of its networks took a step of Adam on the set, or was replaced at the end of its life."""
    steps, left = memory[STEPS].clone(), memory[LEFT].clone()
    if int(left[number]) <= 1:
        steps[number], left[number] = 0, settings.life
        return {**memory, STEPS: steps, LEFT: left, **fresh(ctx, number, iteration)}
    images, values = variables["images"].detach(), variables["values"].detach()
    rows = torch.randperm(len(images), generator=ctx.draws("batch", iteration))[: settings.batch_size].to(images.device)
    left[number] -= 1
    after = trained(ctx.problem.network, memory, number, images[rows], values[rows], settings.inner_step_size)
    return {**after, LEFT: left}


def trained(
    network: FlatNetwork, memory: Memory, number: int, images: Tensor, values: Tensor, step_size: float
) -> Memory:  # fmt: skip
    """The pool after one of its networks took a step of Adam on the squared error of a batch of the set."""
    steps, theta = memory[STEPS].clone(), memory[f"theta.{number}"].detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_for(network, "values")(theta, images, values)
    (gradient,) = torch.autograd.grad(loss, theta)
    moments = Moments((memory[f"first.{number}"], memory[f"second.{number}"]), int(steps[number]))
    size = torch.tensor(step_size, device=theta.device)
    moved, moments = Adam().step(theta.detach(), gradient, len(images), moments, size)
    steps[number] += 1
    stepped = dict(zip(("theta", "first", "second"), (moved, *moments.vectors), strict=True))
    return {**memory, STEPS: steps, **{f"{name}.{number}": x for name, x in stepped.items()}}


def probe(settings: Frepo) -> Probe:
    """One iteration as it is."""
    return Probe(settings, 1.0, 3 * settings.pool + 2)


def _cell(ipc: int, flip: bool, depth: int = 3) -> dict[str, Any]:
    """A published cell.

    Its code whitens standardised channels less the mean image, with λ relative to the mean eigenvalue, and keeps the
    images' norms; of the transforms here zca-image comes nearest (see :class:`~potstill.data.transform.Transform`).
    """
    return {
        "iterations": 500_000, "lr_images": 3e-4, "lr_labels": 3e-4, "flip": flip, "transform": "zca-image",
        "network": {"name": "wide-convnet", "depth": depth, "norm": "none"},
    }  # fmt: skip


FREPO = Method(
    name="frepo", title="Neural feature regression with pooling", family="kernel", batch_norm=False, reads="features",
    citation='Zhou et al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022', settings=Frepo,
    begin=begin, loss=regression_loss, learns=learns, kind=lambda settings: "values", loss_label="regression loss",
    probe=probe,
    published={("cifar10", ipc): _cell(ipc, True) for ipc in (1, 10, 50)}
    | {("cifar100", ipc): _cell(ipc, ipc == 1) for ipc in (1, 10, 50)}
    | {("tiny-imagenet", ipc): _cell(ipc, ipc == 1, 4) for ipc in (1, 10)},
)  # fmt: skip
