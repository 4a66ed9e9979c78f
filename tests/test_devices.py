"""The pretended device refuses what a GPU refuses, and nothing else."""

import numpy as np
import pytest
import torch

from tests.devices import ELSEWHERE, pretended


@pytest.fixture(autouse=True)
def _pretended():
    with pretended():
        yield


def there(*shape):
    return torch.zeros(shape, device=ELSEWHERE)


REFUSED = {
    "a sum": lambda: there(2) + torch.ones(2),
    "a sum in place": lambda: torch.ones(2).add_(there(2)),
    "a product of matrices": lambda: there(2, 2) @ torch.ones(2, 2),
    "joining a scalar": lambda: torch.stack([there(), torch.tensor(1.0)]),
    "indices elsewhere": lambda: torch.ones(3)[torch.arange(2, device=ELSEWHERE)],
    "rows here": lambda: there(3).index_select(0, torch.arange(2)),
    "values here": lambda: there(3).index_put_((torch.arange(2),), torch.ones(2)),
    "a generator of the CPU": lambda: torch.randn(2, generator=torch.Generator(), device=ELSEWHERE),
    "drawing in place": lambda: there(2).normal_(generator=torch.Generator()),
    "numpy": lambda: there(2).numpy(),
    "an array": lambda: np.asarray(there(2)),
    "what came from numpy": lambda: there(2) + torch.from_numpy(np.ones(2, np.float32)),
    "what was moved here": lambda: there(2).cpu() + there(2),
    "what was moved there": lambda: torch.ones(2).to(ELSEWHERE) + torch.ones(2),
    "a view": lambda: there(2, 2)[0].view(1, 2) + torch.ones(1, 2),
    "inside a transform": lambda: torch.func.vjp(lambda x: x * torch.ones(2), there(2)),
    "inside vmap": lambda: torch.func.vmap(lambda x: x + torch.ones(2))(there(3, 2)),
}  # fmt: skip


class Slip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2.0

    @staticmethod
    def backward(ctx, slope):
        return slope * torch.ones(2)


def slip():
    x = there(2).requires_grad_()
    torch.autograd.grad(Slip.apply(x).sum(), x)


REFUSED["inside a derivative"] = slip


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(what):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        REFUSED[what]()


def derivative():
    x = there(3).requires_grad_()
    (slope,) = torch.autograd.grad((x * 2.0).square().sum(), x, create_graph=True)
    return slope + torch.zeros_like(x) + x.new_ones(3) + torch.zeros(3, device=x.device)


TAKEN = {
    "a scalar": lambda: there(2) * torch.tensor(2.0),
    "a mask here": lambda: there(2)[torch.tensor([True, False])],
    "its own kind": lambda: there(2) + torch.arange(2, device=ELSEWHERE),
    "drawn here, then moved": lambda: torch.randn(2, generator=torch.Generator()).to(ELSEWHERE) + there(2),
    "the type and device of another": lambda: torch.ones(2, dtype=torch.float64).to(there(2)) + there(2),
    "a second derivative": derivative,
    "a transform": lambda: torch.func.vjp(lambda x: x * torch.ones(2, device=x.device), there(2))[0] + there(2),
    "one-hot rows": lambda: torch.nn.functional.one_hot(torch.arange(2, device=ELSEWHERE)),
    "rotated images": lambda: torch.nn.functional.affine_grid(there(2, 2, 3), [2, 1, 4, 4], False),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_it_is_taken_and_stays_there(what):
    assert TAKEN[what]().device == ELSEWHERE


def test_what_is_copied_here_is_here():
    ones = torch.empty(2).copy_(there(2))
    assert ones.device == torch.device("cpu")
    assert (there(2).cpu() + ones).tolist() == [0.0, 0.0]
