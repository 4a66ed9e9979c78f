"""Backpropagation through training: networks trained on the synthetic set should explain real images.

RaT-BPTT (Feng et al., "Embarrassingly Simple Dataset Distillation", ICLR 2024) trains a fresh student on the set, and
differentiates the loss of real images through a window of its steps.  With a pool (FRePo; Zhou et al., NeurIPS 2022)
students continue from iteration to iteration, so that nearly all of their steps are differentiated ones: the form in
which a set that another method made is refined.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.adjoint import engine
from potstill.adjoint.inner import Adam, Sgd
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.bounds import Count, Fraction, Pictures, Positive, Rate, Whole
from potstill.data import augment
from potstill.data import labels as kinds
from potstill.data.augment import Operation
from potstill.data.labels import Kind, one_hot
from potstill.errors import PotstillError
from potstill.methods import initial, pool
from potstill.methods.method import (
    Begun,
    Context,
    Experts,
    Inner,
    Measuring,
    Memory,
    Method,
    Outcome,
    Probe,
    Start,
    Variables,
    below,
    shown,
)
from potstill.methods.outer import Rule, decay
from potstill.methods.rates import scale_free
from potstill.methods.trajectory import draw_steps
from potstill.networks.losses import loss_for

ADAM_STEP_SIZE, SGD_STEP_SIZE = 1e-3, 0.01  # of students, where the set brings none
PUBLISHED_WIDTH = 128  # of the students for which that of Adam is published
MOMENTUM = {"images": 0.5, "labels": 0.9, "step_size": 0.5}  # of outer SGD, as in matching
RELATIVE_ADAM_STEP = 0.055  # of the images' root mean square: 1e-3 at the published initial noise
LABELS_ADAM_STEP = 1e-3
REFINING_STEP = 0.25  # of the scale-free rates, where a set is refined by SGD


@dataclass(frozen=True)
class RatBptt:
    """Random truncated backpropagation through time."""

    iterations: Count = 1000
    """Outer iterations (published: tens of thousands, until stopped)."""
    unroll: Count = 200
    """Steps that a student takes at most (T)."""
    window: Count = 60
    """The last of them, which are differentiated (W)."""
    place: Literal["random", "end"] = "random"
    """random: the window ends after W to T steps, drawn anew for each pass over the real images; end: after T."""
    pool: Whole = 0
    """Students that continue from iteration to iteration, one in turn; 0: a fresh one each time, as published."""
    student_epochs: Whole | None = None
    """Students begin as one of the experts after 0 to so many epochs, drawn for each; 0: as they began. The experts
    train as long as --expert.epochs says. None: as fresh networks."""
    batch_size: Count = 100
    """Synthetic images an inner step; all of them where the set is smaller."""
    real_batch: Count = 5000
    """Real images whose loss is lowered."""
    augment_real: bool = True
    """Augment the real images as well."""
    augment_window: bool = True
    """Augment the synthetic images in the window too. False: its steps see the set as it is, and with a pool the
    student goes on from before them by as many augmented ones. Of a set that was refined the gradients of two
    iterations have nothing in common, without augmentation a seventh (records/cifar10-ipc1-gradient-noise.json)."""
    inner: Literal["adam", "sgd"] = "adam"
    """Optimiser of the students. sgd trains by the set's own step size, which is learned."""
    inner_step_size: Positive | None = None
    """Step size of the students. None: for adam 0.001 as published for networks 128 wide, inversely proportional to the
    width; for sgd that of the set, else 0.01."""
    initial: Literal["noise", "random"] = "noise"
    """Begin with noise or with random real images; a later stage begins with the set of the stage before."""
    pictures: Pictures = 1
    """f: f × f smaller pictures a slot, enlarged for training, which share the slot's label (IDC). What is kept and
    counted are the slots; a batch counts pictures."""
    labels: Literal["raw", "logits", "hard"] = "raw"
    """raw: weights of the log-probabilities, at least 0, whose sum is learned too; logits: soft labels; hard: fixed."""
    outer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the set."""
    lr_images: Rate | None = None
    """Outer rate of the images. None: for adam that by which a step moves them by 5.5 % of their size, as published;
    for sgd measured, for a first step of a little over one per cent."""
    lr_labels: Rate | None = None
    """Outer rate of the labels. None: 0.001 for adam, else measured."""
    lr_step_size: Rate | None = None
    """Outer rate of the students' step size, with sgd inside. None: measured."""
    clip: Positive | None = 2.0
    """The images' gradient is cut to this many times the moving average of its norm. None: never."""
    cooldown: Fraction = 0.0
    """Last fraction of the iterations over which the outer rates fall to nothing."""
    average: Fraction = 0.0
    """Decay of a moving average of all that is learned, which then is the result; less in a short run, where it reaches
    back over two fifths of the iterations at most. 0: what the last step left."""
    threshold: Rate | None = None
    """Losses above this, in units of what guessing gives, are not stepped on. None: all are."""


