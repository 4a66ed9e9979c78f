"""Gradient matching: networks get the same gradient from the synthetic images of a class as from the real ones.

DC (Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021), and DSA, the same under siamese augmentation
(Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from potstill import seeds
from potstill.adjoint import engine
from potstill.bounds import Count, Fraction, Pictures, Positive, Rate, Whole
from potstill.data.labels import one_hot
from potstill.methods import initial, matching
from potstill.methods.method import Begun, Context, Inner, Memory, Method, Outcome, Probe, Start, Variables, nothing
from potstill.methods.outer import Rule
from potstill.networks.losses import loss_for
from potstill.training.sgd import Recipe, run_to_end, sgd

EPSILON = 1e-6  # beside the product of norms
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published by images per class: steps of the images for each network, and its epochs on the set after each."""


@dataclass(frozen=True)
class Dc:
    """Gradient matching."""

    iterations: Count = 1000
    """Outer iterations, each one step of the images (published: 1000 networks of as many steps as below)."""
    network_steps: Count | None = None
    """Steps of the images for which a network lives; the next one is fresh. None: as published for the nearest images
    per class, 1 at one, 10 at ten, 50 at fifty."""
    inner_epochs: Whole | None = None
    """Epochs that it trains on the set after each of them. None: as published, 1, 50 and 10."""
    inner_step_size: Positive = 0.01
    """Step size of that training, in batches of 256."""
    real_batch: Count = 256
    """Real images of each class an iteration; all of them where a class has fewer."""
    lr_images: Rate = 0.1
    """Outer learning rate of the images."""
    cooldown: Fraction = 0.0
    """Last fraction of the iterations over which the rate falls to nothing; 0 keeps it, as published."""
    initial: Literal["random", "noise"] = "noise"
    """Begin with noise, or with random real images."""
    pictures: Pictures = 1
    """f: f × f smaller pictures a slot, enlarged for training (IDC). What is kept and counted are the slots."""


@dataclass(frozen=True)
class Dsa(Dc):
    """Gradient matching under siamese augmentation."""

    initial: Literal["random", "noise"] = "random"


def loops(ctx: Context, settings: Dc) -> tuple[int, int]:
    """Steps of the images for each network, and its epochs after each, as set or as published for this size."""
    steps, epochs = LOOPS[min(LOOPS, key=lambda size: max(ctx.ipc / size, size / ctx.ipc))]
    return settings.network_steps or steps, epochs if settings.inner_epochs is None else settings.inner_epochs


def begin(ctx: Context, settings: Dc, start: Start | None) -> Begun:
    """Noise or random real images, with hard labels; or the images of a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start, settings.pictures)
    return Begun({"images": images}, labels, {"network": ctx.fresh("network", 0)})


def distance(real: Tensor, synthetic: Tensor, shapes: dict[str, torch.Size]) -> Tensor:
    """Σ over weight tensors and their rows of 1 − ⟨r, s⟩ / (‖r‖ ‖s‖ + ε), of gradients (P,) (DC, equation 9).

    A row holds the weights of one output channel or unit; biases and the norms' weights are left out, as in its code.
    """
    total = torch.zeros((), device=real.device)
    sizes = [shape.numel() for shape in shapes.values()]
    for shape, r, s in zip(shapes.values(), real.split(sizes), synthetic.split(sizes), strict=True):
        if len(shape) > 1:
            r, s = r.view(shape[0], -1), s.view(shape[0], -1)
            total = total + (1 - (r * s).sum(1) / (r.norm(dim=1) * s.norm(dim=1) + EPSILON)).sum()
    return total


def matching_loss(
    siamese: bool, ctx: Context, settings: Dc, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Σ_classes D(∇ℓ(real), ∇ℓ(synthetic)) of one network, on its way from fresh to trained on the set.

    The gradient in the images is the directional derivative ∂⟨∇θ ℓ(x), v⟩/∂x along v = ∂D/∂∇θ ℓ, which unrolling uses
    too; it enters autograd as D + ⟨g, x − x₀⟩ with x₀ = x held.  Several processes share the classes.
    """
    images, classes = matching.images_of(variables, labels, settings.pictures)
    theta = _network(siamese, ctx, settings, images.detach(), classes, memory, iteration)
    loss, shapes = nothing(variables), ctx.problem.network.shapes
    for label in ctx.mine(range(ctx.classes)):
        found = matching.pair(ctx, images, classes, label, settings.real_batch, iteration, siamese)
        target = _mean_gradient(ctx, theta, found.real, label)
        loss = loss + _along(ctx, theta, found.synthetic, label, target, shapes)
    return Outcome(loss, {"network": theta})


