"""Modules as pure functions of their tensors: a module says what its layers are, and its own weights are never used.

``torch.func.functional_call`` puts the given tensors into the module itself while it runs, so that two threads cannot
share a module.  Here nothing is written but the running statistics that the caller passes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import PotstillError
from potstill.networks.norm import InstanceNorm, instance_norm
from potstill.networks.own import Own

Parameters = dict[str, Tensor]
"""Parameters by their names in the module."""


class Residual(nn.Module):
    """x → ReLU(body(x) + skip(x)), the block of a residual network."""

    def __init__(self, body: nn.Sequential, skip: nn.Sequential) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → (B, C′, H′, W′)."""
        return torch.relu(self.body(images) + self.skip(images))


WITH_WEIGHTS = (nn.Conv2d, nn.Linear, InstanceNorm, nn.BatchNorm2d)  # the layers with tensors that are handled below


def check(module: nn.Module) -> None:
    """Refuse a module that :func:`apply` cannot compute.

    Raises:
        PotstillError: a layer has weights but is of an unknown kind.
    """
    if any(isinstance(layer, Own) for layer in module.children()):  # which computes itself
        return
    for layer in module.modules():
        if any(True for _ in layer.parameters(recurse=False)) and not isinstance(layer, WITH_WEIGHTS):
            raise PotstillError(
                f"layer {type(layer).__name__}: has weights, and potstill.networks.functional does not know how to "
                "compute it; add it there."
            )


def apply(module: nn.Module, tensors: Parameters, x: Tensor, training: bool = True, prefix: str = "") -> Tensor:
    """What ``module`` gives for ``x`` with the weights and running statistics in ``tensors``.

    Args:
        module: the kind of each layer; its own tensors may be on the device "meta".
        tensors: parameters and buffers by name, of this module or of one that contains it.
        x: input of the first layer.
        training: whether batch norm normalises by the batch, and moves the running statistics in ``tensors`` in place
            where there are any; otherwise it normalises by them.
        prefix: what stands before the names of this module in ``tensors``.
    """
    weight, bias = tensors.get(prefix + "weight"), tensors.get(prefix + "bias")
    if isinstance(module, nn.Sequential):
        for name, layer in module.named_children():
            x = apply(layer, tensors, x, training, f"{prefix}{name}.")
        return x
    if isinstance(module, Own):
        own = f"{prefix}body."
        inside = {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
        return module.run(inside, x, training)
    if isinstance(module, Residual):
        body, skip = (apply(getattr(module, name), tensors, x, training, f"{prefix}{name}.") for name in _BRANCHES)
        return torch.relu(body + skip)
    if isinstance(module, nn.BatchNorm2d):
        return _batch_norm(module, tensors, x, training, prefix)
    if isinstance(module, WITH_WEIGHTS):
        assert weight is not None
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, bias)
        assert bias is not None
        return instance_norm(x, weight, bias, module.eps)
    return module.forward(x)  # no tensors; not module(x), which runs hooks that another thread may have set


_BRANCHES = ("body", "skip")


def _batch_norm(layer: nn.BatchNorm2d, tensors: Parameters, x: Tensor, training: bool, prefix: str) -> Tensor:
    mean, variance, batches, weight, bias = (
        tensors.get(prefix + name) for name in ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
    )
    if training and batches is not None:
        batches.add_(1)
    assert layer.momentum is not None
    return F.batch_norm(x, mean, variance, weight, bias, training, layer.momentum, layer.eps)
