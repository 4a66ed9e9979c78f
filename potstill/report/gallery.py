"""A gallery of sets: one class at a time, its images, labels, nearest training images, and what networks make of it.

The page carries one picture a class and set, a strip of its images side by side, which a script cuts; where there is
too much to carry, fewer classes and images are, and the page says how many.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.data.distilled import Distilled, png
from potstill.evaluation import memorisation
from potstill.evaluation.evaluator import COUNTED
from potstill.report.figures import data_uri
from potstill.runs.snapshots import Snapshot

BUDGET = 3_000_000  # pixel values that are drawn in all, and as many again of snapshots: about as many bytes
MOST_CLASSES = 100  # that can be chosen
MOST_IMAGES = 20  # of each class that are drawn
TOP = 5  # soft labels shown of an image
MOST_NAMES = 20  # classes up to which confusions are a table; above, a list of pairs
MOST_PAIRS = 20  # of that list
MOST_BARS = 50  # classes at each end of the accuracies, where there are more than twice as many
UNKNOWN = (
    "How well each class is recognised is not known: it is counted for sets of up to "
    f"{COUNTED} classes, and was not for networks that an earlier version trained."
)
Found = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A set as the gallery shows it."""

    title: str
    distilled: Distilled
    before: Tensor | None = None  # (n, C, H, W) uint8, its images before the first iteration
    snapshots: Sequence[Snapshot] = ()  # of its first images, in the order of iterations
    memorised: Mapping[str, Any] | None = None  # "memorisation" of its results
    nearest: Mapping[str, Tensor] | None = None  # nearest.safetensors of its run
    confusion: Mapping[str, Any] | None = None  # of networks trained on it


def gallery(sets: Sequence[Shown]) -> Found:
    """What the macro of gallery.html.j2 draws: of each class that is shown every set's images, in the same order.

    Args:
        sets: at least one, all of the same classes.
    """
    names = sets[0].distilled.classes
    values = sum(one.distilled.images[0].numel() * (1 if one.before is None else 2) for one in sets)
    classes, images = limits(len(names), values)
    most = max(int(torch.bincount(one.distilled.labels.cpu()).max()) for one in sets)
    return {
        "names": names[:classes], "left_out": len(names) - classes, "images": min(images, most), "most": most,
        "all_names": names,
        "sets": [{"title": one.title, "classes": _classes(one, classes, images)} for one in sets],
        "frames": any(one.snapshots for one in sets), "before": any(one.before is not None for one in sets),
        "known": [
            {"title": one.title, **confusions(one.confusion, names)} for one in sets if one.confusion is not None
        ],
        "unknown": "" if any(one.confusion is not None for one in sets) else UNKNOWN,
    }  # fmt: skip


