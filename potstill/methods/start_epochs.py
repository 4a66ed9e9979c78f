"""The difficulty: which start epochs may be matched, and how that grows (DATM, section 3.3).

Early epochs carry easy patterns, late ones hard patterns; few images can only hold the easy ones.
"""

from dataclasses import dataclass

import torch

from potstill.errors import PotstillError


@dataclass(frozen=True)
class StartEpochs:
    """Start epochs that may be drawn: U{first, …, upper(k) − 1} at iteration k."""

    first: int  # T⁻
    stop: int  # T⁺, one past the last
    initial: int | None = None  # T, one past the last at iteration 0; None: all from the beginning
    expand: int = 1  # iterations over which that grows from `initial` to `stop`

    def upper(self, iteration: int) -> int:
        """One past the last start epoch that may be drawn: min(T + ⌊(T⁺ − T) · k / expand⌋, T⁺)."""
        if self.initial is None:
            return self.stop
        return min(self.initial + (self.stop - self.initial) * iteration // max(self.expand, 1), self.stop)

    def draw(self, iteration: int, generator: torch.Generator) -> int:
        """A start epoch, uniform in {first, …, upper − 1}."""
        return int(torch.randint(self.first, self.upper(iteration), (), generator=generator))

    def epochs(self, span: int) -> range:
        """Every epoch that is the start or the end of a segment of ``span`` epochs, and those between."""
        return range(self.first, self.stop + span)


def check(start: StartEpochs, span: int, method: str) -> None:
    """Refuse start epochs that are empty or out of order; ``method`` names the flags in messages.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    initial = start.stop if start.initial is None else start.initial
    if not 0 <= start.first < initial <= start.stop:
        opening = f", at first to {start.initial}" if start.initial is not None else ""
        raise PotstillError(
            f"start epochs {start.first} to {start.stop}{opening}: expected 0 <= first < opening <= stop; correct "
            f"--{method}.start-epochs (first, and one past the last) or --{method}.opening."
        )
    if span < 1:
        raise PotstillError(f"expert_epochs {span}: a segment covers at least 1 epoch; raise --{method}.expert-epochs.")
