"""The derivatives of a batch loss written out along a network's layers, so that each can reuse what the other computed.

The gradient ∇θ ℓ goes through the layers y = A(w, x), x′ = f(p, y) forwards, the last nonlinear part ending in the
loss, and backwards for the gradient of ℓ in every x.  The derivative in a direction θ̇ is a tangent,

    ẏ = A(ẇ, x) + A(w, ẋ),    (x′, ẋ′) = ∂f(p, y; ṗ, ẏ),    s = ℓ̇ = ⟨∇θ ℓ, θ̇⟩,

and s is differentiated backwards along the same layers.  As s is linear in the tangents, its gradient in ẋ is that of
ℓ in x: the gradient has already computed it, as it has every y.  With both as residuals, six passes through the linear
parts are left of eight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.networks.functional import Parameters
from potstill.networks.losses import BatchLoss

jvp: Any = torch.func.jvp  # their types leave the number of results open
vjp: Any = torch.func.vjp

Pair = tuple[Tensor, Tensor]
"""Named here, because the compiler cannot evaluate such an annotation."""

Residuals = tuple[Pair, ...]
"""Of every layer but the first, whose y is the largest and cheap to compute: y, and the gradient of ℓ in x."""


def bytes_of(residuals: Residuals) -> int:
    """Memory that ``residuals`` hold."""
    return sum(tensor.nbytes for pair in residuals for tensor in pair)


@dataclass(frozen=True)
class Chain:
    """A batch loss along the layers of its network, which must not have batch norm; parameters are passed by name.

    Gradients in weights and in x are computed by separate calls, because the compiler leaves out calls whose result is
    unused, but not one half of a backward convolution.
    """

    loss: BatchLoss

    def gradient(self, parameters: Parameters, x: Tensor, z: Tensor) -> tuple[Parameters, Residuals]:
        """∇θ ℓ, and the residuals of it that :meth:`directional` can use."""
        return self._both_ways(parameters, x, z)[1:]

    def loss_and_gradient(self, parameters: Parameters, x: Tensor, z: Tensor) -> tuple[Tensor, Parameters]:
        """ℓ and ∇θ ℓ."""
        return self._both_ways(parameters, x, z)[:2]

    def _both_ways(self, parameters: Parameters, x: Tensor, z: Tensor) -> tuple[Tensor, Parameters, Residuals]:
        """Forwards for ℓ, backwards for its gradients."""
        forward = []
        for layer, nonlinear in zip(self.loss.network.layers, self._nonlinear_parts(), strict=True):
            weights, others = layer.split(parameters)
            y = layer.linear(weights, x)
            after, pullback = vjp(nonlinear, others, y, z)
            forward.append((layer, weights, x, y, pullback))
            x = after
        loss, x_gradient = x, torch.ones_like(x)
        gradient: Parameters = {}
        residuals: list[Pair] = []
        for layer, weights, x, y, pullback in reversed(forward):
            others_gradient, y_gradient, _ = pullback(x_gradient)
            gradient.update(others_gradient | _weight_gradient(layer.linear, weights, y_gradient, x))
            x_gradient = layer.input_gradient(weights, y_gradient, x)
            residuals.insert(0, (y, x_gradient))
        return loss, gradient, tuple(residuals[1:])

    def directional(
        self, parameters: Parameters, x: Tensor, z: Tensor, direction: Parameters, residuals: Residuals
    ) -> tuple[Tensor, Parameters, Tensor, Tensor]:
        """s = ⟨∇θ ℓ, direction⟩ and its gradients in the parameters, x and z."""
        forward = []
        tangent: Any = None  # the images have none
        for layer, nonlinear, (y, x_gradient) in zip(
            self.loss.network.layers, self._nonlinear_parts(), ((None, None), *residuals), strict=True
        ):
            (weights, others), (d_weights, d_others) = layer.split(parameters), layer.split(direction)
            y, d_y = layer.linear(weights, x) if y is None else y, layer.linear(d_weights, x)
            d_y = d_y if tangent is None else d_y + layer.linear_without_bias(weights, tangent)
            (after, d_after), pullback = vjp(_with_tangent(nonlinear, d_others), others, y, d_y, z)
            forward.append((layer, weights, d_weights, x, tangent, x_gradient, pullback))
            x, tangent = after, d_after
        s, s_x, s_tangent, s_z = tangent, torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(z)
        gradient: Parameters = {}
        for layer, weights, d_weights, x, tangent, x_gradient, pullback in reversed(forward):
            s_others, s_y, s_d_y, s_z_here = pullback((s_x, s_tangent))
            s_weights = _weight_gradient(layer.linear, weights, s_y, x)
            if tangent is not None:
                s_weights = _sum(s_weights, _weight_gradient(layer.linear_without_bias, weights, s_d_y, tangent))
            gradient.update(s_others | s_weights)
            s_x = layer.input_gradient(weights, s_y, x) + layer.input_gradient(d_weights, s_d_y, x)
            s_tangent, s_z = x_gradient, s_z + s_z_here
        return s, gradient, s_x, s_z

    def _nonlinear_parts(self) -> list[Callable[..., Tensor]]:
        """Every nonlinear part as a function of its parameters, y and z; the last one gives the loss."""
        *parts, last = (layer.nonlinear for layer in self.loss.network.layers)

        def loss_of(others: Parameters, y: Tensor, z: Tensor) -> Tensor:
            return self.loss.of_outputs(last(others, y).to(z.dtype), z)

        return [*(lambda others, y, z, part=part: part(others, y) for part in parts), loss_of]


def _with_tangent(function: Callable[..., Tensor], d_parameters: Parameters) -> Callable[..., Pair]:
    """(p, v, v̇, ...) → function(p, v, ...) and its tangent, where that of p is ``d_parameters``."""

    def value_and_tangent(parameters: Parameters, value: Tensor, tangent: Tensor, *rest: Tensor) -> Pair:
        # the compiler fuses the clones away; without them, views of the snapshots refuse a tangent of other offset
        own = {name: parameter.clone() for name, parameter in parameters.items()}
        return jvp(lambda p, v: function(p, v, *rest), (own, value), (d_parameters, tangent))

    return value_and_tangent


def _weight_gradient(
    linear: Callable[..., Tensor], weights: Parameters, y_gradient: Tensor, x: Tensor
) -> Parameters:  # fmt: skip
    """The gradients in the weights of a linear part from the gradient in its output."""
    return vjp(lambda weights: linear(weights, x), weights)[1](y_gradient)[0]


def _sum(a: Parameters, b: Parameters) -> Parameters:
    return {name: a[name] + b[name] for name in a}
