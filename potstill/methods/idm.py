"""IDM: mean features of networks in the midst of training, which a queue holds.

Zhao et al., "Improved Distribution Matching for Dataset Condensation", CVPR 2023.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.bounds import Count, Fraction, Pictures, Positive, Rate
from potstill.methods import initial, matching
from potstill.methods.method import Begun, Context, Memory, Method, Outcome, Probe, Start, Variables, nothing
from potstill.methods.outer import Rule

BORN, RIGHT = "born", "right"  # networks made so far; and how often each of the queue was right in training lately
FIRST = 3  # networks that the queue begins with
TRAINED = 2  # networks that train on real images after each iteration
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of that training
FEATURES = 2048  # of the network that the published weights of the cross-entropy were chosen with


@dataclass(frozen=True)
class Idm:
    """Improved distribution matching."""

    iterations: Count = 2000
    """Outer iterations (published: 20,000)."""
    real_batch: Count = 256
    """Real images of each class an iteration; all of them where a class has fewer."""
    lr_images: Rate = 0.2
    """Outer learning rate of the images."""
    cooldown: Fraction = 0.0
    """Last fraction of the iterations over which the rate falls to nothing; 0 keeps it, as published."""
    pictures: Pictures = 2
    """f: f × f smaller pictures a slot, enlarged for training. What is kept and counted are the slots."""
    queue: Count = 10
    """Networks kept at most (published: 100); the oldest gives way."""
    every: Count = 30
    """Iterations after which a fresh network joins the queue."""
    cross_entropy: Rate = 0.5
    """Weight of the cross-entropy of the synthetic images by that network, times how often it is right, in per cent.
    Of a network of F features it is multiplied by √(F / 2048), which is 1 for the published one."""
    training_steps: Count = 10
    """Steps that two networks of the queue train on real images after each iteration."""
    inner_step_size: Positive = 0.01
    """Step size of that training, in batches of 256 and with momentum 0.9."""
    initial: Literal["random", "noise"] = "random"
    """Begin with random real images, or with noise."""


def begin(ctx: Context, settings: Idm, start: Start | None) -> Begun:
    """Random real images or noise, with hard labels; or the images of a set that is there already."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start, settings.pictures)
    first = min(FIRST, settings.queue)
    memory = {BORN: torch.tensor(first), RIGHT: torch.zeros(settings.queue)}
    memory |= {f"network.{number}": ctx.fresh("network", number) for number in range(first)}
    return Begun({"images": images}, labels, memory)


