"""What is timed: pairs of actions, ours and the plain reference, that do the same work.

The reference is the definition as public code has it: float32, eager, the graph of the whole unroll, one network at a
time.  Both sides share the process and its allocator.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill import seeds
from potstill.adjoint import engine
from potstill.adjoint.derivatives import compiled
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.data import augment
from potstill.data.augment import DSA
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig
from potstill.networks.flat import FlatNetwork
from potstill.networks.losses import label_loss, target_loss
from potstill.training.sgd import Recipe, run_to_end, sgd, sharpness_aware

SHAPE, CLASSES = (3, 32, 32), 10
LONG = 1e9  # images of a job long enough to repay compiling
Action = Callable[..., Any]


@dataclass(frozen=True)
class Bench:
    """Where and in what precision a case runs."""

    device: torch.device
    precision: str = "auto"  # "float32" switches the bfloat16 units off
    compile: engine.Compile = "auto"
    graphs: bool = False  # replays what was compiled as one launch

    def networks(self, width: int) -> tuple[FlatNetwork, FlatNetwork, Tensor]:
        """The published network as ours computes it, as the reference does, and fresh parameters."""
        config = NetworkConfig(width=width, depth=3)
        obvious = flat.flat_network(config, SHAPE, CLASSES, self.device)
        chosen = engine.choose_precision(self.precision, self.device, obvious, SHAPE)
        return (
            flat.flat_network(config, SHAPE, CLASSES, self.device, chosen),
            obvious,
            flat.initial(config, SHAPE, CLASSES, 0).to(self.device),
        )

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images (b, C, H, W) and logits (b, K)."""
        draws = seeds.generator(0, "bench")
        images, logits = torch.randn(size, *SHAPE, generator=draws), torch.randn(size, CLASSES, generator=draws)
        return images.to(self.device), logits.to(self.device)


def iteration(bench: Bench, batch: int, steps: int, width: int = 128) -> tuple[Action, Action]:
    """A whole iteration: unroll, matching loss, gradients in images, logits and step size."""
    ours, obvious, theta = bench.networks(width)
    images, logits = (tensor.requires_grad_() for tensor in bench.batch(batch))
    alpha = torch.tensor(0.01, device=bench.device, requires_grad=True)
    draws = seeds.generator(0, "bench augmentation")
    rows = torch.arange(batch, device=bench.device)
    drawn = [InnerStep(rows, augment.draw(DSA, batch, SHAPE[1:], draws).to(bench.device)) for _ in range(steps)]
    derivatives, micro_batch = engine.inner_derivatives(ours, SHAPE, batch, LONG, bench.compile, None)
    derivatives = compiled(label_loss(ours), graphs=True) if bench.graphs else derivatives

    def run(loss: Any, **how: Any) -> Any:
        end = unroll(theta, images, logits, alpha, drawn, loss, **how)
        return torch.autograd.grad((end - theta).square().sum(), (images, logits, alpha))

    return (
        lambda **how: run(label_loss(ours), derivatives=derivatives, micro_batch=micro_batch, **how),
        lambda: run(label_loss(obvious), adjoint="direct"),
    )


def expert_step(bench: Bench, rho: float = 0.0, batch: int = 256, width: int = 128) -> tuple[Action, Action]:
    """The gradient of one step of an expert; with ``rho`` the two passes of the flat recipe."""
    ours, obvious, theta = bench.networks(width)
    images, _ = bench.batch(batch)
    targets = torch.eye(CLASSES, device=bench.device)[torch.arange(batch, device=bench.device) % CLASSES]
    fast = engine.training_gradient(ours, SHAPE, batch, LONG, "auto")
    plain = engine.mean_gradient(target_loss(obvious))
    if rho:
        fast, plain = sharpness_aware(fast, rho, 0.3), sharpness_aware(plain, rho, 0.3)
    return lambda: fast(theta, images, targets), lambda: plain(theta, images, targets)


def five_networks(bench: Bench, epochs: int = 3, batch: int = 10) -> tuple[Action, Action]:
    """Five fresh networks, each trained for some epochs on a small set, augmented."""
    ours, obvious, theta = bench.networks(128)
    images, logits = bench.batch(batch)
    recipe = Recipe(epochs, 128, 0.01, momentum=0.9, weight_decay=5e-4, augment=DSA)
    fast = engine.training_gradient(ours, SHAPE, batch, LONG, "auto")
    plain = engine.mean_gradient(target_loss(obvious))

    def train(gradient: engine.Gradient) -> list[Tensor]:
        return [run_to_end(sgd(gradient, theta, images, logits.softmax(1), recipe, seed), theta) for seed in range(5)]

    return lambda: train(fast), lambda: train(plain)


Case = Callable[[Bench], tuple[Action, Action]]
SMALL: dict[str, Case] = {
    "iteration, batch 10, 5 steps": lambda bench: iteration(bench, 10, 5),
    "iteration, batch 100, 2 steps": lambda bench: iteration(bench, 100, 2),
    "expert step, batch 256": expert_step,
    "five networks, batch 10": five_networks,
}
FULL: dict[str, Case] = {
    "iteration, batch 10, 40 steps": lambda bench: iteration(bench, 10, 40),
    "flat expert step, batch 256": lambda bench: expert_step(bench, 0.01),
    "float32: iteration, batch 10, 5 steps": lambda bench: iteration(_float32(bench), 10, 5),
    "float32: iteration, batch 100, 2 steps": lambda bench: iteration(_float32(bench), 100, 2),
    "float32: expert step, batch 256": lambda bench: expert_step(_float32(bench)),
    "narrow: iteration, batch 100, 5 steps": lambda bench: iteration(bench, 100, 5, width=32),
    "narrow: expert step, batch 256": lambda bench: expert_step(bench, width=32),
    "narrow, float32: iteration, batch 100, 5 steps": lambda bench: iteration(_float32(bench), 100, 5, width=32),
    "narrow, float32: expert step, batch 256": lambda bench: expert_step(_float32(bench), width=32),
}
CUDA: dict[str, Case] = {
    "iteration, batch 10, 80 steps": lambda bench: iteration(bench, 10, 80),
    "graphs: iteration, batch 10, 80 steps": lambda bench: iteration(replace(bench, graphs=True), 10, 80),
    "plain: iteration, batch 10, 80 steps": lambda bench: iteration(replace(bench, compile="no"), 10, 80),
    "plain float32: iteration, batch 10, 80 steps": lambda bench: iteration(
        replace(_float32(bench), compile="no"), 10, 80
    ),
    "graphs: iteration, batch 100, 80 steps": lambda bench: iteration(replace(bench, graphs=True), 100, 80),
    "iteration, batch 1000, 80 steps": lambda bench: iteration(bench, 1000, 80),
}
"""Needs a GPU's speed, and for the reference of the last its memory."""
REHEARSAL: dict[str, Case] = {
    "rehearsal: iteration, batch 2, 2 steps": lambda bench: iteration(replace(bench, compile="no"), 2, 2, 8),
    "rehearsal: graphs": lambda bench: iteration(replace(bench, graphs=True), 2, 2, 8),
}
"""To see that what runs cases works; their figures mean nothing."""


def _float32(bench: Bench) -> Bench:
    return replace(bench, precision="float32")