def _along(
    ctx: Context, theta: Tensor, images: Tensor, label: int, real: Tensor, shapes: dict[str, torch.Size]
) -> Tensor:  # fmt: skip
    """D of one class, differentiable in its images."""
    held, count = images.detach(), len(images)
    targets = one_hot(torch.full((count,), label, device=held.device), ctx.classes)
    gradient, residuals = ctx.derivatives.gradient(theta, held, targets)
    leaf = (gradient / count).requires_grad_()
    with torch.enable_grad():
        value = distance(real, leaf, shapes)
        (direction,) = torch.autograd.grad(value, leaf)
    _, _, slope, _ = ctx.derivatives.directional(theta, held, targets, direction / count, residuals)
    return value.detach() + (slope * (images - held)).sum()


def _mean_gradient(ctx: Context, theta: Tensor, images: Tensor, label: int) -> Tensor:
    """Mean gradient (P,) of the cross-entropy of one class's images."""
    total = torch.zeros_like(theta)
    for part in images.split(ctx.problem.at_once):
        targets = one_hot(torch.full((len(part),), label, device=part.device), ctx.classes)
        total += ctx.derivatives.gradient(theta, part, targets)[0]
    return total / len(images)


def _network(
    siamese: bool, ctx: Context, settings: Dc, images: Tensor, classes: Tensor, memory: Memory, iteration: int
) -> Tensor:  # fmt: skip
    """The network of an iteration (P,): fresh, or that of the one before after some epochs on the set as it is now."""
    steps, epochs = loops(ctx, settings)
    if iteration % steps == 0:
        return ctx.fresh("network", iteration)
    network = ctx.problem.network
    recipe = Recipe(epochs, 256, settings.inner_step_size, augment=ctx.augment if siamese else ())
    gradient = engine.mean_gradient(loss_for(network, "hard"), ctx.problem.at_once)
    seed = seeds.derive(ctx.seed, "training", iteration)
    theta = memory["network"]
    return run_to_end(sgd(gradient, theta, images, one_hot(classes, ctx.classes), recipe, seed), theta)


def probe(settings: Dc) -> Probe:
    """The second iteration as it is: before all but the first of its life a network trains."""
    return Probe(settings, 1.0, 3, timed=(1,))


def _cell(ipc: int, lr: float = 0.1, depth: int = 3) -> dict[str, Any]:
    steps, _ = LOOPS[ipc]
    return {
        "iterations": 1000 * steps, "lr_images": lr, "transform": "standardise", "network": {"depth": depth}
    }  # fmt: skip


def _method(name: str, title: str, citation: str, settings: type[Dc], siamese: bool) -> Method:
    return Method(
        name=name, title=title, family="gradient", batch_norm=False, citation=citation, settings=settings, begin=begin,
        loss=partial(matching_loss, siamese), inner=lambda settings: Inner(settings.real_batch, 10),
        learns=lambda settings: {"images": Rule(settings.lr_images, momentum=0.5, cooldown=settings.cooldown)},
        loss_label="distance of gradients", probe=probe,
        published={("cifar10", ipc): _cell(ipc) for ipc in (1, 10, 50)}
        | {("cifar100", ipc): _cell(ipc) for ipc in ((1, 10, 50) if siamese else (1, 10))},
        tuned={
            ("digits", ipc): {"iterations": 400, "inner_epochs": 5, **more}
            for ipc, more in ((1, {}), (10, {"initial": "random"}), (50, {"initial": "random"}))
        },  # 400 steps from noise do not reach far enough for ten images and more
    )  # fmt: skip


DC = _method(
    "dc", "Gradient matching", 'Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021', Dc, False
)  # fmt: skip
DSA = _method(
    "dsa", "Gradient matching under siamese augmentation",
    'Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021', Dsa, True,
)  # fmt: skip
