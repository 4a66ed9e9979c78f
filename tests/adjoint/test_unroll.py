"""The adjoints against each other, against finite differences, and against TESLA's formula, in float64."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from potstill import seeds
from potstill.adjoint.curvature import low_rank
from potstill.adjoint.derivatives import compiled
from potstill.adjoint.inner import Adam, Moments, Preconditioned, Sgd
from potstill.adjoint.unroll import InnerStep, _Sweep, unroll, unroll_with_moments
from potstill.data import augment
from potstill.data.augment import DSA
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig
from potstill.networks.losses import label_loss, soft_cross_entropy

SHAPE, CLASSES, N = (3, 8, 8), 5, 6


LEAVES = ("images", "logits", "alpha", "theta")
SGD, ADAM = Sgd(), Adam(eps=1e-4)  # an eps above the rounding noise of gradients that are exactly 0 on paper
BOTH = pytest.mark.parametrize("inner", [SGD, ADAM])
MICRO_BATCHES = pytest.mark.parametrize("micro_batch", [None, 1, 3])


class Setting:
    """A student, a synthetic set and eight augmented mini-batches, in float64."""

    def __init__(self, norm="instance", steps=8, dtype=torch.float64, alpha=None, batch=4, inner=SGD):
        config = NetworkConfig(width=4, depth=2, norm=norm)
        self.inner, self.moments = inner, None
        self.network = flat.flat_network(config, SHAPE, CLASSES)
        draws = seeds.generator(3, "test")
        self.theta = flat.initial(config, SHAPE, CLASSES, 1).to(dtype)
        self.target = self.theta + 0.05 * torch.randn(len(self.theta), generator=draws).to(dtype)
        self.images = torch.randn(N, *SHAPE, generator=draws).to(dtype).requires_grad_()
        self.logits = torch.randn(N, CLASSES, generator=draws).to(dtype).requires_grad_()
        alpha = alpha or (0.3 if inner == SGD else 0.01)
        self.alpha = torch.tensor(alpha, dtype=dtype, requires_grad=True)
        operations = itertools.cycle(DSA)
        self.steps = [
            InnerStep(torch.randperm(N, generator=draws)[:batch], augment.draw((op,), batch, SHAPE[1:], draws))
            for op, _ in zip(operations, range(steps), strict=False)
        ]
        self.loss = label_loss(self.network)

    def end(self, steps=slice(None), **how):
        """θ_N and moments after all or some of the steps."""
        return unroll_with_moments(
            self.theta, self.images, self.logits, self.alpha, self.steps[steps], self.loss, inner=self.inner,
            **{"moments": self.moments, **how},
        )  # fmt: skip

    def outer(self, **how):
        return (self.end(**how)[0] - self.target).square().sum()

    def gradients(self, leaves=LEAVES[:3], **how):
        return torch.autograd.grad(self.outer(**how), [getattr(self, name) for name in leaves])


def relative(found, expected):
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@MICRO_BATCHES
@pytest.mark.parametrize("norm", ["instance", "none"])
@BOTH
def test_exact_equals_direct(inner, norm, micro_batch):
    setting = Setting(norm, inner=inner)
    setting.theta.requires_grad_()
    exact = setting.gradients(LEAVES, micro_batch=micro_batch)
    direct = setting.gradients(LEAVES, adjoint="direct")
    assert max(relative(exact, direct)) < 1e-12


@BOTH
def test_exact_equals_direct_with_batch_norm(inner):
    setting = Setting("batch", inner=inner)
    assert max(relative(setting.gradients(), setting.gradients(adjoint="direct"))) < 1e-10


@MICRO_BATCHES
@BOTH
def test_all_adjoints_share_one_forward(inner, micro_batch):
    """Bit for bit, whether or not a gradient can follow; with a graph, convolutions may round otherwise."""
    setting = Setting(inner=inner)
    ways = ({}, {"adjoint": "frozen"}, {"adjoint": "truncated", "last": 3})
    ends = [setting.end(micro_batch=micro_batch, **how) for how in ways]
    with torch.no_grad():
        ends += [setting.end(micro_batch=micro_batch, **how) for how in ways]
    for theta, moments in ends[1:]:
        assert torch.equal(theta, ends[0][0])
        assert all(torch.equal(a, b) for a, b in zip(moments.vectors, ends[0][1].vectors, strict=True))
        assert moments.count == 8
    direct, _ = setting.end(micro_batch=micro_batch, adjoint="direct")
    assert torch.allclose(direct, ends[0][0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("which", LEAVES)
@MICRO_BATCHES
@BOTH
def test_exact_equals_finite_differences(inner, micro_batch, which):
    setting = Setting(inner=inner)
    setting.theta.requires_grad_()
    (exact,) = setting.gradients([which], micro_batch=micro_batch)
    value = getattr(setting, which)
    direction = torch.randn(value.shape, generator=seeds.generator(0, which)).to(value)
    slopes = []
    for h in (1e-6, 5e-7):
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                setattr(setting, which, value + sign * h * direction)
                ends.append(float(setting.outer()))
            setattr(setting, which, value)
        slopes.append((ends[0] - ends[1]) / (2 * h))
    expected = float((exact * direction).sum())
    assert min(abs(slope - expected) / abs(expected) for slope in slopes) < 1e-6


@BOTH
def test_frozen_is_teslas_formula_and_not_exact(inner):
    """TESLA: every gᵢ as a function of its images alone, θᵢ held fixed: θ_N = θ₀ − α Σ gᵢ(xᵢ, zᵢ; θᵢ).

    With Adam the sum is of what its moments make of these gᵢ.
    """
    setting = Setting(inner=inner)
    theta, moments = setting.theta, inner.initial_moments(setting.theta)
    for step in setting.steps:
        here = theta.detach().requires_grad_()
        x = augment.apply(setting.images[step.rows], step.drawing)
        loss = setting.loss(here, x, setting.logits[step.rows])
        (gradient,) = torch.autograd.grad(loss, here, create_graph=True)
        theta, moments = inner.step(theta, gradient, len(step.rows), moments, setting.alpha)
    tesla = torch.autograd.grad(
        (theta - setting.target).square().sum(), (setting.images, setting.logits, setting.alpha)
    )
    frozen = setting.gradients(adjoint="frozen")
    assert max(relative(frozen, tesla)) < 1e-12
    assert min(relative(frozen, setting.gradients())) > {SGD: 0.1, ADAM: 1e-3}[inner]


@BOTH
def test_frozen_equals_exact_for_one_step(inner):
    setting = Setting(steps=1, inner=inner)
    assert max(relative(setting.gradients(adjoint="frozen"), setting.gradients())) < 1e-14


@BOTH
def test_truncated_differentiates_the_last_steps_alone(inner):
    setting, tail = Setting(inner=inner), Setting(inner=inner)
    with torch.no_grad():
        tail.theta, tail.moments = setting.end(slice(5))
    tail.steps = setting.steps[5:]
    assert max(relative(setting.gradients(adjoint="truncated", last=3), tail.gradients(adjoint="direct"))) < 1e-12
    assert max(relative(setting.gradients(adjoint="truncated", last=8), setting.gradients())) < 1e-14


def test_truncated_takes_what_it_begins_with_as_a_constant():
    setting = Setting()
    setting.theta.requires_grad_()
    outer = setting.outer(adjoint="truncated", last=3)
    assert torch.autograd.grad(outer, setting.theta, allow_unused=True) == (None,)


def test_truncated_needs_a_length():
    with pytest.raises(PotstillError, match="last 1 to 8 steps; got last=9"):
        Setting().outer(adjoint="truncated", last=9)


@BOTH
def test_two_unrolls_are_one(inner):
    """θ and moments go from one to the next, forwards and, as λ, backwards."""
    setting = Setting(inner=inner)
    setting.theta.requires_grad_()
    whole = setting.gradients(LEAVES)
    theta, moments = setting.end(slice(5))
    second = unroll(
        theta, setting.images, setting.logits, setting.alpha, setting.steps[5:], setting.loss, inner=inner,
        moments=moments,
    )  # fmt: skip
    outer = (second - setting.target).square().sum()
    parts = torch.autograd.grad(outer, [getattr(setting, name) for name in LEAVES])
    assert max(relative(parts, whole)) < 1e-12


def test_gradient_in_the_moments_that_a_student_brings():
    setting = Setting("none", inner=ADAM)
    with torch.no_grad():
        theta, moments = setting.end(slice(3))
    setting.theta, setting.moments = theta, Moments(tuple(m.requires_grad_() for m in moments.vectors), moments.count)
    exact, direct = (
        torch.autograd.grad(setting.outer(adjoint=adjoint), setting.moments.vectors) for adjoint in ("exact", "direct")
    )
    assert max(relative(exact, direct)) < 1e-12


def test_moments_of_another_optimiser_or_network_are_refused():
    setting = Setting(inner=ADAM)
    setting.moments = Moments()
    with pytest.raises(PotstillError, match=r"moments of shapes \[\]: Adam carries 2 of"):
        setting.outer()
    setting.inner, setting.moments = SGD, ADAM.initial_moments(torch.zeros(3))
    with pytest.raises(PotstillError, match=r"moments of shapes \[\(3,\), \(3,\)\]: Sgd carries 0 of"):
        setting.outer()


@MICRO_BATCHES
@BOTH
def test_steps_along_curvature_are_exact_for_a_constant_map(inner, micro_batch):
    """Its gradient of either optimiser by the sweep, by the whole graph, and by finite differences."""
    setting = Setting()
    setting.theta.requires_grad_()
    hessian = _hessian(setting)
    random = torch.randn(len(hessian), 12, generator=seeds.generator(0, "test")).double()
    turn = low_rank(lambda v: hessian @ v, random, 8)
    setting.inner = Preconditioned(inner, turn)
    found = setting.gradients(LEAVES, micro_batch=micro_batch)
    assert max(relative(found, setting.gradients(LEAVES, adjoint="direct"))) < 1e-10
    for which, gradient in zip(LEAVES, found, strict=True):
        value, h = getattr(setting, which), 1e-6
        direction = torch.randn(value.shape, generator=seeds.generator(0, which)).to(value)
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                setattr(setting, which, value + sign * h * direction)
                ends.append(float(setting.outer()))
            setattr(setting, which, value)
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float((gradient * direction).sum()), rel=1e-5), which


def _hessian(setting):
    """Of the first batch's loss (P, P), by autograd."""
    step = setting.steps[0]
    x = augment.apply(setting.images.detach()[step.rows], step.drawing)
    z = setting.logits.detach()[step.rows]
    return torch.autograd.functional.hessian(lambda theta: setting.loss(theta, x, z), setting.theta.detach())


