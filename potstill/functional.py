"""Parameters as one flat vector, losses and accuracy as pure functions of it."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from potstill import networks
from potstill.config import NetworkConfig

Parameters = dict[str, Tensor]
"""Parameters by their names in the module."""

FEW_CHANNELS = 4  # of images: the stem's adjoint is then a product


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
    _parts: tuple[nn.Sequential, nn.Sequential] = field(init=False, repr=False, compare=False)  # stem and rest

    def __post_init__(self) -> None:
        shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "sizes", tuple(shape.numel() for shape in shapes.values()))
        coupled = any(isinstance(layer, nn.BatchNorm2d) for layer in self.module.modules())
        object.__setattr__(self, "batch_coupled", coupled)
        layers = list(self.module.children())
        first = 1 + next(i for i, layer in enumerate(layers) if list(layer.parameters()))
        object.__setattr__(self, "_parts", (self.module[:first], self.module[first:]))

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of a flat vector (P,) under the parameters' names."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, parameters: Parameters) -> Tensor:
        """The flat vector (P,) of parameters, or of anything of their shapes."""
        return torch.cat([parameters[name].reshape(-1) for name in self.shapes])

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Outputs (b, K) in the precision of ``theta``; layers compute in :attr:`precision` if that is lower."""
        low = theta.to(self._lowered(theta.dtype))
        return functional_call(self.module, self.unflatten(low), (images.to(low),), tie_weights=False).to(theta)

    def stem(self, parameters: Parameters, images: Tensor) -> Tensor:
        """What the first layer with parameters makes of the images, in :attr:`precision`.

        Linear in the parameters, so that its derivative in a direction is its value there.
        """
        return self._part(0, parameters, images)

    def stem_adjoint(self, parameters: Parameters, slope: Tensor, images: Tensor) -> Tensor:
        """The slope in the images (b, C, H, W) where ``slope`` is the one in the stem's features.

        A convolution from few channels is slow backwards; as a product and a sum of shifted planes it is faster.
        """
        layer = self._parts[0][-1]
        if isinstance(layer, nn.Conv2d) and layer.in_channels <= FEW_CHANNELS and _keeps_size(layer):
            weight = parameters[next(iter(self.shapes))].to(slope.dtype)
            return _convolution_adjoint(weight, slope).to(images.dtype)
        return torch.func.vjp(lambda x: self.stem(parameters, x), images)[1](slope)[0]

    def rest(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Outputs (b, K) of the layers after the stem, in the precision of the parameters."""
        like = next(iter(parameters.values()))
        return self._part(1, parameters, features).to(like.dtype)

    def _part(self, number: int, parameters: Parameters, x: Tensor) -> Tensor:
        module = self._parts[number]
        dtype = self._lowered(x.dtype)
        own = {name: _channels_last(parameters[name].to(dtype)) for name, _ in module.named_parameters()}
        return functional_call(module, own, (_channels_last(x.to(dtype)),), tie_weights=False)

    def _lowered(self, dtype: torch.dtype) -> torch.dtype:
        """What layers compute in where they are given ``dtype``: float32 leaves it, float64 of tests too."""
        return dtype if self.precision == torch.float32 else self.precision

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


def _channels_last(tensor: Tensor) -> Tensor:
    """The layout convolutions compute in; a compiler that is not told it moves every feature map there and back."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _keeps_size(layer: nn.Conv2d) -> bool:
    k = layer.kernel_size[0]
    like = {"kernel_size": (k, k), "padding": (k // 2, k // 2), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    return k % 2 == 1 and all(getattr(layer, name) == value for name, value in like.items())


def _convolution_adjoint(weight: Tensor, slope: Tensor) -> Tensor:
    """The images' slope (b, C, H, W) of a convolution by ``weight`` (D, C, k, k) that keeps the size."""
    k, (b, d, h, w) = weight.shape[2], slope.shape
    planes = weight.flatten(1).T @ slope.permute(0, 2, 3, 1).reshape(-1, d).T  # (C k k, b H W)
    planes = planes.to(torch.promote_types(planes.dtype, torch.float32)).view(-1, k, k, b, h, w)
    total = torch.zeros_like(planes[:, 0, 0])
    for i, j in itertools.product(range(k), repeat=2):
        down, right = i - k // 2, j - k // 2
        total = total + F.pad(planes[:, i, j], (right, -right, down, -down))  # a negative pad cuts off
    return total.transpose(0, 1)


def flat_network(
    config: NetworkConfig, shape: networks.Shape, classes: int, device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> FlatNetwork:  # fmt: skip
    """The network of a configuration as a function of a flat vector."""
    with torch.random.fork_rng(devices=[]):
        module = networks.build(config, shape, classes)
    return FlatNetwork(module.requires_grad_(False).to(device), precision)


def initial(config: NetworkConfig, shape: networks.Shape, classes: int, seed: int) -> Tensor:
    """Fresh parameters (P,) on the CPU: PyTorch's default initialisation under ``seed``, and no other state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = networks.build(config, shape, classes)
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
        return soft_cross_entropy(self.network(theta, images), self.probabilities(targets))

    def after_stem(self, parameters: Parameters, features: Tensor, targets: Tensor) -> Tensor:
        """The same from what the network's stem gave."""
        return soft_cross_entropy(self.network.rest(parameters, features), self.probabilities(targets))


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
