"""NCFM: the features of real and synthetic images have the same characteristic function.

Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025; without the
sampling network of its title, which every published configuration switches off.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.bounds import Count, Fraction, Pictures, Rate
from potstill.methods import initial, matching
from potstill.methods.method import (
    Begun,
    Context,
    Experts,
    Memory,
    Method,
    Outcome,
    Probe,
    Start,
    Variables,
    nothing,
)
from potstill.methods.outer import Rule

SCALE = 300.0  # of the distance, published
SMALLEST = 1e-12  # under the root


@dataclass(frozen=True)
class Ncfm:
    """Neural characteristic function matching."""

    iterations: Count = 1000
    """Outer iterations (published: 20,000)."""
    real_batch: Count = 256
    """Real images of each class an iteration; all of them where a class has fewer (published: 1024)."""
    frequencies: Count = 1024
    """Places at which the functions are compared, drawn anew for each class (published: 4096)."""
    lr_images: Rate = 0.2
    """Outer learning rate of the images, by Adam. Published: 0.01 of pixels from 0 to 1, whose deviation s is about a
    quarter, and for each of K classes a step along each of the two terms, which with Adam comes to √(2 K) steps of the
    image an iteration: 0.01 √(2 K) / s of standardised pixels."""
    cooldown: Fraction = 0.5
    """Last fraction of the iterations over which the rate falls (published: halved where the loss stands still)."""
    cross_entropy: Rate = 1.0
    """Weight of the cross-entropy of the synthetic images by an expert at its end."""
    pictures: Pictures = 2
    """f: f × f smaller pictures a slot, enlarged for training. What is kept and counted are the slots."""
    initial: Literal["random", "noise"] = "random"
    """Begin with random real images, or with noise."""


def begin(ctx: Context, settings: Ncfm, start: Start | None) -> Begun:
    """Random real images or noise, with hard labels; or the images of a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start, settings.pictures)
    return Begun({"images": images}, labels)


def characteristic(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (T,) of mean_x exp(i tᵀ f(x)), of features (n, F) at frequencies (T, F)."""
    angles = features @ frequencies.T
    return angles.cos().mean(0), angles.sin().mean(0)


def distance(real: Tensor, synthetic: Tensor, frequencies: Tensor) -> Tensor:
    """mean_t √(½ (|φ_r| − |φ_s|)² + |φ_r||φ_s| − Re φ_r Re φ_s − Im φ_r Im φ_s) (its equation 5, both parts alike)."""
    (a, b), (c, d) = characteristic(real, frequencies), characteristic(synthetic, frequencies)
    here, there = (a.square() + b.square()).sqrt(), (c.square() + d.square() + SMALLEST).sqrt()
    phase = (here * there - a * c - b * d).clamp_min(SMALLEST)
    return (0.5 * (here - there).square() + phase).sqrt().mean()


def matching_loss(
    ctx: Context, settings: Ncfm, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Σ_classes 300 · D(φ_real, φ_synthetic) of normalised last features, and the cross-entropy by a trained expert.

    The network lies between an expert's beginning and its end: θ = u θ₀ + (1 − u) θ_E, u uniform.  Several processes
    share the classes.
    """
    assert ctx.experts is not None
    draws, device, network = ctx.draws("network", iteration), ctx.problem.device, ctx.problem.network
    expert, u = int(torch.randint(ctx.expert_count, (), generator=draws)), float(torch.rand((), generator=draws))
    first, last = (ctx.experts.snapshot(expert, 0)[0], ctx.experts.last(expert)[0])
    theta, trained = (u * first + (1 - u) * last).to(device), last.to(device)
    images, classes = matching.images_of(variables, labels, settings.pictures)
    loss = nothing(variables)
    for label in ctx.mine(range(ctx.classes)):
        found = matching.pair(ctx, images, classes, label, settings.real_batch, iteration)
        real = F.normalize(matching.constant_features(ctx, theta, found.real))
        synthetic = F.normalize(network.features(theta, found.synthetic))
        drawn = torch.randn(
            settings.frequencies, real.shape[1], generator=ctx.draws("frequencies", iteration, label)
        ).to(device)  # fmt: skip
        loss = loss + SCALE * distance(real, synthetic, drawn)
        if settings.cross_entropy:
            truth = torch.full((len(found.synthetic),), label, device=device)
            loss = loss + settings.cross_entropy * F.cross_entropy(network(trained, found.synthetic), truth)
    return Outcome(loss, metrics={"expert": expert})


def probe(settings: Ncfm) -> Probe:
    """One iteration as it is."""
    return Probe(settings, 1.0, 3)


def _cell(lr: float, depth: int = 3) -> dict[str, object]:
    return {
        "iterations": 20_000, "real_batch": 1024, "frequencies": 4096, "lr_images": lr,
        "augment": ("colour", "crop", "cutout"), "transform": "standardise", "network": {"depth": depth},
        "expert": {"count": 20, "epochs": 60},
    }  # fmt: skip


NCFM = Method(
    name="ncfm", title="Neural characteristic function matching", family="distribution", batch_norm=False,
    reads="features",
    citation='Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025',
    settings=Ncfm, begin=begin, loss=matching_loss,
    learns=lambda settings: {"images": Rule(settings.lr_images, "adam", cooldown=settings.cooldown)},
    needs=lambda settings: Experts(range(1)), loss_label="distance of characteristic functions", probe=probe,
    published={("cifar10", ipc): _cell(0.18) for ipc in (1, 10, 50)}
    | {("cifar100", ipc): _cell(0.53) for ipc in (1, 10, 50)}
    | {("tiny-imagenet", ipc): _cell(0.72, depth=4) for ipc in (1, 10)},
    tuned={  # a quarter of a slot is 4×4 pixels; the rate is the published one, of pixels of deviation 0.37
        ("digits", ipc): {"iterations": 500, "pictures": 1, "lr_images": 0.12} for ipc in (1, 10, 50)
    },
)  # fmt: skip