def test_dead_weights_give_finite_gradients_with_adam():
    """A first layer that no image can wake: its gradients are exactly 0, at every step."""
    setting = Setting("none", inner=Adam())
    weights = setting.network.unflatten(setting.theta)
    first = next(name for name in weights if name.endswith("bias"))
    weights[first].fill_(-100.0)  # a view of theta
    _, moments = setting.end()
    assert 0.1 < float((moments.vectors[1] == 0).double().mean()) < 1
    gradients = {adjoint: setting.gradients(adjoint=adjoint) for adjoint in ("exact", "direct", "frozen")}
    assert all(gradient.isfinite().all() for found in gradients.values() for gradient in found)
    assert not any(found[0].any() for found in gradients.values())  # the images: behind the dead layer
    assert max(relative(gradients["exact"][1:], gradients["direct"][1:])) < 1e-12


def test_adam_as_published_where_no_gradient_is_rounding_noise():
    setting = Setting("none", inner=Adam())
    assert max(relative(setting.gradients(), setting.gradients(adjoint="direct"))) < 1e-12


@BOTH
def test_the_start_may_be_overwritten_before_the_backward(inner):
    setting = Setting(inner=inner)
    expected = setting.gradients()
    outer = setting.outer()
    setting.theta.zero_()
    found = torch.autograd.grad(outer, (setting.images, setting.logits, setting.alpha))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_inner_loss_is_the_mean_soft_cross_entropy():
    setting = Setting(steps=1)
    step = setting.steps[0]
    x, z = augment.apply(setting.images[step.rows], step.drawing), setting.logits[step.rows]
    theta = setting.theta.clone().requires_grad_()
    mean = soft_cross_entropy(setting.network(theta, x), z.softmax(1)) / len(step.rows)
    (gradient,) = torch.autograd.grad(mean, theta)
    found = unroll(setting.theta, setting.images, setting.logits, setting.alpha, setting.steps, setting.loss)
    assert torch.allclose(found, setting.theta - setting.alpha * gradient, atol=1e-15)


