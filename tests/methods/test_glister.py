"""GLISTER's greedy rule against the obvious one: gradients by autograd, validation outputs by a step of the layer."""

import torch
import torch.nn.functional as F

from potstill.data.labels import one_hot
from potstill.methods.glister import greedy


def test_each_pick_has_the_gradient_that_agrees_most_with_the_validation_loss():
    draws = torch.Generator().manual_seed(0)
    h, h_val, labels = (torch.randn(12, 4, generator=draws).double() for _ in range(2)), None, None
    h, h_val = h
    weight, bias = torch.randn(3, 4, generator=draws).double(), torch.randn(3, generator=draws).double()
    classes, labels = torch.arange(12) % 3, torch.arange(12) % 3
    errors = (h @ weight.T + bias).softmax(1) - one_hot(classes, 3)
    found = greedy(errors, h, h_val @ weight.T + bias, h_val, labels, 5, step=0.1)

    def gradient(x, y, w, b):
        w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(x @ w.T + b, y), [w, b])])

    picked = []
    for _ in range(5):
        moved = torch.stack([gradient(h[[i]], classes[[i]], weight, bias) for i in picked]).mean(0) if picked else 0
        now = torch.cat([weight.flatten(), bias]) - 0.1 * moved
        aim = gradient(h_val, labels, now[:12].view(3, 4), now[12:])
        gains = {i: float(gradient(h[[i]], classes[[i]], weight, bias) @ aim) for i in range(12) if i not in picked}
        picked.append(max(gains, key=gains.get))
    assert found.tolist() == picked
