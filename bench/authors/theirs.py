"""Runs a script of a method's authors, unmodified, on a CPU: an iteration each turn.

    python bench/authors/theirs.py SPEC.json

Needs no potstill.  SPEC holds what :func:`bench.authors.sides.specification` writes.  What their script needs beside
its own folder and is not timed, is stood in for: the dataset (the images of the bench, as torchvision's CIFAR10 gives
them), and packages that are not installed, by blanks that take any call.  An iteration ends with the last step in it of
the optimiser that holds the synthetic images.
"""

import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class _Blanks(type):
    """Classes of which each attribute is one more of them."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Blank


class Blank(metaclass=_Blanks):
    """Takes any call, and gives blanks."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Blank

    def __call__(self, *given: Any, **named: Any) -> Any:
        return Blank()


class _BlankModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a blank for those of some packages that are not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = set(names)

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = name.partition(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        vars(module)["__getattr__"] = lambda name: getattr(Blank, name)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def module(name: str, **contents: Any) -> types.ModuleType:
    """A module that stands in for another, blank but for its contents."""
    made = types.ModuleType(name)
    vars(made).update(contents, __getattr__=lambda attribute: getattr(Blank, attribute), __path__=[])
    sys.modules[name] = made
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, made)
    return made


# --- stand-ins -----------------------------------------------------------------------------------------------------


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:
    """(H, W, C) uint8 to (C, H, W) float32 in [0, 1]."""

    def __call__(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255


class Normalize:
    """Channels less their mean, by their deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def dataset(path: str) -> type:
    """A class of the images in an .npz, as torchvision's CIFAR10 is one."""

    class CIFAR10(torch.utils.data.Dataset):
        classes = tuple(str(label) for label in range(10))

        def __init__(self, root: Any = None, train: bool = True, transform: Any = None, **rest: Any) -> None:
            part, held = "train" if train else "test", np.load(path)
            self.transform = transform
            self.data, self.targets = held[f"{part}_images"], held[f"{part}_labels"].tolist()

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            image = self.data[row]
            return (image if self.transform is None else self.transform(image)), self.targets[row]

    return CIFAR10


class ErrorMeter:
    """Per cent of rows that were right, as torchnet's ClassErrorMeter(accuracy=True) counts them."""

    def __init__(self, **named: Any) -> None:
        self.reset()

    def reset(self) -> None:
        self.n, self.right = 0, 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        self.n += len(labels)
        self.right += int((outputs.argmax(1) == labels).sum())

    def value(self) -> list[float]:
        return [100 * self.right / self.n]


def stand_in(images: str, blank: Sequence[str], given: dict[str, Any]) -> None:
    """Set up what is stood in for."""
    sys.meta_path.append(_BlankModules(blank))
    module("torchvision")
    module("torchvision.datasets", CIFAR10=dataset(images))
    module("torchvision.transforms", Compose=Compose, ToTensor=ToTensor, Normalize=Normalize)
    module("torchvision.utils", make_grid=lambda *given, **named: torch.zeros(1))
    wandb = module("wandb", run=types.SimpleNamespace(name="run"), config=types.SimpleNamespace(_items=given))
    wandb.init = lambda config=None, **named: wandb.config._items.update(vars(config))
    module("torchnet")
    module("torchnet.meter", ClassErrorMeter=ErrorMeter)


def on_cpu() -> None:
    """What asks for CUDA by name stays where it is."""

    def is_cuda(value: Any) -> bool:
        return str(value).startswith("cuda")

    def without(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            given = tuple("cpu" if isinstance(x, str | torch.device) and is_cuda(x) else x for x in given)
            named = {key: "cpu" if key == "device" and is_cuda(value) else value for key, value in named.items()}
            return call(*given, **named)

        return called

    for kind in (Tensor, torch.nn.Module):
        kind.cuda = lambda self, *given, **named: self
        kind.to = without(kind.to)
    for name in ("randn", "rand", "zeros", "ones", "tensor", "arange", "empty", "full", "randperm"):
        setattr(torch, name, without(getattr(torch, name)))
    torch.cuda.set_device = lambda device: None


def keep_freed_memory() -> None:
    """As ours does: see potstill.adjoint.engine."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, (1 << 31) - 1)
    except (OSError, AttributeError):
        return


def mark_steps(mark: Callable[[], None], values: int, each: int) -> None:
    """Call ``mark`` after so many steps of the optimiser whose first tensor holds so many values: the images."""
    steps = 0

    def stepped(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        nonlocal steps
        if optimizer.param_groups[0]["params"][0].numel() == values:
            steps += 1
            if steps % each == 0:
                mark()

    register_optimizer_step_post_hook(stepped)


def main() -> None:
    """Run the script."""
    from turns import Turns  # beside this file: its folder leads the path of a script, and gives way to theirs

    spec = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:1] = [os.path.dirname(spec["script"]), spec["root"]]
    keep_freed_memory()
    stand_in(spec["images"], spec["blank"], spec["given"])
    on_cpu()
    if spec["own_module"]:  # what DataParallel would be asked for
        torch.nn.Module.module = property(lambda self: self)
    for place, value in spec["replaced"].items():
        name, _, function = place.rpartition(".")
        setattr(__import__(name, fromlist=[function]), function, lambda *given, value=value, **named: value)
    mark_steps(Turns().mark, spec["values"], spec["each"])
    sys.argv = [spec["script"], *spec["arguments"]]
    runpy.run_path(spec["script"], run_name="__main__")


if __name__ == "__main__":
    main()
