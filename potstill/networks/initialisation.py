"""PyTorch's default initialisation of each layer, drawn from a generator instead of the global random state."""

import math

import torch
from torch import nn

from potstill.networks.functional import Parameters


@torch.no_grad()
def draw(module: nn.Module, parameters: Parameters, draws: torch.Generator) -> None:
    """Fill ``parameters`` in place with the numbers that building ``module`` under the generator's seed would give.

    Weights of convolutions and linear layers are uniform in ±1/√fan_in (Kaiming with a = √5), and so are biases; norms
    scale by 1 and shift by 0.  The order of the draws is that of the layers.

    Args:
        module: the kind of each layer.
        parameters: CPU tensors by their names in the module.
        draws: a generator on the CPU.
    """
    for prefix, layer in module.named_modules():
        own = {name: parameters[f"{prefix}.{name}"] for name, _ in layer.named_parameters(recurse=False)}
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(own["weight"], a=math.sqrt(5), generator=draws)
            if "bias" in own:
                bound = 1 / math.sqrt(own["weight"][0].numel())
                nn.init.uniform_(own["bias"], -bound, bound, generator=draws)
        elif own:
            own["weight"].fill_(1)
            own["bias"].fill_(0)
