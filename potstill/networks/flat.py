"""Parameters as one flat vector, losses and accuracy as pure functions of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from potstill.config import NetworkConfig
from potstill.networks import architectures
from potstill.networks.layers import Link, Parameters, links_of, lowered


@dataclass(frozen=True)
class FlatNetwork:
    """A network as a function of a flat parameter vector; the module inside lends its layers, never its weights.

    Batch norm in training mode normalises by the batch and updates the running statistics of the module inside, which
    :attr:`buffers` reads and :meth:`set_buffers` writes as one flat vector.
    """

    module: nn.Sequential
    precision: torch.dtype = torch.float32
    shapes: dict[str, torch.Size] = field(init=False, hash=False)  # of each parameter, in the vector's order
    sizes: tuple[int, ...] = field(init=False)  # of each parameter; read once, for this is asked at every step
    batch_coupled: bool = field(init=False)  # batch norm: outputs depend on the batch, which forbids micro-batches
    links: tuple[Link, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "sizes", tuple(shape.numel() for shape in shapes.values()))
        coupled = any(isinstance(layer, nn.BatchNorm2d) for layer in self.module.modules())
        object.__setattr__(self, "batch_coupled", coupled)
        object.__setattr__(self, "links", tuple(links_of(self.module, self.precision)))

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of a flat vector (P,) under the parameters' names."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, parameters: Parameters) -> Tensor:
        """The flat vector (P,) of parameters, or of anything of their shapes."""
        return torch.cat([parameters[name].reshape(-1) for name in self.shapes])

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Outputs (b, K) in the precision of ``theta``; layers compute in :attr:`precision` if that is lower."""
        low = theta.to(lowered(theta.dtype, self.precision))
        return functional_call(self.module, self.unflatten(low), (images.to(low),), tie_weights=False).to(theta)

    @property
    def buffers(self) -> Tensor:
        """Running statistics as one vector (B,), empty without batch norm."""
        parts = [buffer.detach().float().flatten() for buffer in self.module.buffers()]
        return torch.cat(parts) if parts else torch.zeros(0)

    def set_buffers(self, values: Tensor) -> None:
        """Write running statistics read from :attr:`buffers`."""
        buffers = list(self.module.buffers())
        for buffer, part in zip(buffers, values.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def reset_buffers(self) -> None:
        """Running statistics of a fresh network."""
        for layer in self.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()


def flat_network(
    config: NetworkConfig, shape: architectures.Shape, classes: int, device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> FlatNetwork:  # fmt: skip
    """The network of a configuration as a function of a flat vector."""
    with torch.random.fork_rng(devices=[]):
        module = architectures.build(config, shape, classes)
    return FlatNetwork(module.requires_grad_(False).to(device), precision)


def initial(config: NetworkConfig, shape: architectures.Shape, classes: int, seed: int) -> Tensor:
    """Fresh parameters (P,) on the CPU: PyTorch's default initialisation under ``seed``, and no other state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architectures.build(config, shape, classes)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def soft_cross_entropy(outputs: Tensor, probabilities: Tensor) -> Tensor:
    """−Σ_b Σ_k p_bk log softmax(outputs)_bk, summed over the batch; one-hot rows make it the hard one."""
    return -(probabilities * F.log_softmax(outputs, 1)).sum()


@dataclass(frozen=True)
class BatchLoss:
    """(theta (P,), images (b, C, H, W), targets (b, K)) → the loss of a network, summed over the batch."""

    network: FlatNetwork
    probabilities: Callable[[Tensor], Tensor]  # of targets, each row summing to 1

    def __call__(self, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self.of_outputs(self.network(theta, images), targets)

    def of_outputs(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same from the network's outputs (b, K)."""
        return soft_cross_entropy(outputs, self.probabilities(targets))


def label_loss(network: FlatNetwork) -> BatchLoss:
    """Loss against label logits z: soft cross-entropy with softmax(z), differentiable in z."""
    return BatchLoss(network, lambda logits: F.softmax(logits, 1))


def target_loss(network: FlatNetwork) -> BatchLoss:
    """Loss against probabilities, hard or soft."""
    return BatchLoss(network, lambda probabilities: probabilities)


@torch.no_grad()
def predict(network: FlatNetwork, theta: Tensor, images: Tensor, batch: int = 500) -> Tensor:
    """Outputs (N, K) of the network in evaluation mode."""
    network.module.eval()
    outputs = torch.cat([network(theta, part) for part in images.split(batch)])
    network.module.train()
    return outputs


def accuracy(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> float:
    """Fraction of images classified correctly."""
    return float((predict(network, theta, images).argmax(1) == labels).float().mean())
