"""Counter-based seeds: any draw can be replayed alone, from what it is for and when it happened."""

import hashlib

import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose at one moment, e.g. ``derive(run_seed, "segment", iteration)``.

    Nothing is carried from one draw to the next, so a resumed run draws what an undisturbed one would have drawn.
    """
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`; drawing on the CPU keeps draws the same on every device."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))
