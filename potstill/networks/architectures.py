"""The networks of the literature, as plain constructors from image shape and number of classes.

ConvNet (depth 3, width 128, instance norm, average pooling) is the network of every published table; the others are
the cross-architecture set: AlexNet, VGG-11, ResNet-18, LeNet and MLP, in the variants small images need.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from potstill.bounds import Beside, Count
from potstill.data.functions import PREFIX
from potstill.errors import PotstillError
from potstill.networks import functional, own
from potstill.networks.functional import Residual
from potstill.networks.norm import InstanceNorm

Shape = tuple[int, int, int]  # channels, height, width
Architecture = Literal["convnet", "wide-convnet", "resnet18", "vgg11", "alexnet", "lenet", "mlp"]
Norm = Literal["instance", "batch", "none"]


@dataclass(frozen=True)
class NetworkConfig:
    """The network that experts and students share."""

    name: Annotated[Architecture, Beside(PREFIX)] = "convnet"
    """Architecture; the experts and the evaluation use it unless told otherwise."""
    width: Count = 128
    """Channels of a ConvNet block (of the first one where blocks double them: the wide ConvNet), or hidden units of the
    MLP; the other networks have their published widths."""
    narrower: Count = 1
    """Divide the channels of AlexNet, VGG-11 and ResNet-18 by this, for machines on which they would take too long."""
    depth: Count | None = None
    """Blocks of the ConvNet, each halving the image; omitted: 3 for 32 pixels, 4 for 64, 5 for 128, 2 for fewer."""
    norm: Norm = "instance"
    """Normalisation; "batch" keeps running statistics, which are stored with the trajectories."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """Pooling after each ConvNet block."""


def build(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """A fresh network for images of ``shape`` (C, H, W), with PyTorch's initialisation of each layer.

    On a real device its weights are drawn from the global random state; :meth:`FlatNetwork.fresh
    <potstill.networks.flat.FlatNetwork.fresh>` draws the same without it.

    Raises:
        PotstillError: the network is too deep for images of this size.
    """
    if is_own(config):
        return own.layout(own.GIVEN.find(config.name), shape, classes, config.norm == "batch")
    return _CONSTRUCTORS[config.name](config, shape, classes).train()


def identity(config: NetworkConfig) -> dict[str, Any]:
    """What makes one network differ from another: its settings, but for those of later versions that change nothing.

    So what was kept before there were such settings is found again.
    """
    return {name: value for name, value in vars(config).items() if (name, value) != ("narrower", 1)}


def own_network(factory: own.Factory, shape: Shape, classes: int) -> NetworkConfig:
    """A network of the user's own as settings know it; the other settings have no effect on it.

    Raises:
        PotstillError: it cannot be computed as a function of one vector; see :func:`potstill.networks.own.examine`.
    """
    found = own.examine(factory, shape, classes)
    return NetworkConfig(cast(Architecture, found.name), norm="batch" if found.batch_coupled else "none")


def is_own(config: NetworkConfig) -> bool:
    """Whether a network is a user's own."""
    return config.name.startswith(PREFIX)


def depth_for(height: int, width: int) -> int:
    """ConvNet depth the literature uses for a size: 3 at 32 pixels, 4 at 64, 5 at 128; 2 for smaller ones."""
    return max(2, round(math.log2(min(height, width))) - 2)


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return InstanceNorm(channels, channels)
    return nn.Identity()


def _pool(kind: str) -> nn.Module:
    return {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2), "none": nn.Identity()}[kind]


def _with_head(features: nn.Sequential, shape: Shape, classes: int, *hidden: int) -> nn.Sequential:
    """Flatten what the features give and end in linear layers, whose input size is found by running them once."""
    try:
        with torch.no_grad():
            size = _features_of_zeros(features, shape).numel()
    except (RuntimeError, ValueError):  # a pooling or a norm was left with nothing to work on
        size = 0
    if size == 0:
        raise PotstillError(
            f"images of {shape[2]}×{shape[1]} pixels vanish in this network; lower --network.depth, choose another "
            "--network.name, or --resize the images up."
        )
    head: list[nn.Module] = [nn.Flatten()]
    for units in hidden:
        head += [nn.Linear(size, units), nn.ReLU()]
        size = units
    return nn.Sequential(*features, *head, nn.Linear(size, classes))


