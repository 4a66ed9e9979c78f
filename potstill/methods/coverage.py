"""Selections by features: images that stand for their class in the space of an expert's last features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill import seeds
from potstill.bounds import Whole
from potstill.methods.method import Begun, Context, Experts, Method, Start
from potstill.methods.selection import Selection, at_epoch, both, features, kind, needs, rows_of, selected


@dataclass(frozen=True)
class ByFeatures(Selection):
    """Images chosen by the last features of an expert."""

    expert: Whole = 0
    """The expert whose last features (the input of the last layer) are compared."""


Rule = Callable[[Tensor, int, int], Tensor]
"""(features (n, F), count, seed) → rows (count,), in the order in which they were chosen."""


def herd(features: Tensor, count: int, seed: int = 0) -> Tensor:
    """Rows whose running mean follows the mean of all: argmin_x ‖k μ − Σ_selected h − h(x)‖ among those left."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    left = torch.ones(len(features), dtype=torch.bool, device=features.device)
    rows = []
    for k in range(1, count + 1):
        distance = (k * mean - total - features).square().sum(1)
        row = int(distance.masked_fill(~left, torch.inf).argmin())
        rows.append(row)
        left[row] = False
        total += features[row]
    return torch.tensor(rows, device=features.device)


def k_center(features: Tensor, count: int, seed: int) -> Tensor:
    """A random row, then again and again the one farthest from all that are selected (greedy cover)."""
    rows = [int(torch.randint(len(features), (), generator=seeds.generator(seed, "first centre")))]
    nearest = (features - features[rows[0]]).norm(dim=1)
    for _ in range(count - 1):
        nearest[rows[-1]] = -1.0  # never again
        rows.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[rows[-1]]).norm(dim=1))
    return torch.tensor(rows, device=features.device)


def k_medoids(features: Tensor, count: int, seed: int) -> Tensor:
    """The rows nearest to the centres of k-means (k-means++ start), none twice."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=1, random_state=seed % 2**32).fit(features.cpu().numpy())
    centres = torch.from_numpy(found.cluster_centers_).to(features)
    distance = torch.cdist(centres, features)
    rows = []
    for centre in distance:
        rows.append(int(centre.argmin()))
        distance[:, rows[-1]] = torch.inf
    return torch.tensor(rows, device=features.device)


def moderate(features: Tensor, count: int, seed: int = 0) -> Tensor:
    """The rows whose distance from the coordinate-wise median is in the middle of all distances."""
    order = (features - features.median(0).values).norm(dim=1).argsort(stable=True)
    first = (len(order) - count) // 2
    return order[first : first + count]


def _needs(settings: ByFeatures) -> Experts:
    return both(at_epoch(None), needs(settings))


def _method(name: str, title: str, citation: str, rule: Rule, doc: str) -> Method:
    def begin(ctx: Context, settings: ByFeatures, start: Start | None) -> Begun:
        rows = []
        for label in range(ctx.classes):
            own = rows_of(ctx, label)
            chosen = rule(features(ctx, settings.expert, own), ctx.ipc, seeds.derive(ctx.seed, name, label))
            rows.append(own[chosen])
        return selected(ctx, settings, torch.cat(rows))

    begin.__doc__ = doc
    return Method(
        name=name, title=title, family="selection", citation=citation, settings=ByFeatures, begin=begin, kind=kind,
        needs=_needs, reads="features",
    )  # fmt: skip


HERDING = _method(
    "herding", "Herding", 'Welling, "Herding Dynamical Weights to Learn", ICML 2009', herd,
    "IPC images of each class whose mean feature stays near that of the class.",
)  # by features as in Rebuffi et al., CVPR 2017  # fmt: skip
K_CENTER = _method(
    "k-center", "Greedy k-center",
    'Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018', k_center,
    "IPC images of each class that cover it: every image is near one of them.",
)  # fmt: skip
K_MEDOIDS = _method(
    "k-means", "Medoids of k-means", 'Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching", '
    "ICCV 2023", k_medoids, "The images nearest to the centres of IPC clusters of each class.",
)  # fmt: skip
MODERATE = _method(
    "moderate", "Moderate coreset",
    'Xia et al., "Moderate Coreset: A Universal Method of Data Selection for Real-World Data-Efficient Deep Learning", '
    "ICLR 2023", moderate, "IPC images of each class at a middling distance from its median.",
)  # fmt: skip
