"""An augmentation of the user's own: a differentiable function (images (b, C, H, W), numbers (b, 8)) → images.

The numbers are drawn for each image, uniformly from 0 to 1; they are its only source of chance, so that a step can be
repeated with the very augmentation it had, as the reverse sweep does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.data.functions import Given, Steps, called
from potstill.errors import PotstillError

Function = Callable[[Tensor, Tensor], Tensor]
Augment = Function | Sequence[str | Function]
"""An augmentation as a call in Python names it: a function, or several and names of operations."""
NUMBERS = 8  # drawn for each image
REMEDY = "give a function (images (b, C, H, W), numbers (b, 8)) that returns images of the same shape"
GIVEN = Given("augment")


def has_function(augment: Any) -> bool:
    """Whether an augmentation holds a user's function."""
    return any(map(callable, augment if isinstance(augment, list | tuple) else (augment,)))


def names(augment: Any, shape: tuple[int, int, int]) -> Any:
    """An augmentation with the names of a user's functions in their place, for images of a shape (C, H, W)."""
    each = (augment,) if callable(augment) else augment
    if not isinstance(each, list | tuple):
        return each  # which is refused with the other settings
    return tuple(named(one, shape) if callable(one) else one for one in each)


def named(function: Function, shape: tuple[int, int, int]) -> str:
    """Try a user's augmentation on a few images, and remember it under its name.

    Raises:
        PotstillError: it fails, gives images of another shape, is not differentiable, draws random numbers itself, or
            what it does to an image depends on the others.
    """
    draws = torch.Generator().manual_seed(0)
    images, numbers = torch.randn(3, *shape, generator=draws), torch.rand(3, NUMBERS, generator=draws)
    name = called(function)
    try:
        first, again, other = (function(images[rows], numbers[rows]) for rows in ([0, 1], [0, 1], [0, 2]))
        with Steps() as steps:
            function(images[:2].clone(), numbers[:2].clone())
        differentiable = getattr(function(images[:2].clone().requires_grad_(), numbers[:2]), "requires_grad", False)
    except Exception as error:  # of the user's code
        raise PotstillError(f"augment {name}: fails ({type(error).__name__}: {error}); {REMEDY}.") from error
    if not isinstance(first, Tensor) or first.shape != images[:2].shape:
        shown = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise PotstillError(f"augment {name}: gives {shown} for images {tuple(images[:2].shape)}; {REMEDY}.")
    if not differentiable:
        raise PotstillError(f"augment {name}: is not differentiable in the images; compute it by PyTorch alone.")
    if not torch.equal(first, again):
        raise PotstillError(f"augment {name}: draws random numbers itself; take those that it is given.")
    if not torch.allclose(first[0], other[0]):
        raise PotstillError(f"augment {name}: does to an image what depends on others of its batch; treat each alone.")
    return GIVEN.remember(function, steps.found)