def _features_of_zeros(features: nn.Sequential, shape: Shape) -> Tensor:
    """On the CPU, wherever the module is: the first convolution on the device "meta" imports for half a second."""
    tensors = {name: torch.zeros(value.shape, device="cpu") for name, value in features.state_dict().items()}
    return functional.apply(features, tensors, torch.zeros(1, *shape, device="cpu"), training=False)


def convnet(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """Blocks of 3×3 convolution, norm, ReLU and pooling, then one linear layer (Gidaris and Komodakis, 2018)."""
    return _blocks(config, shape, classes, widening=1)


def wide_convnet(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """The same with twice as many channels in each block; FRePo and RCIG use it without norm (Zhou et al., 2022)."""
    return _blocks(config, shape, classes, widening=2)


def _blocks(config: NetworkConfig, shape: Shape, classes: int, widening: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels, width = shape[0], config.width
    for _ in range(config.depth or depth_for(shape[1], shape[2])):
        layers += [nn.Conv2d(channels, width, 3, padding=1), _norm(config.norm, width), nn.ReLU()]
        layers += [_pool(config.pooling)]
        channels, width = width, width * widening
    return _with_head(nn.Sequential(*layers), shape, classes)


def mlp(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """Two hidden layers of ``width`` units."""
    return _with_head(nn.Sequential(nn.Flatten()), shape, classes, config.width, config.width)


def lenet(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling."""
    layers = [nn.Conv2d(shape[0], 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return _with_head(nn.Sequential(*layers), shape, classes, 120, 84)


def alexnet(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """AlexNet for small images: five convolutions, three poolings, one linear layer."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for published, kernel, pool in ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)):
        width = _channels(config, published)
        layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    return _with_head(nn.Sequential(*layers), shape, classes)


def vgg11(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """VGG-11 with normalisation; poolings that would empty a small image are left out."""
    layers: list[nn.Module] = []
    channels, size = shape[0], min(shape[1:])
    for published, pool in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        width = _channels(config, published)
        norm = config.norm if size > 1 else "none"  # one pixel has no variance
        layers += [nn.Conv2d(channels, width, 3, padding=1), _norm(norm, width), nn.ReLU()]
        channels = width
        if pool and size >= 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    return _with_head(nn.Sequential(*layers), shape, classes)


def _channels(config: NetworkConfig, published: int) -> int:
    return max(1, published // config.narrower)


def _residual(channels: int, width: int, stride: int, norm: Norm) -> Residual:
    """A basic block: two 3×3 convolutions, added to the input, or to its 1×1 convolution where the shape changes."""
    body = nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        _norm(norm, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        _norm(norm, width),
    )
    if stride == 1 and channels == width:
        return Residual(body, nn.Sequential())
    return Residual(body, nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), _norm(norm, width)))


def resnet18(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """ResNet-18 with a 3×3 stem and no first pooling; strides that would leave one pixel are left out."""
    channels, size = _channels(config, 64), min(shape[1:])
    layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)]
    layers += [_norm(config.norm, channels), nn.ReLU()]
    for published, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        width = _channels(config, published)
        stride = stride if size >= 4 else 1
        layers += [_residual(channels, width, stride, config.norm), _residual(width, width, 1, config.norm)]
        channels, size = width, -(-size // stride)
    return _with_head(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), shape, classes)


_CONSTRUCTORS: dict[str, Callable[[NetworkConfig, Shape, int], nn.Sequential]] = {
    "convnet": convnet,
    "wide-convnet": wide_convnet,
    "resnet18": resnet18,
    "vgg11": vgg11,
    "alexnet": alexnet,
    "lenet": lenet,
    "mlp": mlp,
}