class Counting:
    """Compiled derivatives, which count what they are given of what was kept."""

    def __init__(self, loss):
        self.inner, self.reused = compiled(loss), []

    def gradient(self, *given):
        return self.inner.gradient(*given)

    def directional(self, *given):
        self.reused.append(bool(given[-1]))
        return self.inner.directional(*given)


STEP_BYTES = 4768  # kept of a step of four images in float64


@pytest.mark.usefixtures("as_compiled")
@pytest.mark.parametrize("adjoint", [{}, {"adjoint": "frozen"}, {"adjoint": "truncated", "last": 3}])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("room", [0, 3 * STEP_BYTES, 2**29])
def test_the_sweep_uses_what_there_was_room_for_and_finds_the_rest_again(room, micro_batch, adjoint):
    setting = Setting()
    found = Counting(setting.loss)
    expected = setting.gradients(**adjoint)
    assert (
        max(relative(setting.gradients(derivatives=found, micro_batch=micro_batch, keep=room, **adjoint), expected))
        < 1e-10
    )
    parts = {None: 1, 1: 4, 3: 2}[micro_batch]
    kept = adjoint.get("last", 8) if room == 2**29 else room // STEP_BYTES
    assert found.reused == [False] * (parts * (adjoint.get("last", 8) - kept)) + [True] * (parts * kept)


