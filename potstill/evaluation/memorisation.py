"""What a set gives away of single training images: how near its images lie to them, beside how near real ones lie.

The distance of two images is the root mean square over their pixels, as a part of the range of pixels: Euclidean
distance that does not grow with the images.  Every image is compared with the training images of its own class, in true
colours as it would be published (clipped to the range of pixels, which brings it nearer to every real image).

    quantile    the fraction of real images that lie closer to another of their class than this image to its nearest
    relative    distance of the nearest over the mean of the 50 nearest
    near copy   relative is below 1/2, as published, and below that of 99 % of real images of the class, so that real
                images, some of which look alike, would not be accused; or the two images are the same but for rounding

(Carlini et al., "Extracting Training Data from Diffusion Models", USENIX Security 2023, for the relative distance.)
Distance alone does not tell copies: the average of many images is near to all of them and copies none; its quantile is
low, but its relative distance near 1.  Neither sees copies that are mirrored, shifted, recoloured or under much noise,
nor what labels and the transform give away: of CIFAR-10's training images under noise of deviation 0.05, 0.1 and 0.2 of
the range, all, half and none were found, of its test images 0.2 %.
"""

import math
from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

from potstill import seeds
from potstill.data.distilled import Distilled, decode
from potstill.store import once_json
from potstill.training.problem import Problem

VERSION = 1  # of the yardstick's numbers; raised whenever they change
NEIGHBOURS = 50  # nearest training images that the nearest one is held against
NEAR = 0.5  # of their mean distance, below which an image may be a near copy
RARE = 0.01  # fraction of real images that are as near to others, which near copies stand out from
SAME = 1 / 255  # distance below which two images are the same but for rounding
CHANCE = 0.05  # probability below which a count is told to be more than chance
SHOWN = 3  # nearest training images that are told of each image
YARDSTICK = 500  # real images of a class whose nearest ones are looked for
BUDGET = 1e11  # multiplications, a few seconds on two cores, for the set and for the yardstick; more are sampled
DRAWN = 20  # classes that are drawn
VALUES = 2**24  # pixel values of a block that is compared at once: 64 MB
Found = dict[str, Any]


