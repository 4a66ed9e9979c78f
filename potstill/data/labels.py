"""What the labels of a synthetic set are, and the ways from one kind to another.

logits    learned numbers z; the soft label is softmax(z)                       (DATM)
values    regression targets v; networks learn them by squared error            (KIP, FRePo)
raw       weights y ≥ 0 of −Σ_k y_k log softmax(f(x))_k; rows need no sum of 1  (RaT-BPTT)
hard      no numbers: the class of each image is its label; as targets, the one-hot row
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["logits", "values", "raw", "hard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TargetKind = Literal["probabilities", "values", "raw"]  # what networks are trained against, as in networks/losses.py
HARD_LABEL_LOGIT = 20.0  # the logit of a hard label, whose softmax is 1 to eight digits


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Hard labels (n,) as probabilities (n, K), float32."""
    return torch.nn.functional.one_hot(labels.long(), classes).float()


def from_hard(labels: Tensor, classes: int, kind: Kind) -> Tensor:
    """Targets (n, K) float32 of the given kind that say as much as hard labels (n,).

    logits 20 · 1, values 1 − 1/K (centred as in KIP), raw and hard 1, where 1 is the one-hot row.
    """
    rows = one_hot(labels, classes)
    match kind:
        case "logits":
            return HARD_LABEL_LOGIT * rows
        case "values":
            return rows - 1 / classes
        case "raw" | "hard":
            return rows


def probabilities(targets: Tensor | None, kind: Kind, labels: Tensor, classes: int) -> Tensor:
    """The soft labels (n, K) that targets (n, K) amount to; rows sum to 1.

    logits: their softmax. raw: divided by their sum; a row without any weight is the image's class.  values: the
    probabilities nearest to them in squared error, which they are fitted by.  hard: one-hot.
    """
    if targets is None or kind == "hard":
        return from_hard(labels, classes, "hard")
    if kind == "logits":
        return targets.softmax(1)
    if kind == "values":
        return _on_simplex(targets)
    total = targets.sum(1, keepdim=True)
    return torch.where(total > 0, targets / total.clamp_min(1e-30), from_hard(labels, classes, "hard").to(targets))


def convert(targets: Tensor | None, kind: Kind, labels: Tensor, classes: int, wanted: Kind) -> Tensor:
    """Targets (n, K) of one kind as those of another, by way of the probabilities they amount to.

    Of the same kind they are given back as they are.  What probabilities do not hold is lost: the sum of raw weights,
    a constant added to logits or values; of hard labels, all but the class of the slot.
    """
    if targets is None or kind == "hard" or wanted == "hard":
        return from_hard(labels, classes, wanted)
    if kind == wanted:
        return targets
    likely = probabilities(targets, kind, labels, classes)
    match wanted:
        case "logits":
            return likely.log().clamp_min(-HARD_LABEL_LOGIT)
        case "values":
            return likely - 1 / classes
        case "raw":
            return likely


def _on_simplex(values: Tensor) -> Tensor:
    """The nearest points (n, K) with entries ≥ 0 and sum 1 (Duchi et al., ICML 2008): max(v − τ, 0), τ by sorting."""
    ordered = values.sort(1, descending=True).values
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    excess = (ordered.cumsum(1) - 1) / count  # τ if the first so many entries stay above 0
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (values - excess.gather(1, last)).clamp_min(0)
