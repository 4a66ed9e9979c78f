"""A network as a chain of links: a linear layer, and its tail, all that follows up to the next linear layer."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Parameters = dict[str, Tensor]
"""Parameters by their names in the module."""

FEW_CHANNELS = 4  # as images have: the adjoint of a convolution from so few is a product


@dataclass(frozen=True)
class Link:
    """y = A(w, x) and x′ = t(p, y), as pure functions; the layers inside lend their kind, never their weights."""

    layers: nn.Sequential  # the linear one; in the first link after any that only change the shape
    after: nn.Sequential
    precision: torch.dtype

    def part(self, parameters: Parameters) -> tuple[Parameters, Parameters]:
        """Of the parameters of a whole network, those of the linear layer and those of the tail."""
        own, others = self.layers.named_parameters(), self.after.named_parameters()
        return {name: parameters[name] for name, _ in own}, {name: parameters[name] for name, _ in others}

    def linear(self, weights: Parameters, x: Tensor) -> Tensor:
        """y, linear in the weights, in the link's precision."""
        return _call(self.layers, weights, x.to(lowered(x.dtype, self.precision)))

    def product(self, weights: Parameters, x: Tensor) -> Tensor:
        """y without its bias: linear in x too, so the tangent where x moves."""
        return self.linear(
            {name: torch.zeros_like(w) if name.endswith("bias") else w for name, w in weights.items()}, x
        )

    def tail(self, others: Parameters, y: Tensor) -> Tensor:
        """x′, in the precision of y."""
        return _call(self.after, others, y)

    def adjoint(self, weights: Parameters, slope: Tensor, x: Tensor) -> Tensor:
        """The slope in x, in its shape, where ``slope`` is the one in y.

        A convolution from few channels is slow backwards; as a product and a sum of shifted planes it is faster.
        """
        layer = self.layers[-1]
        if len(self.layers) == 1 and isinstance(layer, nn.Conv2d) and _from_few(layer):
            weight = next(weight for weight in weights.values() if weight.dim() == 4)
            return _convolution_adjoint(weight.to(slope.dtype), slope).to(x.dtype)
        return torch.func.vjp(lambda x: self.linear(weights, x), x)[1](slope)[0]


def links_of(module: nn.Sequential, precision: torch.dtype) -> Iterator[Link]:
    """The links of a network; layers within blocks, as of a residual network, belong to a tail."""
    layers = list(module.children())
    ends = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
    begins = [0, *(end - 1 for end in ends[1:])]
    for begin, end, following in zip(begins, ends, [*begins[1:], len(layers)], strict=True):
        yield Link(_slice(module, begin, end), _slice(module, end, following), precision)


def _slice(module: nn.Sequential, begin: int, end: int) -> nn.Sequential:
    return cast(nn.Sequential, module[begin:end])  # under the names they have in the whole


def lowered(dtype: torch.dtype, precision: torch.dtype) -> torch.dtype:
    """What layers of this precision compute in where they are given ``dtype``: float32 leaves float64 of tests too."""
    return dtype if precision == torch.float32 else precision


def _call(layers: nn.Sequential, parameters: Parameters, x: Tensor) -> Tensor:
    own = {name: _channels_last(parameter.to(x.dtype)) for name, parameter in parameters.items()}
    return functional_call(layers, own, (_channels_last(x),), tie_weights=False)


def _channels_last(tensor: Tensor) -> Tensor:
    """The layout convolutions compute in; a compiler that is not told it moves every feature map there and back."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _from_few(layer: nn.Conv2d) -> bool:
    """Whether it has few input channels, and keeps the size of the image."""
    k = layer.kernel_size[0]
    like = {"kernel_size": (k, k), "padding": (k // 2, k // 2), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    same_size = k % 2 == 1 and all(getattr(layer, name) == value for name, value in like.items())
    return same_size and layer.in_channels <= FEW_CHANNELS


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