@pytest.mark.usefixtures("as_compiled")
def test_what_is_kept_is_let_go_with_the_sweep_and_not_kept_where_no_gradient_can_follow():
    setting = Setting()
    found = Counting(setting.loss)
    outer = setting.outer(derivatives=found)
    first = torch.autograd.grad(outer, setting.images, retain_graph=True)
    again = torch.autograd.grad(outer, setting.images)
    assert found.reused == [True] * 8 + [False] * 8
    assert max(relative(again, first)) < 1e-12
    sizes = []
    sweep = _Sweep.forward
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(_Sweep, "forward", lambda self, *given: (sizes.append(self.room), sweep(self, *given))[1])
        setting.outer(derivatives=found)
    assert sizes == [0]


@pytest.mark.usefixtures("as_compiled")
@MICRO_BATCHES
def test_adam_with_derivatives_that_keep_residuals(micro_batch):
    setting = Setting(inner=ADAM)
    found = Counting(setting.loss)
    assert max(relative(setting.gradients(derivatives=found, micro_batch=micro_batch), setting.gradients())) < 1e-10
    assert all(found.reused)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float32(precision):
    """Loose bounds for a small network over many steps; float32 weights and sums keep the direction."""
    reference = Setting(dtype=torch.float32, steps=20, alpha=0.05)
    found = Setting(dtype=torch.float32, steps=20, alpha=0.05)
    found.network = replace(found.network, precision=precision)
    found.loss = label_loss(found.network)
    for low, full in zip(found.gradients()[:2], reference.gradients()[:2], strict=True):
        assert torch.nn.functional.cosine_similarity(low.flatten(), full.flatten(), 0) > 0.99