def nearest(
    queries: Tensor, images: Tensor, count: int, own: Tensor | None = None, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The images that are nearest to each of some others, in blocks of bounded size.

    Args:
        queries: uint8 (q, C, H, W).
        images: uint8 (N, C, H, W).
        count: how many are wanted of each.
        own: (q,) rows of the queries themselves among the images, which are left out: leave one out.
        device: where to compute.

    Returns:
        Distances (q, k) float32, ascending, and rows (q, k), on the CPU; k is count, or as many as there are.  The
        first few distances are taken pixel by pixel, so equal images have exactly 0; the others are rounded.
    """
    count = min(count, len(images) - (own is not None))
    if count < 1 or len(queries) == 0:
        return torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    size = max(1, VALUES // queries[0].numel())
    owns = [None] * math.ceil(len(queries) / size) if own is None else own.split(size)
    blocks = [
        _nearest(block, images, count, rows, size, device)
        for block, rows in zip(queries.split(size), owns, strict=True)
    ]  # fmt: skip
    return torch.cat([distances for distances, _ in blocks]), torch.cat([rows for _, rows in blocks])


def _nearest(
    queries: Tensor, images: Tensor, count: int, own: Tensor | None, size: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same for one block of queries: candidates by ‖a‖² + ‖b‖² − 2 ⟨a, b⟩, then the first ones exactly."""
    a = _flat(queries, device)
    squares, rows = a.new_empty(len(a), 0), torch.empty(len(a), 0, dtype=torch.int64, device=device)
    for first in range(0, len(images), size):
        b = _flat(images[first : first + size], device)
        found = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        if own is not None:
            inside = ((own >= first) & (own < first + len(b))).nonzero().flatten()
            found[inside.to(device), (own[inside] - first).to(device)] = math.inf
        squares, rows = torch.cat([squares, found], 1), torch.cat([rows, _numbers(first, found)], 1)
        squares, kept = squares.topk(min(count, squares.shape[1]), largest=False)
        rows = rows.gather(1, kept)
    distances = (squares.clamp_min(0) / a.shape[1]).sqrt().cpu()
    exact, rows = min(SHOWN + 1, count), rows.cpu()
    for column in range(exact):
        apart = a - _flat(images[rows[:, column]], device)
        distances[:, column] = apart.square().mean(1).sqrt().cpu()
    distances[:, :exact], order = distances[:, :exact].sort(dim=1, stable=True)
    rows[:, :exact] = rows[:, :exact].gather(1, order)
    return distances, rows


def _flat(images: Tensor, device: torch.device | str) -> Tensor:
    """Pixels (n, C·H·W) in [−1/2, 1/2]: small norms round less."""
    return images.to(device).flatten(1).float() / 255 - 0.5


def _numbers(first: int, found: Tensor) -> Tensor:
    """Rows of the images that the columns of a block stand for, the same for every query."""
    return torch.arange(first, first + found.shape[1], device=found.device).expand(found.shape)


# --- the yardstick -------------------------------------------------------------------------------------------------


def yardstick(problem: Problem) -> list[Found]:
    """How near real training images lie to each other, class by class; kept for the next set of the same data.

    Returns:
        {"distances", "relative"} of each class: of the images that were looked at to the nearest other one, both
        ascending; empty where a class has a single image.
    """
    identity = [VERSION, problem.dataset.fingerprint, YARDSTICK, BUDGET]
    classes: list[Found] = once_json("distances", identity, lambda: {"classes": _yardstick(problem)})["classes"]
    return classes


def _yardstick(problem: Problem) -> list[Found]:
    classes = []
    for label in range(len(problem.dataset.classes)):
        images = _of_class(problem, label)[1]
        drawn = torch.randperm(len(images), generator=seeds.generator(0, "yardstick", label))
        drawn = drawn[: min(YARDSTICK, _allowed(problem, len(images)))]
        distances, _ = nearest(images[drawn], images, NEIGHBOURS, drawn, problem.device)
        found = {"distances": distances[:, 0], "relative": _relative(distances)} if distances.numel() else {}
        classes.append(
            {name: found[name].sort().values.tolist() if found else [] for name in ("distances", "relative")}
        )
    return classes


def _of_class(problem: Problem, label: int) -> tuple[Tensor, Tensor]:
    """Rows and pixels of a class's training images."""
    split = problem.dataset.train
    rows = (split.labels == label).nonzero().flatten()
    return rows, split.images[rows]


def _allowed(problem: Problem, images: int) -> int:
    """Queries that a class of so many training images may be asked within its share of the budget."""
    values = math.prod(problem.dataset.shape)
    return max(1, int(BUDGET / (len(problem.dataset.classes) * images * values)))


def _relative(distances: Tensor) -> Tensor:
    """(q,) of distances (q, k): the nearest over the mean; 0 where all are 0, as copies of one image are."""
    return distances[:, 0] / distances.mean(1).clamp_min(1e-12)


# --- a set ---------------------------------------------------------------------------------------------------------


def examine(distilled: Distilled, problem: Problem) -> Found:
    """How near the images of a set lie to the training images it was made from.

    Args:
        distilled: the set.
        problem: its data.

    Returns:
        Plain values, ready for JSON: "images", one entry {"image": its number among ``distilled.decoded()``, "label",
        "rows": the nearest training images, the nearest first, "distances" of these, "relative", "quantile": None where
        the class has a single training image, "near_copy"} each; "real", the :func:`yardstick`; "of", how many images
        the set has; "selected", whether they are real ones; "notes", what was left out.
    """
    real = yardstick(problem)
    labels = distilled.labels.cpu().repeat_interleave(distilled.pictures**2)
    entries: list[Found] = []
    for label in range(len(problem.dataset.classes)):
        entries += _examine_class(distilled, problem, (labels == label).nonzero().flatten(), label, real[label])
    found = {"images": entries, "real": real, "of": len(labels), "selected": distilled.rows is not None}
    return {**found, "notes": _notes(problem, found)}


def _examine_class(
    distilled: Distilled, problem: Problem, numbers: Tensor, label: int, real: Found
) -> list[Found]:  # fmt: skip
    """Entries of the images of one class, evenly spaced ones where they are too many."""
    rows, images = _of_class(problem, label)
    numbers = numbers[:: math.ceil(len(numbers) / _allowed(problem, len(rows))) or 1]
    distances, columns = nearest(pixels_of(distilled, numbers), images, NEIGHBOURS, device=problem.device)
    if len(numbers) == 0:
        return []
    relative = _relative(distances).tolist()
    return [
        {
            "image": number, "label": label, "rows": rows[columns[i, :SHOWN]].tolist(),
            "distances": distances[i, :SHOWN].tolist(), "relative": relative[i],
            "quantile": _rank(real["distances"], float(distances[i, 0])),
            "near_copy": _is_near_copy(float(distances[i, 0]), relative[i], real),
        }
        for i, number in enumerate(numbers.tolist())
    ]  # fmt: skip


def _rank(ascending: list[float], value: float) -> float | None:
    """The fraction of some values that are smaller; None where there are none."""
    return bisect_left(ascending, value) / len(ascending) if ascending else None


def _is_near_copy(distance: float, relative: float, real: Found) -> bool:
    rank = _rank(real["relative"], relative)
    return distance < SAME or (relative < NEAR and rank is not None and rank < RARE)


def pixels_of(distilled: Distilled, numbers: Tensor) -> Tensor:
    """Some of the images that networks train on, by number, in true colours: uint8 (m, C, H, W) on the CPU."""
    f = distilled.pictures**2
    slots, inverse = (numbers // f).unique(return_inverse=True)
    some = distilled.images[slots].float().cpu()
    whole = distilled.transform.pixels(decode(some, distilled.pictures))
    return whole[inverse * f + numbers % f]


def _notes(problem: Problem, found: Found) -> list[str]:
    """What was left out to save time, a sentence each."""
    notes = []
    if len(found["images"]) < found["of"]:
        notes.append(f"{len(found['images'])} of the {found['of']} images were looked at, evenly spaced in each class.")
    looked = sum(len(one["distances"]) for one in found["real"])
    if looked < len(problem.dataset.train):
        notes.append(
            f"The yardstick is of {looked} of the {len(problem.dataset.train)} training images, drawn at random; their "
            "nearest ones were looked for among all of the class."
        )
    return notes


def summary(found: Found) -> Found:
    """What results.json keeps of :func:`examine`.

    Returns:
        "images" looked at, "of" so many; "selected"; "closer_1_percent" and "closer_5_percent", the fractions that lie
        closer to a training image than the closest 1 and 5 % of real images to each other; "near_copies", the fraction
        of near copies, and "same", that of images which are training images; "notes"; "classes", of each class
        {"label", "distances" of its images to the nearest training image, "real": the 5, 50 and 95 % quantiles of real
        ones, "most_copied": the entry of the image with the smallest relative distance}.
    """
    images, real = found["images"], found["real"]
    classes = []
    for label, one in enumerate(real):
        own = [entry for entry in images if entry["label"] == label]
        if own:
            classes.append({
                "label": label, "distances": [round(entry["distances"][0], 5) for entry in own],
                "real": [_quantile(one["distances"], q) for q in (0.05, 0.5, 0.95)] if one["distances"] else None,
                "most_copied": min(own, key=lambda entry: (entry["relative"], entry["distances"][0])),
            })  # fmt: skip
    return {
        "images": len(images), "of": found["of"], "selected": found["selected"],
        "closer_1_percent": _fraction_closer(images, 0.01), "closer_5_percent": _fraction_closer(images, 0.05),
        "near_copies": sum(entry["near_copy"] for entry in images) / len(images),
        "same": sum(entry["distances"][0] < SAME for entry in images) / len(images),
        "notes": found["notes"], "classes": classes,
    }  # fmt: skip


def _fraction_closer(images: list[Found], quantile: float) -> float:
    return sum(entry["quantile"] is not None and entry["quantile"] < quantile for entry in images) / len(images)


def _quantile(ascending: list[float], q: float) -> float:
    return ascending[min(int(q * len(ascending)), len(ascending) - 1)]


def sentence(told: Found) -> str:
    """What sharing a set gives away of its training images, from its :func:`summary`."""
    n = told["images"]
    if told["selected"]:
        return (
            f"These are {told['of']} real training images, chosen and not learned: each lies at distance 0 from one by "
            "construction, and whoever gets the set gets them."
        )
    copies, closer, same = (round(told[name] * n) for name in ("near_copies", "closer_1_percent", "same"))
    chance = f"where chance gives about {RARE * n:.2g}"
    counted = (
        f"{copies or 'none'} of {n} images {'are near copies' if copies > 1 else 'is a near copy'} of one (less than "
        f"half as far from it as from its {NEIGHBOURS} nearest on average, as at most 1 % of real images are), {chance}"
    )
    if same or _beyond_chance(copies, n):
        return f"Sharing this set gives away training images: {counted}."
    if _beyond_chance(closer, n):
        return (
            f"Sharing this set gives away what training images of a class have in common: {closer} of {n} images lie "
            f"closer to one than 99 % of real images lie to another, {chance}; but {counted}."
        )
    most = "no single training image" if copies == 0 else "no more training images than fresh real images might"
    return f"Sharing this set gives away {most}, as far as distances in pixels tell, which is no proof: {counted}."


def _beyond_chance(count: int, n: int) -> bool:
    """Whether so many of n images, or more, are improbable where each is counted with probability 1 % (Poisson)."""
    mean = RARE * n
    fewer = sum(math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(count))
    return 1 - fewer < CHANCE


def drawn(told: Found) -> list[Found]:
    """The classes of a :func:`summary` that are drawn, in their order: where there are many, the most copied ones."""
    ranked = sorted(told["classes"], key=lambda one: one["most_copied"]["relative"])[:DRAWN]
    return sorted(ranked, key=lambda one: one["label"])


def pictures(told: Found, problem: Problem) -> dict[str, Tensor]:
    """The training images nearest to the most copied image of each class that is drawn, one after the other.

    Returns:
        "pixels" uint8 (m, C, H, W) and "rows" (m,) of the training split.
    """
    rows = torch.tensor([row for one in drawn(told) for row in one["most_copied"]["rows"]], dtype=torch.int64)
    return {"pixels": problem.dataset.train.images[rows], "rows": rows}
