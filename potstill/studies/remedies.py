"""What errors advise, in the words of a comparison: `potstill compare` spells some flags otherwise than `potstill run`.

A setting of one method stands behind its name, as in ``--methods dm:iterations=500``, and a folder of its own is found
for whatever settings a row has.
"""

import re

from potstill.methods import METHODS

_METHOD = "|".join(sorted(map(re.escape, METHODS), key=len, reverse=True))  # the longest first: at-bptt-plus, at-bptt
_SPELT = (
    (r" in another --out; --experts takes the experts along", ""),
    (r", without --start\b", ""),
    (r"train the rest with `potstill experts`", "give the same command again to train the rest"),
    (r"[Gg]ive the same --experts, or another --out\b", "Give another --store"),
    (r"\banother --out\b", "another --store"),
    (rf"--({_METHOD})\.([a-z-]+)(?: (\d+|sgd)\b)?", lambda found: _change(*found.groups())),
    (rf"--({_METHOD}) \(see its --help\)", r"\1 (`potstill run --method \1 --help` lists them)"),
    (r"--method\b(?!s)", "--methods"),
    (r"--ipc\b(?!s)", "--ipcs"),
)


def in_comparison(error: Exception | str) -> str:
    """The sentence of an error, with remedies that can be followed in a comparison.

    Example:
        >>> in_comparison("dm.iterations 0: at least 1 is needed; raise --dm.iterations.")
        'dm.iterations 0: at least 1 is needed; raise dm:iterations.'
    """
    told = str(error)
    for pattern, spelt in _SPELT:
        told = re.sub(pattern, spelt, told)
    return told


def _change(method: str, field: str, value: str | None) -> str:
    """A setting of a method as --methods takes it."""
    return f"{method}:{field}" + (f"={value}" if value else "")
