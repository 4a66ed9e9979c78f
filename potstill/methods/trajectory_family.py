"""The methods of the trajectory family: as their authors ran them, and as found here for the digits.

DATM's from its configurations (NUS-HPC-AI-Lab/DATM), MTT's from its authors' notes in DC-BENCH (justincui03), TESLA's
and FTD's from the run lines of their repositories.  Values of "transform", "network", "expert" and "evaluations" are of
the run, the others of the method.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from potstill.methods import measure, trajectory
from potstill.methods.method import Cell, Method, Probe
from potstill.methods.trajectory import Datm, Ftd, Mct, Mtt, Pad, SelMatch, Tesla, Trajectory

Cells = Mapping[Cell, Mapping[str, Any]]
EXPERTS_OF_MTT = {"count": 100, "epochs": 50, "rho": 0.0}


def _datm(
    steps: int, span: int, lr_images: float, lr_logits: float, lr_step_size: float, batch: int,
    start_epochs: tuple[int, int], opening: tuple[int, int] | None = None, *, depth: int = 3, threshold: float = 1.0,
    real_start: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "iterations": 10_000, "inner_steps": steps, "expert_epochs": span, "batch_size": batch, "step_size": 0.01,
        "lr_images": lr_images, "lr_logits": lr_logits, "lr_step_size": lr_step_size, "cooldown": 0.0,
        "start_epochs": start_epochs, "opening": opening, "threshold": threshold,
        "initial": "random" if real_start else "correct", "label_experts": 1 if real_start else None,
        "transform": "zca", "network": {"depth": depth}, "expert": {"count": 100, "epochs": 100, "rho": 0.01},
        "evaluations": 10,
    }  # fmt: skip


def _pad(ratio: float, *datm: Any, **more: Any) -> dict[str, Any]:
    return {**_datm(*datm, **more), "mask_ratio": ratio, "curriculum": True}


def _selmatch(lr_images: float, distilled: float, skip: float) -> dict[str, Any]:
    return _mtt(
        55, 2, 80, lr_images, 1e-5, 0.001, zca=False, batch=125, distilled=distilled, skip=skip, score="forgetting",
        iterations=10_000,
    ) | {"network": {"depth": 3, "norm": "batch"}, "expert": {**EXPERTS_OF_MTT, "epochs": 100}}  # fmt: skip


def _mtt(
    steps: int, span: int, last: int, lr_images: float, lr_step_size: float, step_size: float, *, zca: bool = True,
    batch: int = 1_000_000, depth: int = 3, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "inner_steps": steps, "expert_epochs": span, "batch_size": batch, "step_size": step_size,
        "lr_images": lr_images, "lr_logits": 0.0, "lr_step_size": lr_step_size, "start_epochs": (0, last),
        "transform": "zca" if zca else "standardise", "network": {"depth": depth}, "expert": EXPERTS_OF_MTT,
        "evaluations": 10, **more,
    }  # fmt: skip


PUBLISHED: dict[str, Cells] = {
    "datm": {
        ("cifar10", 1): _datm(80, 2, 100, 5, 1e-7, 10, (0, 4), threshold=1.1),
        ("cifar10", 10): _datm(80, 2, 100, 2, 1e-5, 100, (0, 20), (10, 1000)),
        ("cifar10", 50): _datm(80, 2, 1000, 2, 1e-5, 500, (0, 40), (20, 2000)),
        ("cifar10", 500): _datm(40, 2, 50, 10, 1e-5, 1000, (40, 60)),
        ("cifar10", 1000): _datm(100, 2, 50, 10, 1e-5, 1000, (40, 60)),
        ("cifar100", 1): _datm(40, 3, 1000, 10, 1e-5, 1000, (0, 20), (10, 1000)),
        ("cifar100", 10): _datm(80, 2, 1000, 10, 1e-5, 1000, (0, 50), (30, 2000)),
        ("cifar100", 50): _datm(80, 2, 1000, 10, 1e-5, 1000, (20, 70), real_start=True),
        ("cifar100", 100): _datm(80, 2, 50, 10, 1e-5, 1000, (30, 70)),
        ("tiny-imagenet", 1): _datm(40, 2, 10000, 10, 1e-4, 1000, (0, 20), (15, 2000), depth=4),
        ("tiny-imagenet", 10): _datm(40, 2, 100, 10, 1e-4, 500, (10, 50), depth=4),
        ("tiny-imagenet", 50): _datm(20, 2, 100, 10, 1e-4, 1000, (40, 70), depth=4),
    },
    "mtt": {
        ("cifar10", 1): _mtt(50, 2, 2, 100, 1e-7, 0.01),
        ("cifar10", 10): _mtt(30, 2, 20, 100, 1e-5, 0.001),
        ("cifar10", 50): _mtt(30, 2, 40, 1000, 1e-5, 0.001, zca=False),
        ("cifar100", 1): _mtt(20, 3, 20, 1000, 1e-5, 0.01),
        ("cifar100", 10): _mtt(20, 2, 20, 1000, 1e-5, 0.01, zca=False),
        ("cifar100", 50): _mtt(80, 2, 40, 1000, 1e-5, 0.01, batch=125),
        ("tiny-imagenet", 1): _mtt(10, 2, 10, 10000, 1e-4, 0.01, zca=False, depth=4),
        ("tiny-imagenet", 10): _mtt(20, 2, 40, 10000, 1e-4, 0.01, zca=False, batch=200, depth=4),
    },
    "tesla": {
        ("cifar10", 1): _mtt(50, 2, 5, 1000, 1e-7, 0.01, zca=False),
        ("cifar10", 50): _mtt(80, 2, 40, 1000, 1e-5, 0.01, batch=125),
    },
    "mct": {
        ("cifar10", 1): _mtt(60, 6, 4, 1000, 1e-7, 0.01, zca=False),
        ("cifar10", 10): _mtt(30, 15, 8, 1000, 1e-5, 0.01, zca=False),
        ("cifar10", 50): _mtt(30, 2, 40, 1000, 1e-5, 0.001, zca=False),
    },
    "pad": {
        ("cifar10", 1): _pad(0.0, 80, 2, 100, 5, 1e-7, 10, (0, 4), threshold=1.1),
        ("cifar10", 10): _pad(0.5, 80, 2, 100, 2, 1e-5, 500, (0, 20), (10, 1000)),
        ("cifar10", 50): _pad(0.25, 80, 3, 1000, 2, 1e-5, 1000, (0, 40), (20, 2000)),
        ("cifar10", 500): _pad(0.5, 40, 2, 50, 10, 1e-5, 1000, (40, 70), (60, 2000)),
        ("cifar10", 1000): _pad(0.5, 100, 2, 50, 10, 1e-5, 1000, (40, 60)),
        ("cifar100", 1): _pad(0.5, 40, 3, 1000, 10, 1e-5, 1000, (0, 30), (20, 1000)),
        ("cifar100", 10): _pad(0.5, 80, 2, 1000, 10, 1e-5, 1000, (0, 50), (30, 2000)),
        ("cifar100", 50): _pad(0.0, 80, 2, 1000, 10, 1e-5, 1000, (20, 70), real_start=True),
        ("cifar100", 100): _pad(0.5, 80, 2, 50, 10, 1e-5, 1000, (30, 70)),
    },
    "selmatch": {
        (data, ipc): _selmatch(1000 if ipc < 1000 else 10_000, alpha, beta)
        for data, ipc, alpha, beta in (
            ("cifar10", 250, 0.6, 0.5),
            ("cifar10", 500, 0.2, 0.3),
            ("cifar10", 1000, 0.1, 0.2),
            ("cifar10", 1500, 0.1, 0.2),
            ("cifar100", 25, 0.8, 0.8),
            ("cifar100", 50, 0.6, 0.7),
            ("cifar100", 100, 0.3, 0.6),
            ("cifar100", 150, 0.2, 0.4),
        )
    },
    "ftd": {
        ("cifar10", 10): _mtt(30, 2, 20, 100, 1e-5, 0.001),
        ("cifar100", 10): _mtt(20, 2, 40, 1000, 1e-5, 0.01),
    },
}


def _digits(ipc: int, start_epochs: tuple[int, int], iterations: int, **more: Any) -> dict[str, Any]:
    return {
        "iterations": iterations, "inner_steps": 20, "expert_epochs": 2, "batch_size": min(10 * ipc, 100),
        "step_size": 0.01, "lr_images": 100.0, "lr_logits": 5.0, "lr_step_size": 1e-5, "cooldown": 0.0,
        "start_epochs": start_epochs, **more,
    }  # fmt: skip


DIGITS: Cells = {
    ("digits", 1): _digits(1, (8, 11), 120, labels="hard"),
    # near 99 % the noise of two networks on validation images chooses no set: the last one is taken
    ("digits", 10): _digits(10, (26, 29), 100, keep="last"),
    ("digits", 50): _digits(50, (26, 29), 100, keep="last"),
}


PROBE_STEPS = 2  # inner steps of the cheaper iteration that is timed


def probe(settings: Trajectory) -> Probe:
    """An iteration of one segment and two inner steps; the others cost the same each."""
    steps = trajectory.steps_of(settings)
    few = min(PROBE_STEPS, steps)
    span, rates = trajectory.span_of(settings), ("lr_images", "lr_logits", "lr_step_size")
    found: dict[str, Any] = {name: getattr(settings, name) or 0.0 for name in rates}
    return Probe(
        replace(
            settings, segments=1, path="snapshots", inner_steps=few, expert_epochs=span, start_epochs=(0, 1),
            opening=None, **found,
        ),
        settings.segments * steps / few, settings.segments * (steps + 1), *measure.effort(settings),
    )  # fmt: skip


def _method(
    name: str, title: str, citation: str, settings: type[Trajectory], begin: Any = trajectory.begin,
    needs: Any = trajectory.needs, tuned: Cells | None = None,
) -> Method:  # fmt: skip
    return Method(
        name=name, title=title, family="trajectory", citation=citation, settings=settings, begin=begin,
        loss=trajectory.matching_loss, learns=trajectory.learns, needs=needs, inner=trajectory.inner,
        kind=trajectory.kind, check=trajectory.check, loss_label="matching loss",
        metrics={"start_epoch": "start epoch"}, measured=measure.FIELDS, measure=measure.measure,
        assume=measure.assumed, probe=probe, published=PUBLISHED.get(name, {}), tuned=tuned or DIGITS,
    )  # fmt: skip


DATM = _method(
    "datm", "Difficulty-aligned trajectory matching",
    'Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024', Datm,
)  # fmt: skip
MTT = _method(
    "mtt", "Matching training trajectories",
    'Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022', Mtt,
)  # fmt: skip
TESLA = _method(
    "tesla", "Trajectory matching in constant memory",
    'Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023', Tesla,
)  # fmt: skip
FTD = _method(
    "ftd", "Flat trajectory distillation",
    'Du et al., "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation", CVPR 2023', Ftd,
    tuned={cell: {**values, "average": 0.9} for cell, values in DIGITS.items()},  # of a hundred iterations
)  # fmt: skip
MCT = _method(
    "mct", "Matching convexified trajectories",
    'Zhong et al., "Towards Stable and Storage-efficient Dataset Distillation: Matching Convexified Trajectory", CVPR '
    "2025", Mct,
)  # fmt: skip
PAD = _method(
    "pad", "Prioritize alignment", 'Li et al., "Prioritize Alignment in Dataset Distillation", 2024', Pad,
    needs=trajectory.pad_needs,
)  # fmt: skip
SELMATCH = _method(
    "selmatch", "Selection and partial matching",
    'Lee and Chung, "SelMatch: Effectively Scaling Up Dataset Distillation via Selection-Based Initialization and '
    'Partial Updates by Trajectory Matching", ICML 2024', SelMatch, trajectory.begin_partly, trajectory.partial_needs,
)  # fmt: skip
