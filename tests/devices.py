"""A second device, pretended on the CPU: what a GPU refuses is refused here, so that slips show on any machine.

Tensors on :data:`ELSEWHERE` lie and compute where all others do; what is kept apart is only who counts as being there.
It is told by their memory, from what every operation is given and gives, also inside derivatives and transforms.

    >>> with pretended():
    ...     torch.zeros(2, device=ELSEWHERE) + torch.ones(2)
    Traceback (most recent call last):
        ...
    RuntimeError: aten.add.Tensor: its tensors are on two devices
"""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ELSEWHERE = torch.device("cpu", 0)  # another name of the CPU, which PyTorch keeps as it was given
HERE, THERE, EITHER = "here", "there", "either"  # the last of what PyTorch makes for itself within an operation
DEVICE = Tensor.device.__get__
MOVES = {"aten.copy_.default", "aten._local_scalar_dense.default"}  # between devices, as they should
INDEXES = {"aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default", "aten._index_put_impl_.default"}
JOINS = {"aten.cat.default", "aten.stack.default"}  # take no scalar from elsewhere, as arithmetic does


@contextlib.contextmanager
def pretended():
    """Refuse what a GPU would refuse of tensors on ELSEWHERE; one that was not made inside is here."""
    places: dict[int, str] = {}
    derivatives_seen = mock.patch("torch.autograd.has_torch_function", return_value=False)  # calls in backward too
    with _Operations(places), _Calls(places), derivatives_seen:
        yield


def _storage(tensor):
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata


def _tensors(given):
    return [each for each in tree_leaves(given) if isinstance(each, Tensor) and each.device.type == "cpu"]


class _Operations(TorchDispatchMode):
    """Where the results of operations are, and which operations are refused."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, given = str(func), _tensors((args, kwargs))
        to = kwargs.get("device")
        place = THERE if to == ELSEWHERE else self._place_of(name, args, given)
        if place == THERE and any(isinstance(each, torch.Generator) for each in tree_leaves((args, kwargs))):
            raise RuntimeError(f"{name}: a generator of the CPU draws on another device")
        found = func(*args, **kwargs)
        shared = {_storage(tensor) for tensor in given}
        for tensor in _tensors(found):
            known = _storage(tensor) in shared and self.places.get(_storage(tensor)) != EITHER
            if not known:  # views, and what was written to, are where they were
                self.places[_storage(tensor)] = place
        return found

    def _place_of(self, name, args, given):
        """The device on which an operation computes; it is refused where its tensors are on two."""
        if not given:
            return EITHER
        if name in MOVES:
            return self.places.get(_storage(given[0]), HERE)
        if name in INDEXES:  # which may be here, wherever the tensor is
            own, indices = self.places.get(_storage(args[0]), HERE), _tensors(args[1])
            indices = [x for x in indices if self.places.get(_storage(x), HERE) == THERE or own == HERE]
            given = [args[0], *indices, *_tensors(args[2:])]
        found = {}
        for tensor in given:
            found.setdefault(self.places.get(_storage(tensor), HERE), []).append(tensor)
        found.pop(EITHER, None)
        scalars = all(x.dim() == 0 for x in found.get(HERE, []))
        if THERE in found and HERE in found and not (scalars and name not in JOINS):
            shapes = {place: [tuple(x.shape) for x in tensors] for place, tensors in found.items()}
            raise RuntimeError(f"{name}: its tensors are on two devices; shapes by device: {shapes}")
        return THERE if THERE in found else HERE if found else EITHER


class _Calls(TorchFunctionMode):
    """What no operation tells: the device that is asked for, where tensors are made, and moves to the CPU."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        if not given:
            found = func(*args, **kwargs)
            if isinstance(found, Tensor) and found.device.type == "cpu":
                self.places[_storage(found)] = THERE if self._asked(args, kwargs) == ELSEWHERE else HERE
            return found
        there = self.places.get(_storage(given[0]), HERE) == THERE
        if func == DEVICE:
            return ELSEWHERE if there else func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and there:
            raise TypeError("numpy cannot read a tensor on another device; use .cpu()")
        if func is Tensor.cpu or func is Tensor.to:
            return self._moved(func, args, kwargs, there)
        return func(*args, **kwargs)

    def _moved(self, func, args, kwargs, there):
        others, asked = _tensors((args[1:], kwargs)), self._asked(args[1:], kwargs)
        to_there = there
        if func is Tensor.cpu or asked is not None:
            to_there = asked == ELSEWHERE
        elif others:
            to_there = self.places.get(_storage(others[0]), HERE) == THERE
        found = func(*args, **kwargs)
        if to_there != there:
            found = found.clone() if _storage(found) == _storage(args[0]) else found
            self.places[_storage(found)] = THERE if to_there else HERE
        return found

    def _asked(self, args, kwargs):
        given = [kwargs.get("device"), *(each for each in args if isinstance(each, str | torch.device))]
        return next((torch.device(each) for each in given if each is not None), None)
