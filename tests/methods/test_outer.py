"""The rules of the outer loop against PyTorch's optimisers, written out once more where PyTorch has none."""

import math

import pytest
import torch

from potstill.methods import outer
from potstill.methods.outer import Rule


def walk(rule, gradients, x=None):
    """The variable after each step."""
    x = torch.tensor([1.0, -2.0, 3.0]) if x is None else x
    moments, found = outer.initial(rule, x), []
    for gradient in gradients:
        x, moments = outer.step(rule, x, moments, gradient)
        found.append(x)
    return found, moments


def by_torch(make, gradients):
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    optimiser = make([x])
    for gradient in gradients:
        x.grad = gradient.clone()
        optimiser.step()
    return x.detach()


def some_gradients(n=5):
    return list(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)))


def test_sgd_with_momentum_is_pytorchs():
    gradients = some_gradients()
    expected = by_torch(lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.7), gradients)
    assert torch.allclose(walk(Rule(0.3, momentum=0.7), gradients)[0][-1], expected, atol=1e-6)


def test_adam_is_pytorchs():
    gradients = some_gradients(20)
    expected = by_torch(lambda p: torch.optim.Adam(p, lr=0.05), gradients)
    assert torch.allclose(walk(Rule(0.05, "adam"), gradients)[0][-1], expected, atol=1e-6)


def test_adabelief_is_that_of_its_paper():
    """Algorithm 2 of Zhuang et al., each number by itself; a gradient that is as expected makes large steps."""
    gradients = some_gradients(20)
    found = walk(Rule(0.05, "adabelief"), gradients)[0][-1]
    for place, x in enumerate([1.0, -2.0, 3.0]):
        m = s = 0.0
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[place])
            m = 0.9 * m + 0.1 * g
            s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-16
            x -= 0.05 * m / (1 - 0.9**t) / (math.sqrt(s / (1 - 0.999**t)) + 1e-16)
        assert float(found[place]) == pytest.approx(x, rel=1e-5)
    steady = [torch.ones(3)] * 100
    first, last = (walk(Rule(0.05, kind), steady)[0][-1] for kind in ("adam", "adabelief"))
    assert bool((last < first).all())
    assert torch.equal(walk(Rule(0.05, "adabelief"), [torch.zeros(3)])[0][-1], torch.tensor([1.0, -2.0, 3.0]))


def test_a_positive_variable_follows_the_published_step_and_never_ends():
    start = torch.tensor(0.01)
    small = walk(Rule(1e-3, positive=True), [torch.tensor(2 * (0.01 - 0.02))], start)[0][-1]
    assert float(small) == pytest.approx(0.01 - 1e-3 * 2 * (0.01 - 0.02), rel=1e-4)
    large = walk(Rule(10.0, positive=True), [torch.tensor(0.1)] * 5, start)[0]
    assert float(large[0]) == pytest.approx(0.005)  # trap 8 of the public code: plain SGD would make it negative
    assert all(0 < float(x) < 0.01 for x in large)


def test_minimum_clamps_and_ascent_climbs():
    assert walk(Rule(1.0, minimum=0.0), [torch.ones(3)])[0][-1].tolist() == [0.0, 0.0, 2.0]
    assert walk(Rule(1.0), [torch.ones(3)])[0][-1].tolist() == [0.0, -3.0, 2.0]
    assert walk(Rule(1.0, ascend=True), [torch.ones(3)])[0][-1].tolist() == [2.0, -1.0, 4.0]


def test_the_clip_follows_the_moving_average_of_the_norm():
    unit = torch.tensor([1.0, 0.0, 0.0])
    found, moments = walk(Rule(1.0, clip=2.0), [unit, 100 * unit])
    average = 0.9 * 1 + 0.1 * 100  # which has taken the large one in before it cuts
    assert float(moments["norm"]) == pytest.approx(average)
    assert float((found[1] - found[0]).norm()) == pytest.approx(2 * average)


def test_the_result_is_the_moving_average_where_one_is_kept():
    rule = Rule(1.0, average=0.5)
    found, moments = walk(rule, [torch.ones(3)] * 2)
    start = torch.tensor([1.0, -2.0, 3.0])
    expected = 0.5 * (0.5 * start + 0.5 * found[0]) + 0.5 * found[1]
    assert torch.allclose(outer.result(rule, found[-1], moments), expected)
    assert outer.result(Rule(1.0), found[-1], {}) is found[-1]


def test_an_average_has_the_norm_of_what_it_is_the_average_of():
    """A mean of vectors of length 2 that point elsewhere is shorter."""
    rule = Rule(1.0, norm=2.0, average=0.9)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    moments = outer.initial(rule, x)
    for seed in range(5):
        gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        x, moments = outer.step(rule, x, moments, gradient)
    assert torch.allclose(outer.result(rule, x, moments).norm(dim=1), torch.full((4,), 2.0))


@pytest.mark.parametrize("iterations", [1, 2, 3, 50, 5000, 10**6])
def test_an_average_leaves_little_of_the_beginning_however_short_the_run(iterations):
    assert outer.decay(0.9995, iterations) ** iterations < 0.1
    assert outer.decay(0.9995, iterations) <= 0.9995
    assert outer.decay(0.0, iterations) == 0


def test_an_undone_step_forgets_direction_and_keeps_averages():
    rule = Rule(1.0, momentum=0.9, clip=2.0, average=0.5)
    _, moments = walk(rule, some_gradients())
    undone = outer.undo(rule, torch.zeros(3), moments)
    assert float(undone["velocity"].abs().sum()) == 0
    assert torch.equal(undone["norm"], moments["norm"])
    assert torch.equal(undone["average"], moments["average"])


def test_rates_fall_over_the_cooldown():
    rule = Rule(1.0, cooldown=0.5)
    assert [outer.lr_scale(rule, k, 8) for k in range(8)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert outer.lr_scale(Rule(1.0), 7, 8) == 1.0
    assert math.isclose(outer.lr_scale(Rule(1.0, cooldown=1.0), 9, 10), 0.1)