MEASURED = ("lr_images", "lr_labels", "lr_step_size")


def check(settings: RatBptt, method: str, augmented: tuple[Operation, ...]) -> None:
    """Refuse settings that contradict each other.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    if settings.window > settings.unroll:
        raise PotstillError(
            f"window {settings.window}: is among the {settings.unroll} steps of a student; lower --{method}.window, or "
            f"raise --{method}.unroll."
        )
    if settings.pool and settings.inner == "adam":
        raise PotstillError(
            f"pool {settings.pool}: students that continue keep no moments of Adam; take --{method}.inner sgd, or "
            f"--{method}.pool 0."
        )


def needs(settings: RatBptt) -> Experts | None:
    """The first snapshots of experts, where students begin as those; else none."""
    return None if settings.student_epochs is None else Experts(range(settings.student_epochs + 1))


def inner(settings: RatBptt) -> Inner:
    """The window's steps."""
    return Inner(settings.batch_size, settings.window)


def optimiser(settings: RatBptt) -> Adam | Sgd:
    """That of the students."""
    return Adam() if settings.inner == "adam" else Sgd()


def step_size_of(ctx: Context, settings: RatBptt, variables: Variables) -> Tensor:
    """The students' step size: the set's own where it is learned.

    A step of Adam moves every weight alike, so that what a unit computes changes with the number of its inputs:
    networks half as wide learn as fast with twice the step size (Yang et al., "Tensor Programs V", 2022).
    """
    if (own := variables.get("step_size")) is not None:
        return own
    narrowing = PUBLISHED_WIDTH / ctx.problem.network_config.width
    return torch.tensor(settings.inner_step_size or ADAM_STEP_SIZE * narrowing, device=ctx.problem.device)


def kind(settings: RatBptt) -> Kind:
    """As the settings say."""
    return settings.labels


def learns(settings: RatBptt) -> dict[str, Rule]:
    """Images, labels and, with SGD inside, the step size."""
    average = decay(settings.average, settings.iterations) or None

    def rule(lr: float | None, name: str, **more: Any) -> Rule:
        momentum = MOMENTUM[name] if settings.outer == "sgd" else 0.0
        return Rule(lr or 0.0, settings.outer, momentum=momentum, cooldown=settings.cooldown, average=average, **more)

    rules = {"images": rule(settings.lr_images, "images", clip=settings.clip)}
    if settings.labels != "hard":
        rules[settings.labels] = rule(settings.lr_labels, "labels", minimum=0.0 if settings.labels == "raw" else None)
    if settings.inner == "sgd":
        rules["step_size"] = rule(settings.lr_step_size, "step_size", positive=True)
    return rules


def begin(ctx: Context, settings: RatBptt, start: Start | None) -> Begun:
    """Noise or real images with one-hot labels; or a set that is there already."""
    device = ctx.problem.device
    images, classes = initial.images_and_labels(ctx, settings.initial, start, settings.pictures, initial.NOISE_NORM)
    if start is None:
        start = Start(images, None, "hard", classes, None)
    variables = {"images": images}
    if settings.labels != "hard":
        variables[settings.labels] = kinds.convert(
            start.targets, start.kind, start.labels, ctx.classes, settings.labels
        ).clone()  # fmt: skip
    if settings.inner == "sgd":
        step_size = settings.inner_step_size or start.step_size or SGD_STEP_SIZE
        variables["step_size"] = torch.tensor(step_size, device=device)
    spread = settings.unroll - settings.window
    memory = pool.init_pool(settings.pool, spread, device) if settings.pool else {}
    return Begun(variables, classes, memory)


