"""A network as a function of one flat vector: its outputs, features and fresh parameters; prediction and accuracy."""

import copy
import functools
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from potstill.errors import PotstillError
from potstill.networks import architectures, functional, initialisation, own
from potstill.networks.architectures import NetworkConfig
from potstill.networks.functional import Parameters, Residual
from potstill.networks.layers import Layer, layers_of, lowered
from potstill.networks.own import Own

CPU = torch.device("cpu")

MOST_IMAGES, MOST_PIXELS = 500, 500 * 32 * 32  # that are predicted at once


@dataclass(frozen=True)
class FlatNetwork:
    """A network as a function of a flat parameter vector; it holds no weights, and threads may share it.

    Batch norm in training mode normalises by the batch.  Its running statistics are a second flat vector, ``buffers``:
    where a caller passes one, it is updated in place; without one, there are none.  In evaluation mode they are needed.
    """

    module: nn.Sequential  # the kind of each layer; its tensors are on the device "meta"
    precision: torch.dtype = torch.float32
    device: torch.device = CPU  # of fresh parameters and buffers
    shapes: dict[str, torch.Size] = field(init=False, hash=False)  # of each parameter, in the vector's order
    sizes: tuple[int, ...] = field(init=False)  # of each parameter; computed once, as every step needs it
    buffer_shapes: dict[str, torch.Size] = field(init=False, hash=False, repr=False)  # in the order of ``buffers``
    batch_coupled: bool = field(init=False)  # batch norm: outputs depend on the batch, which forbids micro-batches
    layers: tuple[Layer, ...] = field(init=False, repr=False, compare=False)  # none of a user's own network

    def __post_init__(self) -> None:
        functional.check(self.module)
        shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        derived = {
            "shapes": shapes,
            "sizes": tuple(shape.numel() for shape in shapes.values()),
            "buffer_shapes": own.moving(self.module),
            "batch_coupled": any(
                isinstance(layer, nn.BatchNorm2d) or (isinstance(layer, Own) and layer.coupled)
                for layer in self.module.modules()
            ),
            "layers": () if self.own else tuple(layers_of(self.module, self.precision)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def own(self) -> Own | None:
        """The body of a user's own network; None for ours."""
        first = self.module[0]
        return first if isinstance(first, Own) else None

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of a flat vector (P,) under the parameters' names."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, parameters: Parameters) -> Tensor:
        """The flat vector (P,) of parameters, or of anything of their shapes."""
        return torch.cat([parameters[name].reshape(-1) for name in self.shapes])

    def __call__(
        self, theta: Tensor, images: Tensor, buffers: Tensor | None = None, training: bool = True
    ) -> Tensor:  # fmt: skip
        """Outputs (b, K) in the precision of ``theta``; layers compute in :attr:`precision` if that is lower.

        Args:
            theta: parameters (P,).
            images: (b, C, H, W).
            buffers: running statistics (B,) of batch norm, updated in place in training mode.
            training: whether batch norm normalises by the batch instead of by ``buffers``.

        Raises:
            PotstillError: a network with batch norm in evaluation mode was given no running statistics.
        """
        return self._apply(self.module, theta, images, buffers, training)

    def features(
        self, theta: Tensor, images: Tensor, buffers: Tensor | None = None, training: bool = True
    ) -> Tensor:  # fmt: skip
        """The input (b, F) of the last linear layer, differentiable; arguments as for the outputs.

        Raises:
            PotstillError: as for the outputs, or a user's own network does not end in a linear layer.
        """
        if self.own is not None and self.own.head is None:
            raise PotstillError("network: does not end in a linear layer, whose input is needed; let it end in one.")
        return self._apply(cast(nn.Sequential, self.module[:-1]), theta, images, buffers, training)

    def features_and_outputs(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one pass, the outputs (b, K) as a function of the features (b, F); without running statistics."""
        features = self.features(theta, images)
        return features, self._apply(cast(nn.Sequential, self.module[-1:]), theta, features, None, True)

    def activations(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """What each ReLU gives (b, C, H, W) or (b, F), and last the maps before the head; differentiable.

        The network is in training mode, without running statistics.

        Raises:
            PotstillError: it is a user's own, whose layers are not known.
        """
        if self.own is not None:
            raise PotstillError(
                "network: its layers' outputs are needed, which are not known of an own one; take ours."
            )
        low = theta.to(lowered(theta.dtype, self.precision))
        parameters, x = self.unflatten(low), images.to(low)
        found: list[Tensor] = []
        for name, layer in list(self.module.named_children())[:-1]:
            if isinstance(layer, nn.Flatten) and x.ndim == 4 and found:
                found.append(x.to(theta))
            x = functional.apply(layer, parameters, x, True, f"{name}.")
            if isinstance(layer, nn.ReLU | Residual):
                found.append(x.to(theta))
        return found

    def _apply(
        self, layers: nn.Sequential, theta: Tensor, images: Tensor, buffers: Tensor | None, training: bool
    ) -> Tensor:  # fmt: skip
        if self.batch_coupled and not training and buffers is None:
            raise PotstillError(
                "buffers None: a network with batch norm predicts by its running statistics; pass those it was trained "
                "with."
            )
        low = theta.to(lowered(theta.dtype, self.precision))
        parameters, images = self.unflatten(low), images.to(low)
        if buffers is None:
            return functional.apply(layers, parameters, images, training).to(theta)
        dtype = torch.promote_types(buffers.dtype, low.dtype)
        # copies, because autograd saves them and refuses that one is written to where another shares its memory
        moved = {name: part.to(dtype, copy=True) for name, part in self._unflatten_buffers(buffers).items()}
        outputs = functional.apply(layers, parameters | moved, images, training).to(theta)
        if training and moved:
            buffers.copy_(torch.cat([part.flatten() for part in moved.values()]))
        return outputs

    def _unflatten_buffers(self, buffers: Tensor) -> Parameters:
        """Views of a flat vector (B,) under the buffers' names."""
        parts = buffers.split([shape.numel() for shape in self.buffer_shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.buffer_shapes.items(), parts, strict=True)}

    def fresh(self, seed: int) -> Tensor:
        """Fresh parameters (P,) on :attr:`device`, the same wherever it is: PyTorch's default initialisation.

        They are bit for bit those of the module built after ``torch.manual_seed(seed)``, but the global random state
        is neither read nor written.
        """
        if self.own is not None:
            drawn = dict(self.own.draw(seed).named_parameters())
            return self.flatten({name: drawn[self.own.original(name)].detach() for name in self.shapes}).to(self.device)
        theta = torch.empty(sum(self.sizes), dtype=torch.float32)
        initialisation.draw(self.module, self.unflatten(theta), torch.Generator().manual_seed(seed))
        return theta.to(self.device)

    def initial_buffers(self) -> Tensor:
        """Running statistics (B,) of a fresh network on :attr:`device`, a new vector each time; empty without any."""
        variances = [name.endswith("running_var") for name in self.buffer_shapes]
        sizes = [shape.numel() for shape in self.buffer_shapes.values()]
        return torch.tensor(variances, dtype=torch.float32).repeat_interleave(torch.tensor(sizes, dtype=torch.long)).to(
            self.device
        )  # fmt: skip

    def as_module(self, theta: Tensor, buffers: Tensor | None = None) -> nn.Module:
        """A PyTorch module of its own with these parameters (P,) and running statistics (B,), in evaluation mode.

        Raises:
            PotstillError: running statistics are missing.
        """
        if self.batch_coupled and buffers is None:
            raise PotstillError("buffers None: a module with batch norm needs running statistics; pass them.")
        tensors = self.unflatten(theta.detach()) | ({} if buffers is None else self._unflatten_buffers(buffers))
        if self.own is not None:
            module = self.own.draw(0).to(theta)
            module.load_state_dict({self.own.original(name): part for name, part in tensors.items()}, strict=False)
        else:
            module = copy.deepcopy(self.module).to(theta.dtype).to_empty(device=theta.device)
            module.load_state_dict(tensors)
        return module.requires_grad_(True).eval()


@functools.lru_cache(maxsize=64)
def _layout(config: NetworkConfig, shape: architectures.Shape, classes: int) -> nn.Sequential:
    """The module of a configuration without weights, which nobody writes to."""
    if architectures.is_own(config):
        return architectures.build(config, shape, classes)
    with torch.device("meta"):  # of this thread; no numbers are drawn
        return architectures.build(config, shape, classes).requires_grad_(False)


def flat_network(
    config: NetworkConfig, shape: architectures.Shape, classes: int, device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> FlatNetwork:  # fmt: skip
    """The network of a configuration as a function of a flat vector.

    Raises:
        PotstillError: the network is too deep for images of this size.
    """
    return FlatNetwork(_layout(config, shape, classes), precision, torch.device(device))


def initial(config: NetworkConfig, shape: architectures.Shape, classes: int, seed: int) -> Tensor:
    """Fresh parameters (P,) on the CPU; see :meth:`FlatNetwork.fresh`."""
    return flat_network(config, shape, classes).fresh(seed)


@torch.no_grad()
def predict(
    network: FlatNetwork, theta: Tensor, images: Tensor, buffers: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Outputs (N, K) of the network in evaluation mode, in batches whose memory does not grow with the images' size."""
    batch = max(1, min(MOST_IMAGES, MOST_PIXELS // (images.shape[2] * images.shape[3])))
    return torch.cat([network(theta, part, buffers, training=False) for part in images.split(batch)])


def accuracy(
    network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, buffers: Tensor | None = None
) -> float:  # fmt: skip
    """Fraction of images classified correctly in evaluation mode."""
    return float((predict(network, theta, images, buffers).argmax(1) == labels).float().mean())
