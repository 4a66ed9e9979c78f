"""The difficulty: which start epochs may be matched, and how that grows (DATM, section 3.3).

Early epochs carry easy patterns, late ones hard patterns; few images can only hold the easy ones.
"""

from collections.abc import Collection

import torch

from potstill.config import WindowConfig
from potstill.errors import PotstillError

AUTO_EPOCHS = 5  # of experts, below which there is nothing to choose between


def upper(window: WindowConfig, iteration: int) -> int:
    """One past the last start epoch that may be drawn: min(T + ⌊(T⁺ − T) · k / expand⌋, T⁺)."""
    if window.initial is None:
        return window.stop
    return min(window.initial + (window.stop - window.initial) * iteration // max(window.expand, 1), window.stop)


def draw_start(window: WindowConfig, iteration: int, generator: torch.Generator) -> int:
    """A start epoch, uniform in {start, ..., upper − 1}."""
    return int(torch.randint(window.start, upper(window, iteration), (), generator=generator))


def epochs_used(window: WindowConfig, span: int) -> range:
    """Every epoch that is the start or the end of a segment, and those between."""
    return range(window.start, window.stop + span)


def check(window: WindowConfig, span: int, stored: Collection[int] | None, epochs: int, where: str) -> None:
    """Refuse a window that is empty or needs snapshots that do not exist.

    Args:
        window: the window to check.
        span: epochs of the expert that a segment covers (M).
        stored: epochs whose snapshots are stored; None where training is still to come.
        epochs: epochs the experts train.
        where: names the experts in messages.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    if span < 1:
        raise PotstillError(f"expert_epochs {span}: a segment covers at least 1 epoch; raise --distil.expert-epochs.")
    if window.mode == "auto":
        if epochs < AUTO_EPOCHS:
            raise PotstillError(
                f"window auto: experts of {epochs} epochs have hardly a difficulty to choose; raise --expert.epochs to "
                f"{AUTO_EPOCHS} or more, or give --window.mode given with --window.start and --window.stop."
            )
        if span >= epochs:
            raise PotstillError(
                f"expert_epochs {span}: experts of {epochs} epochs leave no start to choose; lower "
                "--distil.expert-epochs or raise --expert.epochs."
            )
        if stored is not None and (missing := set(range(epochs + 1)) - set(stored)):
            raise PotstillError(
                f"window auto needs every snapshot, but {where} does not keep that of epoch {min(missing)}; train "
                "experts in another folder with --window auto or --expert.keep-all."
            )
        return
    initial = window.stop if window.initial is None else window.initial
    if not 0 <= window.start < initial <= window.stop:
        raise PotstillError(
            f"window start {window.start}, initial {window.initial}, stop {window.stop}: expected "
            "0 <= start < initial <= stop; correct --window.start, --window.initial or --window.stop."
        )
    needed = f"window [{window.start}, {window.stop}) + {span} epochs"
    last = window.stop - 1 + span
    if last > epochs:
        raise PotstillError(
            f"{needed} exceeds the {epochs + 1} snapshots (epochs 0 to {epochs}) of {where}; lower --window.stop or "
            "raise --expert.epochs."
        )
    if stored is not None and (missing := set(range(window.start, last + 1)) - set(stored)):
        raise PotstillError(
            f"{needed} needs the snapshot of epoch {min(missing)}, which {where} does not keep; train experts for "
            "this window in another folder, or with --expert.keep-all."
        )
