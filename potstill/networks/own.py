"""A network of the user's own: a function (channels, height, width, classes) → nn.Module, whatever its layers.

It becomes a function of one flat vector like ours: its body, computed by its own ``forward``, and its head, the last
linear layer, where it ends in one.  Parameters are drawn by calling the function under a seed.  Files and settings know
such a network by a name that holds what it computes, "own:NAME#HASH"; the function itself must be given again in every
program that trains it.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from potstill.data.functions import Given, Steps, called
from potstill.errors import PotstillError

Factory = Callable[[int, int, int, int], nn.Module]
"""(channels, height, width, classes) → a fresh network."""
REMEDY = "give a function (channels, height, width, classes) that returns a new nn.Module"
PROBES = 2  # images in a batch that a network is tried on
GIVEN = Given("network")
_drawing = threading.Lock()  # PyTorch's modules draw from a random state that all threads share


@dataclass(frozen=True)
class Examined:
    """What trying a network tells."""

    name: str  # by what it computes
    batch_coupled: bool  # an image's outputs depend on the others of its batch, in training


def examine(factory: Factory, shape: tuple[int, int, int], classes: int) -> Examined:
    """Try a user's network on a few images, and remember its function under the network's name.

    Raises:
        PotstillError: it is no function of the kind, fails, gives outputs of another shape, shares parameters between
            layers, or draws random numbers that no seed repeats.
    """
    name = called(factory)
    try:
        module, again = (draw(factory, shape, classes, 0) for _ in range(2))
        _check_module(name, module, again)
        images = torch.randn(PROBES + 1, *shape, generator=torch.Generator().manual_seed(0))
        outputs, coupled, steps = _try(name, module, images)
    except PotstillError:
        raise
    except Exception as error:  # of the user's code
        c, h, w = shape
        raise PotstillError(
            f"network {name}: fails for {w}×{h} images of {c} channels and {classes} classes "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}); {REMEDY}."
        ) from error
    if outputs.shape != (PROBES, classes):
        raise PotstillError(
            f"network {name}: gives outputs {tuple(outputs.shape)} for {PROBES} images, where ({PROBES}, {classes}) "
            "are needed; let it end in as many outputs as classes."
        )
    shapes = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
    return Examined(GIVEN.remember(factory, repr(module), shapes, steps, *_constants(module)), coupled)


def _constants(module: nn.Module) -> list[Tensor]:
    """The values of its buffers but for running statistics; rounded, for machines differ in the last digits."""
    buffers = [buffer for name, buffer in module.named_buffers() if name not in moving(module)]
    return [buffer.half() if buffer.is_floating_point() else buffer for buffer in buffers]


def draw(factory: Factory, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """A network as the function builds it after ``torch.manual_seed(seed)``; the random state is left as it was.

    Raises:
        PotstillError: the function gives something else than a module.
    """
    with _drawing, torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        module = factory(*shape, classes) if not isinstance(factory, nn.Module) else factory
    if not isinstance(module, nn.Module) or module is factory:
        raise PotstillError(f"network of type {type(module).__name__}: {REMEDY}.")
    return copy.deepcopy(module).float().cpu().train()


def _check_module(name_of: str, module: nn.Module, again: nn.Module) -> None:
    names = [name for name, _ in module.named_parameters()]
    if not names or len(names) < len(list(module.named_parameters(remove_duplicate=False))):
        what = "shares parameters between its layers" if names else "has no parameters"
        raise PotstillError(f"network {name_of}: {what}, so that it is no function of one vector; give each its own.")
    theirs = dict(again.named_parameters())
    if any(not torch.equal(parameter, theirs[name]) for name, parameter in module.named_parameters()):
        raise PotstillError(
            f"network {name_of}: begins with other parameters each time, whatever torch.manual_seed says; draw them by "
            "PyTorch alone."
        )


def _try(name_of: str, module: nn.Module, images: Tensor) -> tuple[Tensor, bool, list[Any]]:
    """Outputs in training mode, whether they depend on the batch, and the steps by which they are computed."""
    start = copy.deepcopy(module.state_dict())

    def run(rows: list[int], seed: int) -> Tensor:
        module.load_state_dict(start)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            return module(images[rows])

    with _drawing:
        first, again, other = run([0, 1], 0), run([0, 1], 1), run([0, 2], 0)
        with Steps() as steps:
            run([0, 1], 0)
        after = module.state_dict()
    if not isinstance(first, Tensor):
        raise PotstillError(f"network {name_of}: gives a {type(first).__name__}, not a tensor; {REMEDY}.")
    if not torch.equal(first, again):
        raise PotstillError(
            f"network {name_of}: draws random numbers whenever it is computed (dropout?), so that no step can be "
            "repeated; leave them out."
        )
    running = set(moving(module))
    for name, before in start.items():
        if name not in running and not torch.equal(before, after[name]):
            raise PotstillError(f"network {name_of}: changes its buffer {name} while it is computed; leave that out.")
    module.load_state_dict(start)
    return first, not torch.allclose(first[0], other[0], rtol=1e-4, atol=1e-5), steps.found


# --- as a function of its tensors ----------------------------------------------------------------------------------


class Own(nn.Module):
    """The network, or its body before the head, as a layer whose tensors are given to it."""

    def __init__(self, factory: Factory, shape: tuple[int, int, int], classes: int, coupled: bool) -> None:
        super().__init__()
        self.factory, self.shape, self.classes, self.coupled = factory, shape, classes, coupled
        self.head: str | None = None  # the name of the last linear layer, where that follows the body
        self.body = nn.Module()
        self.copies = threading.local()  # a module holds its tensors while it is computed: each thread has its own

    def run(self, tensors: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Outputs for images ``x`` with the parameters and running statistics in ``tensors``, by their names in it."""
        tracked = any(name in tensors for name in moving(self.body))
        constants = {name: _like(buffer, x) for name, buffer in self.body.named_buffers() if name not in tensors}
        return functional_call(self._copy(training, tracked), {**constants, **tensors}, (x,))

    def _copy(self, training: bool, tracked: bool) -> nn.Module:
        """A copy of the body in one mode; untracked, batch norm knows no running statistics."""
        known = self.copies.__dict__.setdefault("known", {})
        if (training, tracked) not in known:
            made = copy.deepcopy(self.body).train(training)
            for layer in made.modules():
                if isinstance(layer, _BatchNorm) and not tracked:
                    layer.track_running_stats = False
            known[training, tracked] = made
        return known[training, tracked]

    def original(self, name: str) -> str:
        """The name in the user's module of a tensor of ``nn.Sequential(self, head)``."""
        return name.removeprefix("0.body.") if name.startswith("0.") else f"{self.head}.{name.removeprefix('1.')}"

    def draw(self, seed: int) -> nn.Module:
        """The user's whole module with fresh parameters."""
        return draw(self.factory, self.shape, self.classes, seed)


