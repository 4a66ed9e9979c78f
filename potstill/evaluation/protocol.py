"""A protocol: how many networks are trained on a set, for how long, and by which SGD.

The recipe is that of DATM's published code (Guo et al., ICLR 2024): batches of 128, momentum 0.9, weight decay 5e-4,
and a step size that falls tenfold past half of the epochs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from potstill import bounds
from potstill.bounds import Count, Whole
from potstill.data.augment import Operation
from potstill.training.sgd import Recipe

ProtocolName = Literal["quick", "standard", "paper"]
CONTROL_STEP_SIZE = 0.01  # the published step size for real images, and for networks a set was not made with


@dataclass(frozen=True)
class EvaluationConfig:
    """How the distilled set and its controls are evaluated."""

    protocol: ProtocolName = "standard"
    """quick: 300 epochs, 2 networks; standard: 1000 epochs, 5 networks, chosen on validation data;
    paper: best of periodic test evaluations of one network, only to compare with published tables."""
    seeds: Count | None = None
    """Fresh networks per figure; omitted: the protocol's."""
    epochs: Count | None = None
    """Epochs on a synthetic set; omitted: the protocol's."""
    step_size: Literal["learned", "chosen"] = "learned"
    """Step size of networks trained on the set. learned: the student's own, as published; chosen: on validation images,
    between that one and smaller ones, for a student walks a few epochs of plain SGD and a network a thousand with
    momentum. The set carries it."""
    full_epochs: Count | None = None
    """Epochs of the full-set control; omitted: the protocol's."""
    full_seeds: Whole | None = None
    """Networks of the full-set control; omitted: as many as for the others; 0 leaves this control out."""

    @property
    def selection(self) -> str:
        """The split on which the set is chosen while it is distilled."""
        return PROTOCOLS[self.protocol].selection


@dataclass(frozen=True)
class Protocol:
    """How networks are trained and tested; stored with every accuracy it gives."""

    name: str
    epochs: int  # on a synthetic set or on random images
    full_epochs: int  # on the full training set
    seeds: int  # fresh networks a figure
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    selection: str = "validation"  # the split on which the checkpoint was chosen; "test" is the paper's way

    def recipe(self, epochs: int, step_size: float, augment: Sequence[Operation]) -> Recipe:
        """SGD of this protocol: the step size falls tenfold past half of the epochs, and the momentum restarts."""
        return Recipe(
            epochs, self.batch_size, step_size, self.momentum, self.weight_decay, epochs // 2 + 1,
            augment=tuple(augment),
        )  # fmt: skip


PROTOCOLS = {
    "quick": Protocol("quick", epochs=300, full_epochs=10, seeds=2),
    "standard": Protocol("standard", epochs=1001, full_epochs=50, seeds=5),
    "paper": Protocol("paper", epochs=1001, full_epochs=50, seeds=1, selection="test"),
}


def described(told: Mapping[str, Any]) -> str:
    """A protocol, as a record tells it, in words: its name, and what was changed in it."""
    named = asdict(PROTOCOLS[told["name"]])
    units = {"epochs": "epochs", "full_epochs": "epochs on the full set", "seeds": "networks"}
    changed = [f"{unit} {told[name]}" for name, unit in units.items() if told[name] != named[name]]
    return f"{told['name']} with {', '.join(changed)}" if changed else told["name"]


def selecting(config: EvaluationConfig) -> Protocol:
    """How the sets of one run are compared, to choose among them: by quick networks, or as the protocol "paper" says.

    They are no more than the networks of a final figure and never train longer, or large sets would take more time to
    evaluate than to distil.
    """
    protocol, quick = protocol_of(config), PROTOCOLS["quick"]
    if protocol.selection == "test":
        return protocol
    return replace(quick, epochs=min(quick.epochs, protocol.epochs), seeds=min(quick.seeds, protocol.seeds))


def protocol_of(config: EvaluationConfig) -> Protocol:
    """The named protocol with what the configuration changes.

    Raises:
        PotstillError: fewer than one network or epoch, or fewer than no network of the full-set control.
    """
    bounds.check(config, "evaluation.")
    changes = {name: getattr(config, name) for name in ("seeds", "epochs", "full_epochs")}
    return replace(PROTOCOLS[config.protocol], **{name: value for name, value in changes.items() if value is not None})