def limits(classes: int, values: int) -> tuple[int, int]:
    """Classes, and images of each, that fit the budget, if one image of a class takes so many values in all sets."""
    shown = max(1, min(classes, MOST_CLASSES, BUDGET // values))
    return shown, max(1, min(MOST_IMAGES, BUDGET // (values * shown)))


# --- images --------------------------------------------------------------------------------------------------------


def _classes(one: Shown, classes: int, images: int) -> list[Found]:
    """The classes of a set, each with its strips."""
    labels, soft = one.distilled.labels.cpu(), one.distilled.soft_labels.cpu()
    snapshots = _thinned(one.snapshots, classes, images)
    shown = []
    for label in range(classes):
        rows = (labels == label).nonzero().flatten()[:images]
        pixels = one.distilled.transform.pixels(one.distilled.images[rows.to(one.distilled.images.device)])
        shown.append({
            "count": len(rows), "of": int((labels == label).sum()), "strip": strip(pixels.cpu()),
            "soft": _largest(soft[rows]), "before": None if one.before is None else strip(one.before[rows]),
            "frames": _frames(snapshots, label, len(rows)), "nearest": _nearest(one, rows, label),
            "says": _says(one.confusion, label, one.distilled.classes),
        })  # fmt: skip
    return shown


def strip(pixels: Tensor) -> Found | None:
    """Images uint8 (n, C, H, W) side by side as one picture, with the size of one; None where there are none."""
    if len(pixels) == 0:
        return None
    _, _, height, width = pixels.shape
    return {"picture": data_uri(png(torch.cat(list(pixels), dim=2))), "width": width, "height": height}


def _largest(soft: Tensor) -> list[list[tuple[int, int]]]:
    """The largest probabilities of soft labels (n, K): pairs of a class and per cent, without those of 0."""
    values, indices = soft.topk(min(TOP, soft.shape[1]), dim=1)
    return [
        [(k, round(100 * v)) for k, v in zip(ks, vs, strict=True) if round(100 * v)]
        for ks, vs in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _thinned(snapshots: Sequence[Snapshot], classes: int, images: int) -> list[Snapshot]:
    """Snapshots of what is shown within the budget: fewer images of each class, then fewer snapshots, the last kept."""
    if not snapshots:
        return []
    kept = int(snapshots[0].labels.max()) + 1
    values = min(classes, kept) * snapshots[0].pixels[0].numel()
    most = max(1, min(images, BUDGET // (values * len(snapshots))))
    step = max(1, math.ceil(len(snapshots) * values * most / BUDGET))
    fewer = list(snapshots)[::-step][::-1]
    found = []
    for one in fewer:
        rows = torch.cat([(one.labels == label).nonzero().flatten()[:most] for label in range(kept)])
        found.append(Snapshot(one.iteration, one.pixels[rows], one.soft[rows], one.labels[rows]))
    return found


def _frames(snapshots: Sequence[Snapshot], label: int, most: int) -> list[Found]:
    """Strips and labels of a class by iteration; of classes that no snapshot holds, none."""
    frames = []
    for one in snapshots:
        rows = (one.labels == label).nonzero().flatten()[:most]
        if len(rows):
            frames.append(
                {"iteration": one.iteration, "strip": strip(one.pixels[rows]), "soft": _largest(one.soft[rows])}
            )
    return frames


def _nearest(one: Shown, rows: Tensor, label: int) -> Found | None:
    """The training images nearest to the image of a class that stands out most; None where they are not known."""
    if one.memorised is None or one.nearest is None:
        return None
    entries = [found["most_copied"] for found in memorisation.drawn(dict(one.memorised))]
    if one.nearest["rows"].tolist() != [row for entry in entries for row in entry["rows"]]:
        return None  # of another set
    pictures = one.nearest["pixels"].split([len(entry["rows"]) for entry in entries])
    for entry, real in zip(entries, pictures, strict=True):
        if entry["label"] == label:
            slot = entry["image"] // one.distilled.pictures**2
            shown = (rows == slot).nonzero().flatten().tolist()
            return {
                "image": strip(memorisation.pixels_of(one.distilled, torch.tensor([entry["image"]]))),
                "number": shown[0] + 1 if shown else None, "strip": strip(real), "copy": entry["near_copy"],
                "distances": [f"{distance:.1%}" for distance in entry["distances"]],
            }  # fmt: skip
    return None


# --- what networks make of the classes -----------------------------------------------------------------------------


def confusions(known: Mapping[str, Any], names: Sequence[str]) -> Found:
    """Accuracies by class, the highest first, and what is taken for what.

    Args:
        known: {"counts": (K, K), a row a true class, "networks"}, as an evaluation sums them.
        names: of the classes.

    Returns:
        "networks"; "bars": {"name", "part" in per cent} by class, "bars_left_out" in their middle; "table": of each
        class {"name", "cells": per cent of its images}, none of many classes; "pairs" then, the most frequent ones:
        {"true", "taken", "part"}.
    """
    parts = fractions(known["counts"])
    bars: list[Found] = [{"name": name, "part": 100 * parts[k][k]} for k, name in enumerate(names)]
    bars.sort(key=lambda bar: -bar["part"])
    left_out = max(0, len(bars) - 2 * MOST_BARS)
    if left_out:
        bars = bars[:MOST_BARS] + bars[-MOST_BARS:]
    pairs: list[Found] = [
        {"true": names[i], "taken": names[j], "part": 100 * part}
        for i, row in enumerate(parts) for j, part in enumerate(row) if i != j and part > 0
    ]  # fmt: skip
    few = len(names) <= MOST_NAMES
    table = [
        {"name": name, "cells": [100 * part for part in row]} for name, row in zip(names, parts, strict=True)
    ] if few else []  # fmt: skip
    return {
        "networks": known["networks"], "bars": bars, "bars_left_out": left_out, "table": table, "names": names,
        "pairs": [] if few else sorted(pairs, key=lambda pair: -pair["part"])[:MOST_PAIRS],
    }  # fmt: skip


def fractions(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Rows of counts as fractions of their sums; zeros where a class has no image."""
    return [[count / max(1, sum(row)) for count in row] for row in counts]


def _says(known: Mapping[str, Any] | None, label: int, names: Sequence[str]) -> str:
    """How well networks recognise a class, in a sentence; empty where that is not known."""
    if known is None:
        return ""
    row = fractions(known["counts"])[label]
    text = f"Networks recognise {row[label]:.1%} of its test images"
    part, other = max(((part, k) for k, part in enumerate(row) if k != label), default=(0.0, label))
    return f"{text}; most often they take them for {names[other]} ({part:.1%})." if part > 0 else f"{text}."
