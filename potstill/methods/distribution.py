"""Distribution matching: the synthetic images of a class should have the mean features of the real ones."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from potstill.bounds import Count, Fraction, Rate
from potstill.methods import initial, matching
from potstill.methods.method import Begun, Context, Memory, Method, Outcome, Probe, Start, Variables, nothing
from potstill.methods.outer import Rule


@dataclass(frozen=True)
class Dm:
    """Distribution matching."""

    iterations: Count = 20_000
    """Outer iterations, each with a fresh network."""
    real_batch: Count = 256
    """Real images of each class an iteration; all of them where a class has fewer."""
    lr_images: Rate = 1.0
    """Outer learning rate of the images."""
    cooldown: Fraction = 0.0
    """Last fraction of the iterations over which the rate falls to nothing; 0 keeps it, as published."""
    initial: Literal["random", "noise"] = "random"
    """Begin with random real images, or with noise."""


def begin(ctx: Context, settings: Dm, start: Start | None) -> Begun:
    """Random real images or noise, with hard labels; or the images of a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start, norm=initial.NOISE_NORM)
    return Begun({"images": images}, labels)


def mean_feature_loss(
    ctx: Context, settings: Dm, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Σ_classes ‖mean_real f(x) − mean_synthetic f(x)‖², f the last features of a fresh, untrained network.

    Real and synthetic images of a class are augmented by the same parameters (siamese).  Several processes share the
    classes.
    """
    theta, network = ctx.fresh("network", iteration), ctx.problem.network
    loss = nothing(variables)
    for label in ctx.mine(range(ctx.classes)):
        found = matching.pair(ctx, variables["images"], labels, label, settings.real_batch, iteration)
        target = matching.constant_features(ctx, theta, found.real).mean(0)
        loss = loss + (target - network.features(theta, found.synthetic).mean(0)).square().sum()
    return Outcome(loss)


def probe(settings: Dm) -> Probe:
    """One iteration as it is."""
    return Probe(settings, 1.0, 1)


def _cell(lr: float, depth: int = 3) -> dict[str, object]:
    return {"iterations": 20_000, "lr_images": lr, "transform": "standardise", "network": {"depth": depth}}


DM = Method(
    name="dm",
    title="Distribution matching",
    family="distribution",
    batch_norm=False,
    reads="features",
    citation='Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023',
    settings=Dm,
    begin=begin,
    loss=mean_feature_loss,
    learns=lambda settings: {"images": Rule(settings.lr_images, momentum=0.5, cooldown=settings.cooldown)},
    loss_label="squared distance of mean features",
    probe=probe,
    published={
        **{("cifar10", ipc): _cell(1.0) for ipc in (1, 10, 50)},
        **{("cifar10", ipc): _cell(10.0) for ipc in (500, 1000)},
        **{("cifar100", ipc): _cell(1.0) for ipc in (1, 10, 50)},
        **{("tiny-imagenet", ipc): _cell(1.0, depth=4) for ipc in (1, 10, 50)},
    },
    tuned={("digits", ipc): {"iterations": 1000} for ipc in (1, 10, 50)},
)