def test_bfloat16_keeps_the_direction_over_forty_steps_of_the_published_setting():
    """Ten images, depth 3, DSA, forty steps: the cosine to the float32 gradient that the design promises."""
    config, shape = NetworkConfig(width=64, depth=3), (3, 32, 32)
    full = flat.flat_network(config, shape, 10)
    theta = flat.initial(config, shape, 10, 0)
    draws = seeds.generator(0, "test")

    def drawn(steps, batch):
        return [InnerStep(torch.arange(batch), augment.draw(DSA, batch, shape[1:], draws)) for _ in range(steps)]

    real = torch.randn(40, 3, 8, 8, generator=draws).repeat_interleave(4, 2).repeat_interleave(4, 3)
    hard = 20 * torch.eye(10)[torch.arange(40) % 10]
    end = unroll(theta, real, hard, torch.tensor(0.01), drawn(60, 40), label_loss(full))
    steps, logits = drawn(40, 10), torch.randn(10, 10, generator=draws)

    def gradients(network):
        leaves = [tensor.clone().requires_grad_() for tensor in (real[:10] + 0.1, logits)]
        student = unroll(theta, *leaves, torch.tensor(0.01), steps, label_loss(network))
        return torch.autograd.grad((student - end).square().sum(), leaves)

    low = gradients(replace(full, precision=torch.bfloat16))
    of_images, of_logits = (
        float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0))
        for a, b in zip(low, gradients(full), strict=True)
    )
    assert of_images > 0.995
    assert of_logits > 0.9999


MEMORY = """
import resource, sys, torch
from potstill.data import augment
from potstill.networks import flat
from potstill.networks.architectures import NetworkConfig
from potstill.networks.losses import label_loss
from potstill.adjoint.inner import Adam
from potstill.adjoint.unroll import InnerStep, unroll
steps, width, side, batch = map(int, sys.argv[1:5])
how = eval(sys.argv[5])
config = NetworkConfig(width=width, depth=3)
network = flat.flat_network(config, (3, side, side), 10)
theta = flat.initial(config, (3, side, side), 10, 0)
images, logits = torch.randn(batch, 3, side, side, requires_grad=True), torch.randn(batch, 10, requires_grad=True)
alpha = torch.tensor(0.01, requires_grad=True)
drawn = [InnerStep(torch.arange(batch), augment.Drawing(None, torch.zeros(batch, 0)))] * steps
def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = resident()
for _ in range(2):
    end = unroll(theta, images, logits, alpha, drawn, label_loss(network), micro_batch=25, **how)
    torch.autograd.grad(end.square().sum(), (images, logits, alpha))
print(resident() - before, len(theta) * 4)
"""


def peak_memory(steps, width, side, batch, how="{}"):
    """Peak bytes of an unroll in a process of its own, and bytes of its weights."""
    arguments = [str(number) for number in (steps, width, side, batch)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments, how], capture_output=True, text=True, check=True
    )  # fmt: skip
    return map(int, done.stdout.split())


reads_memory = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")


@reads_memory
def test_memory_does_not_grow_with_steps_beyond_the_stored_weights():
    few, _ = peak_memory(10, 32, 32, 50)
    many, weights = peak_memory(100, 32, 32, 50)
    assert many <= 1.15 * few + 101 * weights


@reads_memory
@pytest.mark.parametrize("inner", ["", ", 'inner': Adam()"])
def test_memory_of_a_truncated_unroll_does_not_grow_with_steps(inner):
    """Ninety steps more would be ninety weight vectors more, and with Adam four times as many."""
    how = "{'adjoint': 'truncated', 'last': 5" + inner + "}"
    few, _ = peak_memory(10, 128, 8, 2, how)
    many, weights = peak_memory(100, 128, 8, 2, how)
    assert many <= few + 10 * weights
