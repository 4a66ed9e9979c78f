"""A network as a chain of layers, each a linear part and a nonlinear part.

The linear part is one convolution or linear layer; the nonlinear part is all that follows up to the next one.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.networks import functional
from potstill.networks.functional import Parameters

FEW_CHANNELS = 4  # as images have: the adjoint of a convolution from so few is faster as a matrix product


@dataclass(frozen=True)
class Layer:
    """y = A(w, x) and x′ = f(p, y), as pure functions of the parameters w and p."""

    linear_part: nn.Sequential  # ends in the linear module; in the first layer it may begin with changes of the shape
    nonlinear_part: nn.Sequential
    precision: torch.dtype
    linear_names: tuple[str, ...] = field(init=False)  # of the parameters w
    nonlinear_names: tuple[str, ...] = field(init=False)  # of the parameters p

    def __post_init__(self) -> None:
        for part in ("linear", "nonlinear"):
            names = tuple(name for name, _ in getattr(self, part + "_part").named_parameters())
            object.__setattr__(self, part + "_names", names)

    def split(self, parameters: Parameters) -> tuple[Parameters, Parameters]:
        """Of the parameters of a whole network, those of the linear part and those of the nonlinear part."""
        return (
            {name: parameters[name] for name in self.linear_names},
            {name: parameters[name] for name in self.nonlinear_names},
        )

    def linear(self, weights: Parameters, x: Tensor) -> Tensor:
        """y, linear in the weights, in the layer's precision."""
        return _apply(self.linear_part, weights, x.to(lowered(x.dtype, self.precision)))

    def linear_without_bias(self, weights: Parameters, x: Tensor) -> Tensor:
        """y without its bias: linear in x too, so it maps a tangent of x to that of y."""
        unbiased = {name: torch.zeros_like(w) if name.endswith("bias") else w for name, w in weights.items()}
        return self.linear(unbiased, x)

    def nonlinear(self, others: Parameters, y: Tensor) -> Tensor:
        """x′, in the precision of y."""
        return _apply(self.nonlinear_part, others, y)

    def input_gradient(self, weights: Parameters, y_gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient in x, in its shape, from the gradient in y.

        A convolution from few channels is slow backwards; as a product and a sum of shifted planes it is faster.
        """
        module = self.linear_part[-1]
        if len(self.linear_part) == 1 and isinstance(module, nn.Conv2d) and _from_few(module):
            weight = next(weight for weight in weights.values() if weight.dim() == 4)
            return _convolution_adjoint(weight.to(y_gradient.dtype), y_gradient).to(x.dtype)
        return torch.func.vjp(lambda x: self.linear(weights, x), x)[1](y_gradient)[0]


def layers_of(module: nn.Sequential, precision: torch.dtype) -> Iterator[Layer]:
    """The layers of a network; convolutions within blocks, as of a residual network, belong to a nonlinear part."""
    children = list(module.children())
    ends = [i + 1 for i, child in enumerate(children) if isinstance(child, nn.Conv2d | nn.Linear)]
    begins = [0, *(end - 1 for end in ends[1:])]
    for begin, end, following in zip(begins, ends, [*begins[1:], len(children)], strict=True):
        yield Layer(_slice(module, begin, end), _slice(module, end, following), precision)


def _slice(module: nn.Sequential, begin: int, end: int) -> nn.Sequential:
    return cast(nn.Sequential, module[begin:end])  # under the names they have in the whole


def lowered(dtype: torch.dtype, precision: torch.dtype) -> torch.dtype:
    """The type that layers of this precision compute in, given ``dtype``; float32 leaves the float64 of tests alone."""
    return dtype if precision == torch.float32 else precision


def _apply(part: nn.Sequential, parameters: Parameters, x: Tensor) -> Tensor:
    own = {name: _channels_last(parameter.to(x.dtype)) for name, parameter in parameters.items()}
    return functional.apply(part, own, _channels_last(x))


def _channels_last(tensor: Tensor) -> Tensor:
    """The layout convolutions compute in; otherwise compiled code converts every feature map to it and back."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _from_few(module: nn.Conv2d) -> bool:
    """Whether it has few input channels, and keeps the size of the image."""
    k = module.kernel_size[0]
    like = {"kernel_size": (k, k), "padding": (k // 2, k // 2), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    same_size = k % 2 == 1 and all(getattr(module, name) == value for name, value in like.items())
    return same_size and module.in_channels <= FEW_CHANNELS


def _convolution_adjoint(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the images (b, C, H, W) of a convolution by ``weight`` (D, C, k, k) that keeps the size."""
    k, (b, d, h, w) = weight.shape[2], gradient.shape
    planes = weight.flatten(1).T @ gradient.permute(0, 2, 3, 1).reshape(-1, d).T  # (C k k, b H W)
    planes = planes.to(torch.promote_types(planes.dtype, torch.float32)).view(-1, k, k, b, h, w)
    total = torch.zeros_like(planes[:, 0, 0])
    for i, j in itertools.product(range(k), repeat=2):
        down, right = i - k // 2, j - k // 2
        total = total + F.pad(planes[:, i, j], (right, -right, down, -down))  # a negative pad cuts off
    return total.transpose(0, 1)
