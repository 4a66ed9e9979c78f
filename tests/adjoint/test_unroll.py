"""The adjoints against each other, against finite differences, and against TESLA's formula, in float64."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from potstill import seeds
from potstill.adjoint.derivatives import compiled
from potstill.adjoint.inner import Adam, Sgd
from potstill.adjoint.unroll import InnerStep, _Sweep, unroll, unroll_graph
from potstill.config import DSA, NetworkConfig
from potstill.data import augment
from potstill.errors import PotstillError
from potstill.networks import flat
from potstill.networks.losses import label_loss, soft_cross_entropy

SHAPE, CLASSES, N = (3, 8, 8), 5, 6


class Setting:
    """A student, a synthetic set and eight augmented mini-batches, in float64."""

    def __init__(self, norm="instance", steps=8, dtype=torch.float64, alpha=0.3, batch=4):
        config = NetworkConfig(width=4, depth=2, norm=norm)
        self.network = flat.flat_network(config, SHAPE, CLASSES)
        draws = seeds.generator(3, "test")
        self.theta = flat.initial(config, SHAPE, CLASSES, 1).to(dtype)
        self.target = self.theta + 0.05 * torch.randn(len(self.theta), generator=draws).to(dtype)
        self.images = torch.randn(N, *SHAPE, generator=draws).to(dtype).requires_grad_()
        self.logits = torch.randn(N, CLASSES, generator=draws).to(dtype).requires_grad_()
        self.alpha = torch.tensor(alpha, dtype=dtype, requires_grad=True)
        operations = itertools.cycle(DSA)
        self.steps = [
            InnerStep(torch.randperm(N, generator=draws)[:batch], augment.draw((op,), batch, SHAPE[1:], draws))
            for op, _ in zip(operations, range(steps), strict=False)
        ]
        self.loss = label_loss(self.network)

    def outer(self, **how):
        theta = unroll(self.theta, self.images, self.logits, self.alpha, self.steps, self.loss, **how)
        return (theta - self.target).square().sum()

    def gradients(self, **how):
        return torch.autograd.grad(self.outer(**how), (self.images, self.logits, self.alpha))


def relative(found, expected):
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


SMOOTH = Adam(eps=1e-3)  # the published one divides by roots near 0, which amplifies what rounding leaves
INNER = {Sgd(): 0.3, SMOOTH: 0.01}  # optimisers with a step size for each
inner_optimisers = pytest.mark.parametrize("inner", INNER, ids=["sgd", "adam"])


@inner_optimisers
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_exact_equals_direct(norm, micro_batch, inner):
    setting = Setting(norm, alpha=INNER[inner])
    exact, direct = (setting.gradients(inner=inner, micro_batch=micro_batch, adjoint=a) for a in ("exact", "direct"))
    assert max(relative(exact, direct)) < 1e-12


def test_exact_equals_direct_with_the_published_adam():
    setting = Setting(alpha=0.01)
    exact, direct = (setting.gradients(inner=Adam(), adjoint=adjoint) for adjoint in ("exact", "direct"))
    assert max(relative(exact, direct)) < 1e-8


@inner_optimisers
def test_exact_equals_direct_with_batch_norm(inner):
    setting = Setting("batch", alpha=INNER[inner])
    assert max(relative(setting.gradients(inner=inner), setting.gradients(adjoint="direct", inner=inner))) < 1e-10


@inner_optimisers
@pytest.mark.parametrize("which", ["images", "logits", "alpha", "theta"])
def test_exact_equals_finite_differences(which, inner):
    setting = Setting(alpha=INNER[inner])
    setting.theta.requires_grad_()
    setting.gradients = lambda **how: torch.autograd.grad(
        setting.outer(**how), (setting.images, setting.logits, setting.alpha, setting.theta)
    )
    setting.outer = lambda outer=setting.outer, **how: outer(inner=inner, **how)
    exact = dict(zip(("images", "logits", "alpha", "theta"), setting.gradients(micro_batch=3), strict=True))[which]
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


def test_frozen_is_teslas_formula_and_not_exact():
    """TESLA: every gᵢ as a function of its images alone, θᵢ held fixed: θ_N = θ₀ − α Σ gᵢ(xᵢ, zᵢ; θᵢ)."""
    setting = Setting()
    theta, total = setting.theta, torch.zeros_like(setting.theta)
    for step in setting.steps:
        here = theta.detach().requires_grad_()
        x = augment.apply(setting.images[step.rows], step.drawing)
        loss = setting.loss(here, x, setting.logits[step.rows]) / len(step.rows)
        (gradient,) = torch.autograd.grad(loss, here, create_graph=True)
        total = total + gradient
        theta = (theta - setting.alpha * gradient).detach()
    loss = (setting.theta - setting.alpha * total - setting.target).square().sum()
    tesla = torch.autograd.grad(loss, (setting.images, setting.logits, setting.alpha))
    frozen = setting.gradients(adjoint="frozen")
    assert max(relative(frozen, tesla)) < 1e-12
    assert min(relative(frozen, setting.gradients())) > 0.1


def test_frozen_equals_exact_for_one_step():
    setting = Setting(steps=1)
    assert max(relative(setting.gradients(adjoint="frozen"), setting.gradients())) < 1e-14


def test_truncated_differentiates_the_last_steps_alone():
    setting = Setting()
    begin = unroll(setting.theta, setting.images, setting.logits, setting.alpha, setting.steps[:5], setting.loss)
    tail = Setting()
    tail.theta, tail.steps = begin.detach(), setting.steps[5:]
    assert max(relative(setting.gradients(adjoint="truncated", last=3), tail.gradients(adjoint="direct"))) < 1e-12
    assert max(relative(setting.gradients(adjoint="truncated", last=8), setting.gradients())) < 1e-14


def test_truncated_adam_carries_its_moments_into_the_tail():
    setting, inner = Setting(alpha=0.01), SMOOTH
    leaves = setting.images, setting.logits, setting.alpha
    with torch.no_grad():
        theta, moments = setting.theta, inner.begin(setting.theta)
        for step in setting.steps[:5]:
            with torch.enable_grad():
                found, moments = unroll_graph(theta, *leaves, [step], setting.loss, inner, moments)
            theta, moments = found.detach(), tuple(moment.detach() for moment in moments)
    end, _ = unroll_graph(theta, *leaves, setting.steps[5:], setting.loss, inner, moments)
    direct = torch.autograd.grad((end - setting.target).square().sum(), leaves)
    truncated = setting.gradients(adjoint="truncated", last=3, inner=inner)
    assert max(relative(truncated, direct)) < 1e-10
    tail = Setting(alpha=0.01)
    tail.theta, tail.steps = theta, setting.steps[5:]
    assert max(relative(tail.gradients(inner=inner, moments=moments), direct)) < 1e-10


def test_dead_weights_leave_finite_gradients():
    """A weight whose gradient is always exactly 0: the root of Adam's second moment has no derivative there."""
    setting = Setting("none", alpha=0.01)
    kernel, bias = 3 * 9 * 4, 4  # of the first convolution; with so low a bias nothing passes the ReLU
    setting.theta[kernel : kernel + bias] = -100.0
    gradients = setting.gradients(inner=Adam())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert max(relative(gradients[1:], setting.gradients(inner=Adam(), adjoint="direct")[1:])) < 1e-10


