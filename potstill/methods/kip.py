"""KIP: images whose kernel ridge regression explains the real ones.

Nguyen et al., "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021.  With the kernel of a fully connected
network, in closed form and float64; that of a convolutional one takes hundreds of GPUs ("Dataset Distillation with
Infinitely Wide Convolutional Networks", NeurIPS 2021), and its published accuracies are citations here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.bounds import Count, Fraction, Rate, Whole
from potstill.data import labels as kinds
from potstill.data.labels import Kind, one_hot
from potstill.methods import initial, ntk, ridge
from potstill.methods.method import Begun, Context, Memory, Method, Outcome, Probe, Start, Variables
from potstill.methods.outer import Rule


@dataclass(frozen=True)
class Kip:
    """Kernel inducing points."""

    iterations: Count = 1000
    """Outer iterations."""
    real_batch: Count = 5000
    """Real images an iteration, as many of each class; all of them where there are fewer."""
    depth: Whole = 1
    """Hidden layers of the infinitely wide network; 0: a linear one."""
    ridge: Rate = 1e-6
    """λ of the regression, relative to the mean of the kernel's diagonal."""
    labels: Literal["learned", "fixed"] = "learned"
    """learned: the regression targets too; fixed: centred one-hot rows."""
    lr_images: Rate = 0.04
    """Outer learning rate of the images, by Adam."""
    lr_labels: Rate = 0.01
    """Outer learning rate of the labels, by Adam."""
    cooldown: Fraction = 0.0
    """Last fraction of the iterations over which the rates fall to nothing."""
    initial: Literal["random", "noise"] = "random"
    """Begin with random real images, or with noise."""


def learns(settings: Kip) -> dict[str, Rule]:
    """Images, and labels where they are learned, by Adam."""
    rates = {"images": settings.lr_images} | ({"values": settings.lr_labels} if settings.labels == "learned" else {})
    return {name: Rule(lr, "adam", cooldown=settings.cooldown) for name, lr in rates.items()}


def kind(settings: Kip) -> Kind:
    """Values to regress to."""
    return "values"


def begin(ctx: Context, settings: Kip, start: Start | None) -> Begun:
    """Random real images or noise with centred one-hot labels; or a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start)
    if start is None:
        return Begun({"images": images, "values": kinds.from_hard(labels, ctx.classes, "values")}, labels)
    values = kinds.convert(start.targets, start.kind, labels, ctx.classes, "values").clone()
    return Begun({"images": images, "values": values}, labels)


def regression_loss(
    ctx: Context, settings: Kip, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """½ ‖K_ts (K_ss + λ tr/n I)⁻¹ y_s − y_t‖², mean over real images (its equation 7).

    K is the tangent kernel, in float64.  Several processes share the real images.
    """
    images, values = variables["images"].double(), variables["values"].double()
    rows = _real_rows(ctx, settings, iteration)
    own = rows[ctx.rank :: ctx.world]
    split = ctx.problem.train
    real, truth = split.images[own].double(), one_hot(split.labels[own], ctx.classes).double() - 1 / ctx.classes
    k_ts = ntk.fully_connected(real, images, settings.depth)
    k_ss = ntk.fully_connected(images, images, settings.depth)
    predicted = ridge.predict(k_ts, k_ss, values, settings.ridge)
    return Outcome((ridge.squared_error(predicted, truth) * (len(own) / len(rows))).float())


def _real_rows(ctx: Context, settings: Kip, iteration: int) -> Tensor:
    """Rows of the real images of an iteration, as many of each class (b,)."""
    labels = ctx.problem.train.labels
    order = torch.randperm(len(labels), generator=ctx.draws("real", iteration)).to(labels.device)
    return initial.rows_by_class(labels, order, max(1, settings.real_batch // ctx.classes), ctx.classes)


def probe(settings: Kip) -> Probe:
    """One iteration as it is."""
    return Probe(settings, 1.0, 1)


KIP = Method(
    name="kip", title="Kernel inducing points", family="kernel",
    citation='Nguyen et al., "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021', settings=Kip,
    begin=begin, loss=regression_loss, learns=learns, kind=kind, loss_label="regression loss", probe=probe,
)  # fmt: skip
