"""Experts that other code trained: the replay buffers of MTT, TESLA, FTD and DATM as a store of ours.

replay_buffer_0.pt    a list of experts, each a list of epochs (the first before training), each a list of parameters in
                      the order of the modules: of a ConvNet weight and bias of convolution and norm, block after block,
                      and of the linear layer

Ours lie in the same order, so they are held to each other's shapes and joined.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.flat import FlatNetwork
from potstill.training import experts, trajectories
from potstill.training.problem import Problem
from potstill.training.trajectories import Trajectories

logger = logging.getLogger(__name__)
NEAR_CHANCE = 2.0  # times what guessing gives: below, the experts do not know these data


def store(
    buffers: Mapping[Path, Sequence[Any]], problem: Problem, folder: Path, step_size: float
) -> Trajectories:  # fmt: skip
    """Write the experts of some replay buffers into a store, every epoch of each.

    They were trained on all training images, those kept aside here for validation included, and on images whitened by
    these: so their accuracy on validation images, which is stored with them, says that they were read rightly, and not
    how good they are.

    Args:
        buffers: the files' contents, as :func:`potstill.data.foreign.load` gives them.
        problem: the data they were trained on, and the network.
        folder: of the store; the same buffers again change nothing.
        step_size: that they were trained with, which measuring begins at.

    Raises:
        PotstillError: parameters of another network, experts of different lengths, or numbers that are not finite; or
            the folder holds other experts.
    """
    _refuse_what_differs_unseen(problem)
    found = [
        (f"{path}, expert {number}", expert) for path, buffer in buffers.items() for number, expert in enumerate(buffer)
    ]
    lengths = {len(expert) for _, expert in found}
    if len(lengths) > 1 or min(lengths) < 2:
        raise PotstillError(
            f"{', '.join(map(str, buffers))}: experts of {' and '.join(map(str, sorted(lengths)))} snapshots; they "
            "must have as many each, the one before training included: import those of one length."
        )
    for where, expert in found:
        _check(where, expert, problem.network)
    epochs = lengths.pop() - 1
    identity = {
        **experts.subject(problem), "expert": {"epochs": epochs, "step_size": step_size},
        "imported": [[path.name, len(buffer)] for path, buffer in buffers.items()],
    }  # fmt: skip
    with files.locked(folder, "importing experts"):
        trajectories.create(folder, identity, range(epochs + 1))
        for number in trajectories.missing(folder, len(found)):
            _save(folder, number, found[number][1], problem, identity)
    opened = trajectories.open_store(folder)
    _warn_of_guessing(opened, len(problem.dataset.classes))
    return opened


def _refuse_what_differs_unseen(problem: Problem) -> None:
    """Refuse networks that differ from theirs in what shapes do not show."""
    if problem.network.batch_coupled:
        raise PotstillError(
            "network.norm batch: replay buffers hold no running statistics, without which such experts cannot label "
            "images; import those of --network.norm instance or none."
        )
    if problem.network_config.name != "convnet":
        raise PotstillError(
            f"network.name {problem.network_config.name}: only the layers of the ConvNet are known to be those of the "
            "published code; import its experts, or train others by `potstill experts`."
        )
    if problem.dataset.shape[0] == 1:
        raise PotstillError(
            f"{problem.dataset.name}: grey images, whose ConvNet the published code pads by 3 pixels in its first "
            "layer, and ours by 1; the same weights are another network there: train experts by `potstill experts`."
        )


def _check(where: str, expert: Any, network: FlatNetwork) -> None:
    """Hold every snapshot of an expert to the network's parameters."""
    names, shapes = list(network.shapes), list(network.shapes.values())
    for epoch, snapshot in enumerate(expert):
        if not all(isinstance(tensor, Tensor) for tensor in snapshot):
            raise PotstillError(f"{where}: epoch {epoch} holds more than tensors; give a replay buffer as published.")
        given = [tensor.shape for tensor in snapshot]
        if len(given) != len(shapes):
            raise PotstillError(
                f"{where}: {len(given)} parameters, but the network has {len(shapes)}; {_remedy(network)}."
            )
        for name, theirs, ours in zip(names, given, shapes, strict=True):
            if theirs != ours:
                raise PotstillError(
                    f"{where}: a parameter {tuple(theirs)} where {name} of the network is {tuple(ours)}; "
                    f"{_remedy(network)}."
                )
        if not all(bool(tensor.isfinite().all()) for tensor in snapshot):
            raise PotstillError(f"{where}: epoch {epoch} is not finite; leave that expert out.")


def _remedy(network: FlatNetwork) -> str:
    return (
        "say what was trained by --network.name, --network.width, --network.depth and --network.norm (published: "
        "convnet, 128, 3 for 32 pixels and 4 for 64, instance), and on which --dataset"
    )


def _save(folder: Path, number: int, expert: Sequence[Any], problem: Problem, identity: dict[str, Any]) -> None:
    """Write one expert, with its accuracy on the validation images."""
    path, none = trajectories.expert_path(folder, number), torch.empty(0)
    snapshots = {epoch: (_joined(snapshot), none) for epoch, snapshot in enumerate(expert)}
    last = snapshots[len(expert) - 1][0]
    val = problem.val
    accuracy = flat.accuracy(problem.network, last.to(problem.device), val.images, val.labels, none)
    header = {
        "epoch": len(expert) - 1, "seconds": 0.0, "accuracy": accuracy,
        "identity": files.fingerprint(files.plain(identity)),
    }  # fmt: skip
    trajectories.write_expert(path, "expert", snapshots, last, none, header, "float32")


def _joined(snapshot: Sequence[Tensor]) -> Tensor:
    """Parameters as one vector (P,) float32, apart from the file that may be mapped."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in snapshot]).float()


def _warn_of_guessing(found: Trajectories, classes: int) -> None:
    if found.accuracy < NEAR_CHANCE / classes:
        logger.warning(
            "%s: these experts are right on %.1f %% of the validation images, where guessing gives %.1f; their data "
            "were whitened otherwise (--space), or their classes stand in another order.",
            found.folder, 100 * found.accuracy, 100 / classes,
        )  # fmt: skip