def moving(module: nn.Module) -> dict[str, torch.Size]:
    """The running statistics of batch norm by name; other buffers are constants."""
    return {
        f"{prefix}.{name}".strip("."): buffer.shape
        for prefix, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        for name, buffer in layer.named_buffers(recurse=False)
    }


def _like(buffer: Tensor, x: Tensor) -> Tensor:
    return buffer.to(x.device, x.dtype if buffer.is_floating_point() else buffer.dtype)


def layout(factory: Factory, shape: tuple[int, int, int], classes: int, coupled: bool) -> nn.Sequential:
    """A user's network without weights: ``nn.Sequential(body, head)``, or of the whole where no linear layer ends it.

    Parameters are on the device "meta"; buffers keep their values.
    """
    found = Own(factory, shape, classes, coupled)
    whole = draw(factory, shape, classes, 0)
    images = torch.randn(PROBES, *shape, generator=torch.Generator().manual_seed(1))
    linear = [name for name, layer in whole.named_modules() if name and type(layer) is nn.Linear]
    for name in reversed(linear):
        if (body := _body(whole, name, images)) is not None:
            found.head, found.body = name, _without_weights(body)
            return nn.Sequential(found, _without_weights(copy.deepcopy(whole.get_submodule(name)))).requires_grad_(
                False
            )
    found.body = _without_weights(whole)
    return nn.Sequential(found).requires_grad_(False)


def _body(whole: nn.Module, name: str, images: Tensor) -> nn.Module | None:
    """The network with a layer taken out, where what it then gives, put through that layer, is what it gave."""
    head: Any = whole.get_submodule(name)
    body = copy.deepcopy(whole)
    body.set_submodule(name, nn.Identity())
    with torch.no_grad():
        outputs = copy.deepcopy(whole)(images)
        try:
            features = copy.deepcopy(body)(images)
            same = features.ndim == 2 and torch.allclose(F.linear(features, head.weight, head.bias), outputs)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # it asks more of that layer
            return None
    return body if same else None


def _without_weights(module: nn.Module) -> Any:
    """The module itself, its parameters moved to the device "meta"."""
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                layer._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    return module
