"""The losses of a batch by kind of labels, as pure functions of a flat parameter vector.

    logits          −Σ_b Σ_k softmax(z)_bk log softmax(f_θ(x))_bk      soft cross-entropy, differentiable in z
    hard            −Σ_b Σ_k p_bk log softmax(f_θ(x))_bk               p one-hot
    probabilities   the same                                           p of any rows that sum to 1
    raw             the same with weights y ≥ 0 instead of p           rows need not sum to 1 (RaT-BPTT)
    values          ½ Σ_b Σ_k (f_θ(x)_bk − v_bk)²                      squared error (KIP, FRePo)

All are summed over the batch, so that a batch may be computed in parts; all have first and second derivatives in their
labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from potstill.networks.flat import FlatNetwork

LabelKind = Literal["logits", "hard", "probabilities", "raw", "values"]


def soft_cross_entropy(outputs: Tensor, weights: Tensor) -> Tensor:
    """−Σ_b Σ_k w_bk log softmax(outputs)_bk; with one-hot rows it is the hard cross-entropy."""
    return -(weights * F.log_softmax(outputs, 1)).sum()


def squared_error(outputs: Tensor, values: Tensor) -> Tensor:
    """½ Σ_b Σ_k (outputs_bk − v_bk)²."""
    return 0.5 * (outputs - values).square().sum()


def _of_logits(outputs: Tensor, logits: Tensor) -> Tensor:
    return soft_cross_entropy(outputs, F.softmax(logits, 1))


OF_OUTPUTS: dict[LabelKind, Callable[[Tensor, Tensor], Tensor]] = {
    "logits": _of_logits,
    "hard": soft_cross_entropy,
    "probabilities": soft_cross_entropy,
    "raw": soft_cross_entropy,
    "values": squared_error,
}


@dataclass(frozen=True)
class BatchLoss:
    """(theta (P,), images (b, C, H, W), labels (b, K)) → the loss of a network, summed over the batch."""

    network: FlatNetwork
    kind: LabelKind

    def __call__(self, theta: Tensor, images: Tensor, labels: Tensor, buffers: Tensor | None = None) -> Tensor:
        """The loss, a scalar, in training mode; moves the running statistics in ``buffers`` (B,) in place."""
        return self.of_outputs(self.network(theta, images, buffers), labels)

    def of_outputs(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The same from the network's outputs (b, K)."""
        return OF_OUTPUTS[self.kind](outputs, labels)


def loss_for(network: FlatNetwork, kind: LabelKind) -> BatchLoss:
    """The loss of a network against labels of this kind."""
    return BatchLoss(network, kind)


def label_loss(network: FlatNetwork) -> BatchLoss:
    """Loss against label logits."""
    return loss_for(network, "logits")


def target_loss(network: FlatNetwork) -> BatchLoss:
    """Loss against probabilities, hard or soft."""
    return loss_for(network, "probabilities")
