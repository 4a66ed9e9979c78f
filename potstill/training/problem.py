"""Data, transform and network on a device: what every stage works on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from potstill.adjoint import engine
from potstill.adjoint.engine import choose_precision
from potstill.data import dataset as datasets
from potstill.data import transform as transforms
from potstill.data.dataset import Dataset, Split
from potstill.data.transform import Choice, Transform
from potstill.errors import PotstillError
from potstill.networks import architectures, flat
from potstill.networks.architectures import NetworkConfig
from potstill.networks.flat import FlatNetwork


@dataclass(frozen=True)
class Whitened:
    """A split as networks see it, on the device."""

    images: Tensor  # (N, C, H, W) float32, whitened
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Problem:
    """A dataset, the transform fitted on it, and the network that experts and students share."""

    dataset: Dataset
    transform: Transform
    network_config: NetworkConfig  # with the depth that follows from the images, where none was given
    network: FlatNetwork
    device: torch.device
    wanted_precision: str = "auto"  # as configured; a network of another size may get another one

    @property
    def smallest_class(self) -> int:
        """Training images of the class that has fewest."""
        return int(torch.bincount(self.dataset.train.labels, minlength=len(self.dataset.classes)).min())

    @cached_property
    def at_once(self) -> int:
        """Images to pass at once where a sum over them is sought: :func:`potstill.adjoint.engine.at_once`."""
        return engine.at_once(self.network, self.dataset.shape)

    @cached_property
    def train(self) -> Whitened:
        """Training images."""
        return self._whiten(self.dataset.train)

    @cached_property
    def val(self) -> Whitened:
        """Validation images, for choosing checkpoints."""
        return self._whiten(self.dataset.val)

    @cached_property
    def test(self) -> Whitened:
        """Test images, for final figures only."""
        return self._whiten(self.dataset.test)

    def _whiten(self, split: Split) -> Whitened:
        parts = [self.transform(part) for part in split.images.split(10_000)]
        found = Whitened(torch.cat(parts).to(self.device), split.labels.to(self.device))
        del parts
        engine.hand_back_freed_memory()
        return found


def prepare(
    dataset: str | Dataset, network: NetworkConfig, *, ipc: int = 1, transform: Choice = "auto",
    device: str = "auto", precision: str = "auto", reading: Mapping[str, Any] | None = None,
) -> Problem:  # fmt: skip
    """Read the data, fit the transform and build the network.

    Args:
        dataset: "digits", a folder, a file or a Hugging Face name (see :func:`potstill.data.dataset.load`), or what
            was read from them.
        network: the network that experts and students share; its depth may follow from the images.
        ipc: images that every class must have for training.
        transform: "auto", or a kind of :class:`potstill.data.transform.Transform`.
        device: "auto", or a name of PyTorch's.
        precision: of convolutions and activations; "auto" for what suits the device.
        reading: further arguments of :func:`potstill.data.dataset.load`.

    Raises:
        PotstillError: whatever is wrong with the data, the device or the sizes.
    """
    data = dataset if isinstance(dataset, Dataset) else datasets.load(dataset, **(reading or {}))
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    if int(counts.min()) < ipc:
        raise PotstillError(
            f"ipc {ipc}: class {data.classes[int(counts.argmin())]!r} has only {int(counts.min())} training images "
            "after the validation split is kept aside; lower --ipc."
        )
    where = choose_device(device)
    config = replace(network, depth=network.depth or architectures.depth_for(*data.shape[1:]))
    built = flat.flat_network(config, data.shape, len(data.classes), where)
    built = replace(built, precision=choose_precision(precision, where, built, data.shape))
    fitted = transforms.fit(transform, data.train.images, data.fingerprint)
    engine.hand_back_freed_memory()
    return Problem(data, fitted, config, built, where, precision)


def choose_device(name: str) -> torch.device:
    """The device of that name, or the fastest one for "auto".

    Raises:
        PotstillError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        present = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        reason = str(error).splitlines()[0]
        raise PotstillError(f"device {name!r}: not available here ({reason}); use one of {present}.") from error
    return device