def real_loss(
    ctx: Context, settings: RatBptt, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Cross-entropy of a batch of real images after a student's steps, as a fraction of log K, which guessing gives.

    Of the steps the last ``window`` are differentiated.  Several processes take the same steps and share the real
    images.
    """
    draws = ctx.draws("student", iteration)
    theta, taken, lead = _student(ctx, settings, memory, iteration, draws)
    images, targets = shown(variables, labels, ctx.classes, settings.pictures)
    walk = partial(
        unroll, images=images, targets=targets,
        step_size=step_size_of(ctx, settings, variables), loss=loss_for(ctx.problem.network, kind(settings)),
        inner=optimiser(settings), derivatives=ctx.derivatives, micro_batch=ctx.micro_batch,
    )  # fmt: skip
    steps, before = _steps(ctx, settings, lead, len(images), draws), theta
    if settings.pool and not settings.augment_window:  # the student goes on from before the window
        with torch.no_grad():
            before = walk(theta, steps=steps[:lead]) if lead else theta
        steps = steps[lead:]
    theta = walk(before, steps=steps, adjoint="truncated", last=settings.window)
    taken += lead + settings.window
    real, truth = real_batch(ctx, settings, draws)
    loss = mean_loss(ctx, theta, real, truth) / math.log(ctx.classes)
    value = ctx.total(float(loss.detach()))
    accept = math.isfinite(value) and below(value, settings.threshold)
    if not settings.pool:
        return Outcome(loss, metrics={"steps_taken": taken}, accept=accept or not math.isfinite(value))
    number = iteration % settings.pool
    fresh = pool.reset(memory, number)  # a student whose iteration is not stepped on would come again
    going = taken + settings.window <= settings.unroll and accept
    goes_on = (theta.detach(), taken) if settings.augment_window else (before, taken - settings.window)
    after = pool.advance(memory, number, *goes_on) if going else fresh
    return Outcome(loss, after, {"steps_taken": taken}, accept or not math.isfinite(value), refused_memory=fresh)


def _steps(ctx: Context, settings: RatBptt, lead: int, n: int, draws: torch.Generator) -> list[InnerStep]:
    """The steps before the window, and those in it."""
    if settings.augment_window:
        return draw_steps(ctx, settings.batch_size, lead + settings.window, n, draws)
    before = draw_steps(ctx, settings.batch_size, lead, n, draws)
    return before + draw_steps(replace(ctx, augment=()), settings.batch_size, settings.window, n, draws)


def _student(
    ctx: Context, settings: RatBptt, memory: Memory, iteration: int, draws: torch.Generator
) -> tuple[Tensor, int, int]:  # fmt: skip
    """The student of an iteration: θ (P,), steps taken, and steps to take before the window."""
    if not settings.pool:
        most = settings.unroll - settings.window
        passes = iteration * settings.real_batch // len(ctx.problem.train.labels)
        drawn = int(torch.randint(most + 1, (), generator=ctx.draws("window", passes)))
        return beginning(ctx, settings, iteration), 0, drawn if settings.place == "random" else most
    found = pool.student(memory, iteration % settings.pool)
    if found.theta is not None:
        return found.theta, found.steps, 0 if settings.augment_window else settings.window
    room = settings.unroll - settings.window - found.warm_up + 1
    least = int(not settings.augment_window and room > 1)  # there it goes on from before the window
    most = max(min(settings.window, room), least + 1)
    lead = found.warm_up + int(torch.randint(least, most, (), generator=draws))
    return beginning(ctx, settings, iteration), 0, lead


def beginning(ctx: Context, settings: RatBptt, iteration: int) -> Tensor:
    """Parameters (P,) of a student that has not seen the set yet."""
    if settings.student_epochs is None:
        return ctx.fresh("student network", iteration)
    assert ctx.experts is not None
    draws = ctx.draws("student network", iteration)
    expert, epoch = (
        int(torch.randint(n, (), generator=draws)) for n in (ctx.expert_count, settings.student_epochs + 1)
    )
    return ctx.experts.snapshot(expert, epoch)[0].to(ctx.problem.device)


def real_batch(ctx: Context, settings: RatBptt, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random real images (b, C, H, W) and their one-hot labels (b, K)."""
    split = ctx.problem.train
    count = min(settings.real_batch, len(split.labels))
    rows = torch.randint(len(split.labels), (count,), generator=draws).to(ctx.problem.device)
    images = split.images[rows]
    if settings.augment_real:
        drawing = augment.draw(ctx.augment, count, (images.shape[2], images.shape[3]), draws)
        images = augment.apply(images, drawing.to(ctx.problem.device))
    return images, one_hot(split.labels[rows], ctx.classes)


def mean_loss(ctx: Context, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, once differentiable in ``theta`` (P,), of this process's share of the images.

    The graph of a few images is held at once.  With batch norm, which couples the images of a batch, of all of them.
    Compiled where the inner steps are, which take about as long.
    """
    size = engine.even_part(len(images), ctx.problem.at_once)
    parts = [*zip(images.split(size), targets.split(size), strict=True)]
    return engine.mean_loss(ctx.problem.network, theta, ctx.mine(parts), len(images), ctx.derivatives.compiled)


def measure_with(loss: Callable[..., Outcome], rules: Callable[[Any], dict[str, Rule]]) -> Callable[..., Measuring]:
    """How a method of this family finds the outer rates that are None: relative to what they move."""

    def measure(
        ctx: Context, settings: RatBptt, begun: Begun, trial: Any, record: dict[str, Any], save: Callable[[], None]
    ) -> Measuring:  # fmt: skip
        began = time.monotonic()
        fields = {name: "lr_labels" if name == settings.labels else f"lr_{name}" for name in rules(settings)}
        missing = [name for name, field in fields.items() if getattr(settings, field) is None]
        if settings.outer == "adam":
            rms = float(begun.variables["images"].square().mean().sqrt())
            adam = {
                "images": RELATIVE_ADAM_STEP * rms,
                settings.labels: LABELS_ADAM_STEP,
                "step_size": LABELS_ADAM_STEP,
            }
            rates = {name: adam[name] for name in missing}
        else:
            found = scale_free(ctx, settings, begun, loss, missing) if missing else {}
            rates = {name: REFINING_STEP * rate for name, rate in found.items()}
        unused: dict[str, Any] = {field: 0.0 for field in MEASURED if getattr(settings, field) is None}
        record["seconds"] = record.get("seconds", 0.0) + time.monotonic() - began
        return replace(settings, **{**unused, **{fields[name]: rate for name, rate in rates.items()}}), None
        yield {}  # what measures is a generator; this one has nothing to tell on the way

    return measure


def probe(settings: RatBptt) -> Probe:
    """One iteration with a window of two steps, without steps before it, and with as many fewer real images."""
    few = min(2, settings.window)
    times = (settings.window + _leading(settings) / 3) / few  # one that is not differentiated costs a third
    rates: dict[str, Any] = {name: getattr(settings, name) or 0.0 for name in MEASURED}
    real = max(1, round(settings.real_batch / times))
    cheaper = replace(settings, window=few, unroll=few, pool=0, real_batch=real, **rates)
    warm_up = _warm_up(settings) / 3 / (few * times)
    return Probe(cheaper, times, settings.window + 2 + settings.pool, measuring=warm_up)


def _leading(settings: RatBptt) -> float:
    """Steps before the window that an iteration takes on average, apart from those of the first students."""
    spread = settings.unroll - settings.window
    if not settings.pool:
        return spread if settings.place == "end" else spread / 2
    first = (min(settings.window, spread + 1) - 1) / 2  # of a fresh student
    windows = max(1, int((settings.unroll - first) // settings.window))  # before the next fresh one
    again = 0 if settings.augment_window else settings.window
    return (first + (windows - 1) * again) / windows


def _warm_up(settings: RatBptt) -> float:
    """Steps by which the first students of a pool are spread, all together."""
    students = min(settings.pool, settings.iterations)
    spread = settings.unroll - settings.window
    return spread * students * (students - 1) / 2 / settings.pool if students else 0.0


def _cell(unroll: int, window: int, lr: float, labels: str, batch: int, place: str = "random") -> dict[str, Any]:
    return {
        "iterations": 100_000, "unroll": unroll, "window": window, "place": place, "lr_images": lr, "lr_labels": lr,
        "labels": labels, "batch_size": batch, "transform": "zca-image", "network": {"depth": 3},
        "augment": ("flip", "rotate"),
    }  # fmt: skip


IN_MINUTES: dict[str, Any] = {"real_batch": 500, "cooldown": 0.5}
_DIGITS: dict[int, dict[str, Any]] = {  # chosen on validation images
    1: {**IN_MINUTES, "iterations": 200, "unroll": 100, "window": 40, "inner_step_size": 1e-3},
    10: {**IN_MINUTES, "iterations": 400, "unroll": 32, "window": 16, "inner_step_size": 0.01, "initial": "random"},
}

RAT_BPTT = Method(
    name="rat-bptt",
    title="Random truncated backpropagation through time",
    family="backpropagation",
    citation='Feng et al., "Embarrassingly Simple Dataset Distillation", ICLR 2024',
    settings=RatBptt,
    begin=begin,
    loss=real_loss,
    learns=learns,
    needs=needs,
    inner=inner,
    kind=kind,
    check=check,
    loss_label="loss of real images (1: guessing)",
    metrics={"steps_taken": "steps the student has taken"},
    measured=MEASURED,
    measure=measure_with(real_loss, learns),
    probe=probe,
    published={
        ("cifar10", 10): _cell(200, 60, 1e-3, "hard", 100),
        ("cifar100", 1): _cell(130, 90, 3e-4, "raw", 100, "end"),
        ("cifar100", 10): _cell(300, 100, 1e-3, "raw", 100),
    },
    tuned={("digits", ipc): cell for ipc, cell in _DIGITS.items()},
    refining={
        "iterations": 60, "unroll": 400, "window": 20, "pool": 8, "real_batch": 500, "augment_real": False,
        "inner": "sgd", "labels": "logits", "outer": "sgd", "clip": None, "cooldown": 0.5, "threshold": 1.0,
    },
)  # fmt: skip
