"""What the labels of a set are: numbers of a kind, or classes alone.

    logits   learned; their softmax are the probabilities of the cross-entropy
    raw      weights y ≥ 0 of −Σ_k y_k log softmax_k, whose sum is learned too (RaT-BPTT)
    values   targets of a squared error (KIP, FRePo)
    hard     none: the class of each slot
"""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["logits", "raw", "values", "hard"]
HARD_LABEL_LOGIT = 20.0  # of a hard label among logits, whose softmax is 1 to eight digits


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Hard labels (n,) as probabilities (n, K), float32."""
    return torch.nn.functional.one_hot(labels, classes).float()


def probabilities(targets: Tensor | None, kind: Kind, labels: Tensor, classes: int) -> Tensor:
    """Class probabilities (n, K) that labels of any kind stand for.

    Raw weights are divided by their sum; of values (one-hot less 1/K, learned) the nearest probabilities are taken.
    """
    if kind == "hard" or targets is None:
        return one_hot(labels, classes)
    if kind == "logits":
        return targets.softmax(1)
    positive = (targets + 1 / classes if kind == "values" else targets).clamp_min(0)
    total = positive.sum(1, keepdim=True)
    return torch.where(total > 0, positive / total.clamp_min(1e-12), torch.full_like(positive, 1 / classes))


def convert(targets: Tensor | None, kind: Kind, labels: Tensor, classes: int, wanted: Kind) -> Tensor:
    """Labels of one kind as targets (n, K) of another; "hard" gives one-hot rows.

    Logits of a hard label are 0 but for :data:`HARD_LABEL_LOGIT` of its class; values are probabilities less 1/K.
    """
    if kind == wanted and targets is not None:
        return targets
    if wanted == "hard":
        return one_hot(labels, classes)
    found = probabilities(targets, kind, labels, classes)
    if wanted == "logits":
        return HARD_LABEL_LOGIT * found if kind == "hard" else found.clamp_min(1e-9).log()
    return found - 1 / classes if wanted == "values" else found
