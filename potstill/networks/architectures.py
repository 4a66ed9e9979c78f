"""The networks of the literature, as plain constructors from image shape and number of classes.

ConvNet (depth 3, width 128, instance norm, average pooling) is the network of every published table; the others are
the cross-architecture set: AlexNet, VGG-11, ResNet-18, LeNet and MLP, in the variants small images need.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from potstill.config import NetworkConfig, Norm
from potstill.errors import PotstillError

Shape = tuple[int, int, int]  # channels, height, width


def build(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """A fresh network for images of ``shape`` (C, H, W), with PyTorch's initialisation of each layer.

    The caller owns the global random state; see :func:`potstill.networks.flat.initial` for a seeded one.

    Raises:
        PotstillError: the network is too deep for images of this size.
    """
    return _CONSTRUCTORS[config.name](config, shape, classes).train()


def depth_for(height: int, width: int) -> int:
    """ConvNet depth the literature uses for a size: 3 at 32 pixels, 4 at 64, 5 at 128; 2 for smaller ones."""
    return max(2, round(math.log2(min(height, width))) - 2)


class InstanceNorm(nn.GroupNorm):
    """Affine instance norm, as a group norm of one channel a group.

    Where it is compiled, the variance is E x² − (E x)²: both sums in one pass over memory, and simpler derivatives.
    Sums are float32 at least; cancellation costs the variance two of its seven digits where a channel's mean is ten
    times its deviation, which is more than bfloat16 ever had and less than a convolution's outputs come near.  The
    inverse root is an exponential because the compiler keeps those: a root it would take again at every pixel.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), each channel of each normalised."""
        return self.in_one_pass(images) if torch.compiler.is_compiling() else super().forward(images)

    def in_one_pass(self, images: Tensor) -> Tensor:
        """The same by its formula, for the compiler to fuse."""
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        weight, bias = self.weight.to(x.dtype)[:, None, None], self.bias.to(x.dtype)[:, None, None]
        mean = x.mean((2, 3), keepdim=True)
        variance = ((x * x).mean((2, 3), keepdim=True) - mean * mean).clamp_min(0)
        scale = weight * torch.exp(-0.5 * torch.log(variance + self.eps))
        return (x * scale + (bias - mean * scale)).to(images.dtype)


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
            size = features.eval()(torch.zeros(1, *shape)).numel()
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


def convnet(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """Blocks of 3×3 convolution, norm, ReLU and pooling, then one linear layer (Gidaris and Komodakis, 2018)."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for _ in range(config.depth or depth_for(shape[1], shape[2])):
        layers += [nn.Conv2d(channels, config.width, 3, padding=1), _norm(config.norm, config.width), nn.ReLU()]
        layers += [_pool(config.pooling)]
        channels = config.width
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
    for width, kernel, pool in ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)):
        layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    return _with_head(nn.Sequential(*layers), shape, classes)


def vgg11(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """VGG-11 with normalisation; poolings that would empty a small image are left out."""
    layers: list[nn.Module] = []
    channels, size = shape[0], min(shape[1:])
    for width, pool in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        norm = config.norm if size > 1 else "none"  # one pixel has no variance
        layers += [nn.Conv2d(channels, width, 3, padding=1), _norm(norm, width), nn.ReLU()]
        channels = width
        if pool and size >= 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    return _with_head(nn.Sequential(*layers), shape, classes)


class _Residual(nn.Module):
    """A basic block: two 3×3 convolutions beside an identity, or a 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            _norm(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _norm(norm, width),
        )
        same = stride == 1 and channels == width
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), _norm(norm, width))
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.skip(images))


def resnet18(config: NetworkConfig, shape: Shape, classes: int) -> nn.Sequential:
    """ResNet-18 with a 3×3 stem and no first pooling; strides that would leave one pixel are left out."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 64, 3, padding=1, bias=False), _norm(config.norm, 64), nn.ReLU()]
    channels, size = 64, min(shape[1:])
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stride = stride if size >= 4 else 1
        layers += [_Residual(channels, width, stride, config.norm), _Residual(width, width, 1, config.norm)]
        channels, size = width, -(-size // stride)
    return _with_head(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), shape, classes)


_CONSTRUCTORS: dict[str, Callable[[NetworkConfig, Shape, int], nn.Sequential]] = {
    "convnet": convnet,
    "resnet18": resnet18,
    "vgg11": vgg11,
    "alexnet": alexnet,
    "lenet": lenet,
    "mlp": mlp,
}
