"""The derivatives of a batch loss written out along a network's links, so that what one found serves the other.

The gradient ∇θ ℓ walks the chain y = A(w, x), x′ = t(p, y) forwards, the last tail ending in the loss, and backwards
for the slopes of ℓ in every x.  The derivative in a direction θ̇ is a tangent,

    ẏ = A(ẇ, x) + A(w, ẋ),    (x′, ẋ′) = ∂t(p, y; ṗ, ẏ),    s = ℓ̇ = ⟨∇θ ℓ, θ̇⟩,

and s is differentiated backwards along the same links.  As s is linear in the tangents, its slope in ẋ is that of ℓ in
x: the gradient has found it already, as it has every y.  With both kept, six passes through the linear layers are
left of eight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.networks.flat import BatchLoss
from potstill.networks.layers import Parameters

jvp: Any = torch.func.jvp  # their types leave the number of results open
vjp: Any = torch.func.vjp

Pair = tuple[Tensor, Tensor]
"""Named here, for what is traced cannot evaluate such an annotation."""

Kept = tuple[Pair, ...]
"""Of every link but the first, whose y is the largest and cheap: y, and the slope of ℓ in x."""


def bytes_of(kept: Kept) -> int:
    """Memory that ``kept`` holds."""
    return sum(tensor.nbytes for pair in kept for tensor in pair)


@dataclass(frozen=True)
class Chain:
    """A batch loss along the links of its network, which must not have batch norm; parameters go and come by name.

    Slopes in weights and in x are asked for one by one, for the compiler leaves out what nobody uses, but not one half
    of a backward convolution.
    """

    loss: BatchLoss

    def gradient(self, parameters: Parameters, x: Tensor, z: Tensor) -> tuple[Parameters, Kept]:
        """∇θ ℓ, and what :meth:`directional` can use of the way there."""
        way = []
        for link, tail in zip(self.loss.network.links, self._tails(), strict=True):
            weights, others = link.part(parameters)
            y = link.linear(weights, x)
            after, pull = vjp(tail, others, y, z)
            way.append((link, weights, x, y, pull))
            x = after
        slope = torch.ones_like(x)
        gradient: Parameters = {}
        kept: list[Pair] = []
        for link, weights, x, y, pull in reversed(way):
            d_others, d_y, _ = pull(slope)
            gradient.update(d_others | _in_weights(link.linear, weights, d_y, x))
            slope = link.adjoint(weights, d_y, x)
            kept.insert(0, (y, slope))
        return gradient, tuple(kept[1:])

    def directional(
        self, parameters: Parameters, x: Tensor, z: Tensor, direction: Parameters, kept: Kept
    ) -> tuple[Tensor, Parameters, Tensor, Tensor]:
        """s = ⟨∇θ ℓ, direction⟩ and its gradients in the parameters, x and z."""
        way = []
        moving: Any = None  # the images do not move
        for link, tail, (y, slope) in zip(
            self.loss.network.links, self._tails(), ((None, None), *kept), strict=True
        ):  # fmt: skip
            (weights, others), (d_weights, d_others) = link.part(parameters), link.part(direction)
            y, d_y = link.linear(weights, x) if y is None else y, link.linear(d_weights, x)
            d_y = d_y if moving is None else d_y + link.product(weights, moving)
            (after, d_after), pull = vjp(_tangent(tail, d_others), others, y, d_y, z)
            way.append((link, weights, d_weights, x, moving, slope, pull))
            x, moving = after, d_after
        s, s_x, s_moving, s_z = moving, torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(z)
        gradient: Parameters = {}
        for link, weights, d_weights, x, moving, slope, pull in reversed(way):
            s_others, s_y, s_d_y, in_z = pull((s_x, s_moving))
            in_weights = _in_weights(link.linear, weights, s_y, x)
            if moving is not None:
                in_weights = _sum(in_weights, _in_weights(link.product, weights, s_d_y, moving))
            gradient.update(s_others | in_weights)
            s_x = link.adjoint(weights, s_y, x) + link.adjoint(d_weights, s_d_y, x)
            s_moving, s_z = slope, s_z + in_z
        return s, gradient, s_x, s_z

    def _tails(self) -> list[Callable[..., Tensor]]:
        """Every tail as a function of its parameters, y and z; the last one gives the loss."""
        *tails, last = (link.tail for link in self.loss.network.links)

        def end(others: Parameters, y: Tensor, z: Tensor) -> Tensor:
            return self.loss.of_outputs(last(others, y).to(z.dtype), z)

        return [*(lambda others, y, z, tail=tail: tail(others, y) for tail in tails), end]


def _tangent(function: Callable[..., Tensor], d_parameters: Parameters) -> Callable[..., Pair]:
    """(p, v, v̇, ...) → function(p, v, ...) and its tangent, where p moves along ``d_parameters``."""

    def moved(parameters: Parameters, value: Tensor, moving: Tensor, *rest: Tensor) -> Pair:
        # the clones are fused away; without them, views of the snapshots refuse a tangent of other offset
        own = {name: parameter.clone() for name, parameter in parameters.items()}
        return jvp(lambda p, v: function(p, v, *rest), (own, value), (d_parameters, moving))

    return moved


def _in_weights(linear: Callable[..., Tensor], weights: Parameters, slope: Tensor, x: Tensor) -> Parameters:
    """The slopes in the weights of a linear layer where ``slope`` is the one in what it gives."""
    return vjp(lambda weights: linear(weights, x), weights)[1](slope)[0]


def _sum(a: Parameters, b: Parameters) -> Parameters:
    return {name: a[name] + b[name] for name in a}
