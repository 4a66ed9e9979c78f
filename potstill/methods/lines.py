"""Straight paths between the ends of an expert's trajectory (MCT).

Zhong et al., "Towards Stable and Storage-efficient Dataset Distillation: Matching Convexified Trajectory", CVPR 2025.
Each weight tensor moves on the line between its first and its last value, and is after e epochs as far along as it had
moved by then:

    θ̂_e = θ_0 + (Σ_{j≤e} ‖Δ_j‖ / Σ_j ‖Δ_j‖) (θ_E − θ_0),    Δ_j its step in epoch j
"""

import torch
from torch import Tensor

from potstill import files
from potstill.methods.method import Context
from potstill.store import once
from potstill.training.trajectories import Trajectories

_known: dict[tuple[str, str, int], Tensor] = {}  # shares by expert, read once in a process


def segment(ctx: Context, expert: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    """The points (P,) of an expert's line after ``start`` and after ``end`` epochs."""
    assert ctx.experts is not None
    sizes = list(ctx.problem.network.sizes)
    known = (str(ctx.experts.folder), files.fingerprint(ctx.experts.identity), expert)
    if known not in _known:
        _known[known] = shares(ctx.experts, expert, sizes)
    along = _known[known]
    first, last = ctx.experts.snapshot(expert, 0)[0], ctx.experts.last(expert)[0]
    return point(first, last, along[start], sizes), point(first, last, along[end], sizes)


def point(first: Tensor, last: Tensor, along: Tensor, sizes: list[int]) -> Tensor:
    """θ̂ (P,) where each tensor is a share of its way along (L,)."""
    return first + along.repeat_interleave(torch.tensor(sizes)) * (last - first)


def shares(experts: Trajectories, expert: int, sizes: list[int]) -> Tensor:
    """How far each tensor of an expert is along after each epoch (E + 1, L); from all snapshots, once, and kept."""
    epochs = experts.identity["expert"]["epochs"]

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        moved, before = [torch.zeros(len(sizes))], experts.snapshot(expert, 0)[0]
        for epoch in range(1, epochs + 1):
            now = experts.snapshot(expert, epoch)[0]
            moved.append(torch.stack([part.norm() for part in (now - before).split(sizes)]))
            before = now
        travelled = torch.stack(moved).cumsum(0)
        return {"shares": travelled / travelled[-1].clamp_min(1e-12)}, {}

    return once("lines", [files.fingerprint(experts.identity), expert, sizes], make)[0]["shares"]
