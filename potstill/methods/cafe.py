"""CAFE: class means of every layer are aligned, and real images are told apart by the synthetic means.

Wang et al., "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022.  Here an iteration is one step of the
images (in its code the life of a network, ten steps or more), and images are always augmented (there: in CAFE+DSA).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import seeds
from potstill.adjoint import engine
from potstill.bounds import Count, Fraction, Positive, Rate
from potstill.data.labels import one_hot
from potstill.methods import initial, matching
from potstill.methods.method import Begun, Context, Memory, Method, Outcome, Probe, Start, Variables, nothing
from potstill.methods.outer import Rule
from potstill.networks import flat
from potstill.networks.losses import loss_for
from potstill.training.sgd import Recipe, run_to_end, sgd

SEEN = 10  # steps over which a network's accuracy is watched
ASKED = 128  # real images of each class that it is measured on
MOST_EPOCHS = 10  # that a network trains between two steps of the images


@dataclass(frozen=True)
class Cafe:
    """Aligning features."""

    iterations: Count = 2000
    """Outer iterations, each one step of the images."""
    real_batch: Count = 256
    """Real images of each class an iteration; all of them where a class has fewer."""
    lr_images: Rate = 0.1
    """Outer learning rate of the images."""
    cooldown: Fraction = 0.4
    """Last fraction of the iterations over which the rate falls (published: halved at 60, 80 and 90 % of them)."""
    layer_weight: Rate = 0.1
    """Weight of the layers before the last one."""
    discrimination: Rate = 0.01
    """Weight of telling real images apart by the synthetic means."""
    settled: Fraction = 0.04
    """λ₁: a network whose accuracy on real images varied less than this over ten steps is replaced by a fresh one."""
    moved: Fraction = 0.03
    """λ₂: between two steps of the images it trains on the set until its accuracy varied more than this."""
    inner_step_size: Positive = 0.01
    """Step size of that training, in batches of 256."""
    initial: Literal["random", "noise"] = "noise"
    """Begin with noise, or with random real images."""


def begin(ctx: Context, settings: Cafe, start: Start | None) -> Begun:
    """Noise or random real images, with hard labels; or the images of a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start)
    memory = {"network": ctx.fresh("network", 0), "accuracies": torch.empty(0, dtype=torch.float32)}
    return Begun({"images": images}, labels, memory)


def aligning_loss(
    ctx: Context, settings: Cafe, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Σ_layers w ‖mean real − mean synthetic‖² of each class, and cross-entropy of real features by synthetic means.

    The last ReLU weighs 1, the last features 2 (as a layer and as the embedding), the layers before ``layer_weight``.
    Several processes share the classes.
    """
    images = variables["images"]
    theta, accuracies = _network(ctx, settings, images.detach(), labels, memory, iteration)
    loss, network = nothing(variables), ctx.problem.network
    centres = _centres(ctx, theta, images, labels)
    for label in ctx.mine(range(ctx.classes)):
        found = matching.pair(ctx, images, labels, label, settings.real_batch, iteration)
        with torch.no_grad():
            real = [x.flatten(1) for x in network.activations(theta, found.real)]
        synthetic = [x.flatten(1) for x in network.activations(theta, found.synthetic)]
        weights = [*[settings.layer_weight] * (len(real) - 2), 1.0, 2.0]
        for weight, r, s in zip(weights, real, synthetic, strict=True):
            loss = loss + weight * (r.mean(0) - s.mean(0)).square().sum()
        truth = torch.full((len(found.real),), label, device=images.device)
        loss = loss + settings.discrimination * F.cross_entropy(real[-1] @ centres.T, truth, reduction="sum")
    return Outcome(loss, {"network": theta, "accuracies": accuracies})


def _centres(ctx: Context, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Mean last features of each class's synthetic images (K, F)."""
    features = ctx.problem.network.features(theta, images)
    return torch.stack([features[labels == label].mean(0) for label in range(ctx.classes)])


def _network(
    ctx: Context, settings: Cafe, images: Tensor, labels: Tensor, memory: Memory, iteration: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The network of an iteration and its last accuracies: trained on the set meanwhile, or fresh once it settled."""
    theta, seen = memory["network"], memory["accuracies"].cpu()
    settled = len(seen) >= SEEN and float(seen.max() - seen.min()) < settings.settled
    if iteration == 0 or settled:
        return ctx.fresh("network", iteration), seen[:0]
    real, truth = _asked(ctx, iteration)
    gradient = engine.mean_gradient(loss_for(ctx.problem.network, "hard"), ctx.problem.at_once)
    recipe = Recipe(1, 256, settings.inner_step_size)
    epochs: list[float] = []
    for epoch in range(MOST_EPOCHS):
        seed = seeds.derive(ctx.seed, "training", iteration, epoch)
        theta = run_to_end(sgd(gradient, theta, images, one_hot(labels, ctx.classes), recipe, seed), theta)
        epochs.append(flat.accuracy(ctx.problem.network, theta, real, truth))
        if max(epochs) - min(epochs) > settings.moved:
            break
    return theta, torch.cat([seen, torch.tensor(epochs[-1:])])[-SEEN:]


def _asked(ctx: Context, iteration: int) -> tuple[Tensor, Tensor]:
    """Some real images of each class (b, C, H, W) and their labels."""
    split = ctx.problem.train
    order = torch.randperm(len(split.labels), generator=ctx.draws("asked", iteration)).to(split.labels.device)
    rows = initial.rows_by_class(split.labels, order, ASKED, ctx.classes)
    return split.images[rows], split.labels[rows]


def probe(settings: Cafe) -> Probe:
    """A few iterations as they are, but for the first, before which no network trains."""
    return Probe(settings, 1.0, 2, timed=range(1, 6))


CAFE = Method(
    name="cafe", title="Aligning features", family="distribution", batch_norm=False, reads="activations",
    citation='Wang et al., "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022', settings=Cafe,
    begin=begin, loss=aligning_loss,
    learns=lambda settings: {"images": Rule(settings.lr_images, momentum=0.5, cooldown=settings.cooldown)},
    loss_label="distance of class means", probe=probe,
    published={("cifar10", ipc): {"transform": "standardise", "network": {"depth": 3}} for ipc in (1, 10, 50)},
    tuned={("digits", ipc): {"iterations": 400} for ipc in (1, 10, 50)},
)  # fmt: skip
