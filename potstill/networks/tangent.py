"""A network to first order in its parameters: f(θ + δ) ≈ f(θ) + J δ, with J = ∂f/∂θ as an operator and never a matrix.

The head's weights (the matrix of the last linear layer) are held: their columns of J are 0.  What they would explain, a
ridge regression on the features explains exactly (RCIG; Loo et al., ICML 2023).  Both products come from one graph:
u ↦ Jᵀu is linear, so that its own derivative along v is J v.

Example:
    >>> near = linearise(network, theta, images)
    >>> outputs = network(theta, images) + near.times(delta)
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from potstill.networks.flat import FlatNetwork


@dataclass(frozen=True)
class Tangent:
    """The Jacobian J (n · K, P) of a network at one vector and one batch of images."""

    features: Tensor  # (n, F) at θ; keeps the graph to the images, where they need a gradient
    outputs: Tensor  # f(θ) (n, K)
    theta: Tensor  # (P,) that the outputs were computed from
    weights: Tensor  # (n, K) of zeros, the u of Jᵀu
    pulled: Tensor  # Jᵀu (P,) as a function of u
    free: Tensor  # (P,) 1, and 0 at the head's weights

    def times(self, direction: Tensor, differentiable: bool = False) -> Tensor:
        """J v (n, K) of a direction v (P,); ``differentiable``: in v and in the images."""
        (found,) = torch.autograd.grad(
            self.pulled, self.weights, direction * self.free, retain_graph=True, create_graph=differentiable
        )
        return found

    def transposed(self, weights: Tensor) -> Tensor:
        """Jᵀu (P,) of weights u (n, K)."""
        (found,) = torch.autograd.grad(self.outputs, self.theta, weights.to(self.outputs), retain_graph=True)
        return found * self.free


def linearise(network: FlatNetwork, theta: Tensor, images: Tensor) -> Tangent:
    """The Jacobian of a network at ``theta`` (P,) for images (n, C, H, W)."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        features, outputs = network.features_and_outputs(theta, images)
        weights = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, theta, weights, create_graph=True)
    return Tangent(features, outputs, theta, weights, pulled, without_head(network, theta))


def without_head(network: FlatNetwork, theta: Tensor) -> Tensor:
    """1 for every parameter (P,), and 0 for the weights of the last linear layer."""
    head = network.module[-1]
    assert isinstance(head, nn.Linear)  # with a bias, as every architecture ends
    free = torch.ones_like(theta, requires_grad=False)
    free.split(network.sizes)[-2].zero_()
    return free


def smoothed(network: FlatNetwork, beta: float) -> FlatNetwork:
    """The same network with log(1 + exp(βx)) / β for ReLU: its tangent changes smoothly with the images.

    It takes the same parameters and has the same features up to log 2 / β.  ReLUs inside residual blocks stay.
    """
    layers = [
        (name, nn.Softplus(beta) if isinstance(layer, nn.ReLU) else layer)
        for name, layer in network.module.named_children()
    ]
    return replace(network, module=nn.Sequential(OrderedDict(layers)))