def test_frozen_is_refused_with_adam():
    with pytest.raises(PotstillError, match="adjoint 'frozen' is TESLA's for SGD"):
        Setting().outer(inner=Adam(), adjoint="frozen")


def test_truncated_keeps_the_snapshots_of_its_tail_alone():
    for inner in INNER:
        setting = Setting()
        sweep = _Sweep(setting.steps, compiled(setting.loss), inner, inner.begin(setting.theta), None, 5, False, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda function, **_: function)
            _, tape = sweep.forward(setting.theta, setting.images, setting.logits, setting.alpha)
        kept = len(tape.snapshots), len(tape.residuals), len(tape.totals), len(tape.moments)
        assert kept == ((3, 3, 3, 3) if inner.keeps else (3, 3, 0, 0))


def test_truncated_needs_a_length():
    with pytest.raises(PotstillError, match="last 1 to 8 steps; got last=9"):
        Setting().outer(adjoint="truncated", last=9)


def test_gradient_in_the_start_of_the_student():
    setting = Setting()
    setting.theta.requires_grad_()
    exact, direct = (
        torch.autograd.grad(setting.outer(adjoint=adjoint), setting.theta)[0] for adjoint in ("exact", "direct")
    )
    assert relative([exact], [direct])[0] < 1e-12


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
        patch.setattr(_Sweep, "forward", lambda self, *given: (sizes.append(self.budget), sweep(self, *given))[1])
        setting.outer(derivatives=found)
    assert sizes == [0]


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
from potstill.networks import flat, losses
from potstill.config import NetworkConfig
from potstill.adjoint.unroll import InnerStep, unroll
steps = int(sys.argv[1])
config = NetworkConfig(width=32, depth=3)
network = flat.flat_network(config, (3, 32, 32), 10)
theta = flat.initial(config, (3, 32, 32), 10, 0)
images, logits = torch.randn(50, 3, 32, 32, requires_grad=True), torch.randn(50, 10, requires_grad=True)
alpha = torch.tensor(0.01, requires_grad=True)
drawn = [InnerStep(torch.arange(50), augment.Drawing(None, torch.zeros(50, 0)))] * steps
def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = resident()
for _ in range(2):
    end = unroll(theta, images, logits, alpha, drawn, losses.label_loss(network), micro_batch=25)
    torch.autograd.grad(end.square().sum(), (images, logits, alpha))
print(resident() - before, len(theta) * 4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_memory_does_not_grow_with_steps_beyond_the_stored_weights():
    peaks = {}
    for steps in (10, 100):
        printed = subprocess.run(
            [sys.executable, "-c", MEMORY, str(steps)], capture_output=True, text=True, check=True
        ).stdout
        peak, weights = map(int, printed.split())
        peaks[steps] = peak
    assert peaks[100] <= 1.15 * peaks[10] + 101 * weights