def mean_feature_loss(
    ctx: Context, settings: Idm, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Σ_classes ‖mean_real f(x) − mean_synthetic f(x)‖² + w · CE, f the last features of a network of the queue.

    w grows with its accuracy in training.  What the code calls the mean of channels is none: all features are compared.
    The gradient of their squared distance is as long as the distance, which grows as the root of their number, and that
    of the cross-entropy does not grow: so w does.  Several processes share the classes.
    """
    draws = ctx.draws("queue", iteration)
    number = int(torch.randint(_size(memory), (), generator=draws))
    theta, weight = memory[f"network.{number}"], 100 * settings.cross_entropy * float(memory[RIGHT][number])
    images, classes = matching.images_of(variables, labels, settings.pictures)
    loss, network = nothing(variables), ctx.problem.network
    for label in ctx.mine(range(ctx.classes)):
        found = matching.pair(ctx, images, classes, label, settings.real_batch, iteration)
        target = matching.constant_features(ctx, theta, found.real).mean(0)
        features, outputs = network.features_and_outputs(theta, found.synthetic)
        loss = loss + (target - features.mean(0)).square().sum()
        if weight:
            balanced = weight * math.sqrt(len(target) / FEATURES)
            truth = torch.full((len(found.synthetic),), label, device=images.device)
            loss = loss + balanced * F.cross_entropy(outputs, truth)
    return Outcome(loss, _advanced(ctx, settings, memory, iteration, draws))


def _size(memory: Memory) -> int:
    return sum(name.startswith("network.") for name in memory)


def _advanced(ctx: Context, settings: Idm, memory: Memory, iteration: int, draws: torch.Generator) -> Memory:
    """The queue after some of its networks took steps on real images, and perhaps a fresh one joined."""
    memory = {**memory, RIGHT: memory[RIGHT].clone(), BORN: memory[BORN].clone()}
    for number in torch.randperm(_size(memory), generator=draws)[:TRAINED].tolist():
        theta = memory[f"network.{number}"]
        velocity = memory.get(f"velocity.{number}", torch.zeros_like(theta))
        theta, velocity, right = _trained(ctx, settings, theta, velocity, draws)
        memory[f"network.{number}"], memory[f"velocity.{number}"] = theta, velocity
        memory[RIGHT][number] = right
    if (iteration + 1) % settings.every == 0:
        place = int(memory[BORN]) % settings.queue
        memory[f"network.{place}"] = ctx.fresh("network", int(memory[BORN]))
        memory.pop(f"velocity.{place}", None)
        memory[RIGHT][place] = 0.0
        memory[BORN] += 1
    return memory


def _trained(
    ctx: Context, settings: Idm, theta: Tensor, velocity: Tensor, draws: torch.Generator
) -> tuple[Tensor, Tensor, float]:  # fmt: skip
    """A network (P,) after some steps of SGD on real images, its velocity, and how often it was right on the way."""
    split, right = ctx.problem.train, 0
    count = min(256, len(split.labels))
    for _ in range(settings.training_steps):
        rows = torch.randint(len(split.labels), (count,), generator=draws).to(theta.device)
        slope, seen_right = _gradient(ctx, theta, split.images[rows], split.labels[rows])
        velocity = MOMENTUM * velocity + slope + WEIGHT_DECAY * theta
        theta, right = theta - settings.inner_step_size * velocity, right + seen_right
    return theta, velocity, right / (settings.training_steps * count)


def _gradient(ctx: Context, theta: Tensor, images: Tensor, truth: Tensor) -> tuple[Tensor, int]:
    """Mean gradient (P,) of the cross-entropy, and how many images are classified correctly, from one pass."""
    network, right = ctx.problem.network, 0
    theta = theta.detach().requires_grad_()
    slope, size = torch.zeros_like(theta), ctx.problem.at_once
    for part, labels in zip(images.split(size), truth.split(size), strict=True):
        with torch.enable_grad():
            outputs = network(theta, part)
            slope += torch.autograd.grad(F.cross_entropy(outputs, labels, reduction="sum"), theta)[0]
        right += int((outputs.argmax(1) == labels).sum())
    return slope / len(images), right


def probe(settings: Idm) -> Probe:
    """One iteration as it is."""
    return Probe(settings, 1.0, 2 * settings.queue)


def _cell(**more: object) -> dict[str, object]:
    return {"iterations": 20_000, "queue": 100, "transform": "standardise", "network": {"depth": 3}, **more}


_ONE = {"real_batch": 5000, "every": 5}


IDM = Method(
    name="idm", title="Improved distribution matching", family="distribution", batch_norm=False, reads="features",
    citation='Zhao et al., "Improved Distribution Matching for Dataset Condensation", CVPR 2023', settings=Idm,
    begin=begin, loss=mean_feature_loss,
    learns=lambda settings: {"images": Rule(settings.lr_images, momentum=0.5, cooldown=settings.cooldown)},
    loss_label="squared distance of mean features", probe=probe,
    published={
        ("cifar10", 1): _cell(**_ONE), ("cifar10", 10): _cell(), ("cifar10", 50): _cell(cross_entropy=0.1),
        ("cifar100", 1): _cell(**_ONE), ("cifar100", 10): _cell(cross_entropy=0.1, training_steps=50),
        ("cifar100", 50): _cell(cross_entropy=0.1),
    },
    tuned={  # a quarter of a slot is 4×4 pixels; the rest chosen on validation images, where 0.5 makes images too easy
        ("digits", ipc): {"iterations": 300, "pictures": 1, "lr_images": 1.0, "cross_entropy": 0.05}
        for ipc in (1, 10, 50)
    },
)  # fmt: skip
