"""Gradient matching against the obvious way, and what makes it that method."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill.data import augment
from potstill.methods import METHODS, gradient, matching
from potstill.methods.gradient import distance
from potstill.runs import loop, run
from tests.conftest import tiny


def setting(tmp_path, name="dsa", **own):
    given = tiny(name, ipc=2, augment=("crop", "scale", "rotate"), **{name: {"real_batch": 30, **own}})
    job = run.open_run(given, tmp_path)
    ctx, settings = job.context(0), job.settings.stages[0]
    return ctx, settings, METHODS[name].begin(ctx, settings, None)


def test_distance_is_one_less_the_cosine_of_each_row_and_leaves_biases_out():
    shapes = {"w": torch.Size([2, 3]), "b": torch.Size([2]), "k": torch.Size([1, 2, 1, 1])}
    draws = torch.Generator().manual_seed(0)
    r, s = (torch.randn(10, generator=draws) for _ in range(2))
    expected = sum(
        1 - F.cosine_similarity(a, b, 0, 0.0)
        for a, b in ((r[:3], s[:3]), (r[3:6], s[3:6]), (r[8:], s[8:]))
    )  # fmt: skip
    assert float(distance(r, s, shapes)) == pytest.approx(float(expected), abs=1e-5)
    assert float(distance(r, 3 * r, shapes)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("name", "pictures"), [("dsa", 1), ("dc", 1), ("dsa", 2)])
def test_value_and_gradient_are_those_of_double_backward(tmp_path, name, pictures):
    """In float64, by autograd through the gradient, from the same draws."""
    ctx, settings, begun = setting(tmp_path, name, pictures=pictures, initial="random")
    problem = ctx.problem
    doubled = Doubled(problem)
    network = problem.network
    images = begun.variables["images"].double().requires_grad_()
    theta, total = ctx.fresh("network", 0).double(), 0
    decoded, classes = matching.images_of({"images": images}, begun.labels, pictures)
    for label in range(10):
        found = matching.pair(replace(ctx, problem=doubled), decoded, classes, label, 30, 0, name == "dsa")
        real, own = found.real, found.synthetic

        def slope(x, create, label=label):
            leaf = theta.clone().requires_grad_()
            loss = F.cross_entropy(network(leaf, x), torch.full((len(x),), label))
            return torch.autograd.grad(loss, leaf, create_graph=create)[0]

        total = total + distance(slope(real, False), slope(own, True), network.shapes)
    (expected,) = torch.autograd.grad(total, images)
    leaf = begun.variables["images"].clone().requires_grad_()
    found = METHODS[name].loss(ctx, settings, {"images": leaf}, begun.memory, begun.labels, 0).loss
    (mine,) = torch.autograd.grad(found, leaf)
    assert float(found.detach()) == pytest.approx(float(total.detach()), rel=1e-4)
    assert float((mine - expected).norm() / expected.norm()) < 2e-4


class Doubled:
    """A problem whose training images are of double precision."""

    def __init__(self, problem):
        self.train = replace(problem.train, images=problem.train.images.double())
        self.device = problem.device


def test_real_and_synthetic_images_are_augmented_by_the_same_parameters(tmp_path, monkeypatch):
    ctx, settings, begun = setting(tmp_path)
    seen, original = [], augment.apply
    monkeypatch.setattr(augment, "apply", lambda x, drawing: seen.append((len(x), drawing)) or original(x, drawing))
    METHODS["dsa"].loss(ctx, settings, begun.variables, begun.memory, begun.labels, 0)
    assert len(seen) == 20
    for (real, theirs), (own, mine) in zip(seen[::2], seen[1::2], strict=True):
        assert (real, own) == (30, 2)
        assert theirs.operation == mine.operation
        assert torch.equal(theirs.parameters, mine.parameters[:1].expand(30, -1)), "one set for all images of a class"
    monkeypatch.setattr(augment, "apply", lambda *_: pytest.fail("DC augments nothing"))
    ctx, settings, begun = setting(tmp_path / "dc", "dc")
    METHODS["dc"].loss(ctx, settings, begun.variables, begun.memory, begun.labels, 0)


def test_a_network_lives_for_some_steps_and_trains_on_the_set_between_them(tmp_path):
    ctx, settings, begun = setting(tmp_path, network_steps=3, inner_epochs=2)
    memory, seen = begun.memory, []
    for iteration in range(4):
        memory = METHODS["dsa"].loss(ctx, settings, begun.variables, memory, begun.labels, iteration).memory
        seen.append(memory["network"])
    assert torch.equal(seen[0], ctx.fresh("network", 0))
    assert torch.equal(seen[3], ctx.fresh("network", 3))
    targets = F.one_hot(begun.labels, 10).float()

    def loss(theta):
        return float(F.cross_entropy(ctx.problem.network(theta, begun.variables["images"]), targets))

    assert loss(seen[2]) < loss(seen[0])
    assert gradient.loops(ctx, replace(settings, network_steps=None, inner_epochs=None)) == (1, 1)
    assert gradient.loops(replace(ctx, ipc=50), replace(settings, network_steps=None, inner_epochs=0)) == (50, 0)


def test_four_pictures_a_slot_begin_as_four_real_images(tmp_path):
    ctx, settings, begun = setting(tmp_path, pictures=2)
    assert begun.variables["images"].shape == (20, 1, 8, 8)
    first = begun.variables["images"][0, :, :4, :4]
    small = F.interpolate(ctx.problem.train.images, size=(4, 4), mode="area")
    assert bool((small == first).flatten(1).all(1).any())
    outcome = loop.differentiate(METHODS["dsa"], ctx, settings, run_state(begun, settings))[0]
    assert bool(outcome.loss.isfinite())


def run_state(begun, settings):
    from potstill.runs import state

    return state.begin(METHODS["dsa"], settings, begun)
