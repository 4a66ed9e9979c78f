"""Trajectory matching: the student's path over the synthetic set should end where the expert's did.

    L = ‖θ_N − θ*ₜ₊ₘ‖² / ‖θ*ₜ − θ*ₜ₊ₘ‖²

Four methods are settings of it.  MTT (Cazenavette et al., CVPR 2022) learns images with hard labels.  TESLA (Cui et
al., ICML 2023) holds λ fixed in the sweep.  FTD (Du et al., CVPR 2023) follows flat experts, and its result is a moving
average of the images.  DATM (Guo et al., ICLR 2024) chooses which start epochs to match, and learns soft labels.
"""

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from potstill.adjoint.unroll import InnerStep, unroll
from potstill.bounds import Count, Fraction, Pictures, Positive, Rate, Whole
from potstill.data import augment
from potstill.data import labels as kinds
from potstill.data.augment import Operation
from potstill.data.distilled import decode
from potstill.data.labels import Kind
from potstill.errors import PotstillError
from potstill.methods import initial, lines, mask, scores, start_epochs
from potstill.methods.method import (
    Begun,
    Context,
    Experts,
    Inner,
    Outcome,
    Start,
    Variables,
    below,
    nothing,
    shown,
)
from potstill.methods.outer import Rule, decay
from potstill.methods.scores import Score
from potstill.methods.selection import rows_of
from potstill.methods.soft_labels import mean_logits
from potstill.methods.start_epochs import StartEpochs
from potstill.networks.losses import loss_for

logger = logging.getLogger(__name__)
FROZEN = "frozen"  # in the memory: slots (n,) that stay as they are
MOMENTUM = {"images": 0.5, "logits": 0.9, "step_size": 0.5}  # published
INNER_STEPS, EXPERT_EPOCHS, STEP_SIZE = 40, 2, 0.01  # where neither a cell nor a measurement says


@dataclass(frozen=True)
class Datm:
    """Difficulty-aligned trajectory matching."""

    iterations: Count = 1000
    """Outer iterations."""
    segments: Count = 1
    """Segments of experts that an iteration follows, by the mean of their losses; several processes share them."""
    start_epochs: tuple[Whole, Whole] | None = None
    """The difficulty: the first start epoch (T minus), and one past the last (T plus). None: found by measuring which
    part of the trajectories a set of this size can follow."""
    opening: tuple[Whole, Whole] | None = None
    """One past the last start epoch at iteration 0 (T), and the iterations over which it grows to T plus. None: all
    start epochs from the beginning."""
    inner_steps: Count | None = None
    """Steps the student takes (N). None: measured together with the start epochs, else 40."""
    expert_epochs: Count | None = None
    """Epochs of the expert that those steps should cover (M). None: measured with the start epochs, else 2."""
    batch_size: Count = 100
    """Synthetic images an inner step; all of them where the set is smaller."""
    step_size: Positive | None = None
    """Initial value of the learned inner step size. None: measured with the start epochs, else 0.01."""
    lr_images: Rate | None = None
    """Outer learning rate of the images. None: measured, so that a first step moves them by a twentieth of their
    size."""
    lr_logits: Rate | None = None
    """Outer learning rate of the label logits. None: measured, for a first step of a two-hundredth."""
    lr_step_size: Rate | None = None
    """Outer learning rate of the inner step size; 0 keeps it fixed. None: measured, for a first step of a fiftieth."""
    cooldown: Fraction | None = None
    """Last fraction of the iterations over which the outer rates fall to nothing; 0 keeps them, as published. Helps
    where iterations are few and rates high: at a constant rate the images end in its noise. None: a half."""
    pictures: Pictures = 1
    """f: f × f smaller pictures a slot, enlarged for training, which share the slot's label (IDC); at first the mean
    of their own. What is kept and counted are the slots; a batch counts pictures."""
    flip: bool = False
    """Match each expert as often mirrored left to right, which makes two of one at no expense; where flip is an
    augmentation."""
    threshold: Rate | None = 1.0
    """Matching losses above this are not stepped on. None: all are."""
    initial: Literal["correct", "random"] = "correct"
    """Begin with real images that the first expert classifies correctly, or with any."""
    labels: Literal["learned", "soft", "hard"] = "learned"
    """learned: soft labels of the experts, then learned; soft: the same, kept fixed; hard: one class each, fixed."""
    label_experts: Count | None = None
    """Experts whose logits start the labels: the mean of those that are right. None: all experts."""
    adjoint: Literal["exact", "direct", "frozen"] = "exact"
    """Gradient of the unroll: exact in constant memory, the whole graph, or TESLA's approximation."""
    path: Literal["snapshots", "lines"] = "snapshots"
    """What is followed: the experts' snapshots, or straight lines between their first and last ones (MCT)."""
    mask: Literal["error", "shallow"] = "error"
    """Weights that are not matched (PAD): those that the student meets best, as in its code, or shallow layers, as in
    its paper."""
    mask_ratio: Fraction = 0.0
    """Part of the weights, or of the layers, that is not matched."""
    average: Fraction = 0.0
    """Decay of a moving average of the images, which then is the result (FTD); less in a short run, where it reaches
    back over two fifths of the iterations at most. 0: the images themselves."""
    rho: Rate | None = None
    """Radius of the experts' flat recipe (FTD). None: what --expert.rho says."""


@dataclass(frozen=True)
class Mtt(Datm):
    """Trajectory matching with hard labels, from any real images."""

    iterations: Count = 5000
    cooldown: Fraction | None = 0.0
    threshold: Rate | None = None
    initial: Literal["correct", "random"] = "random"
    labels: Literal["learned", "soft", "hard"] = "hard"
    rho: Rate | None = 0.0


@dataclass(frozen=True)
class Tesla(Mtt):
    """Trajectory matching in constant memory by a gradient that leaves out how later weights depend on earlier
    images."""

    iterations: Count = 10_000
    adjoint: Literal["exact", "direct", "frozen"] = "frozen"


@dataclass(frozen=True)
class Ftd(Mtt):
    """Trajectory matching of flat experts; the result is a moving average of the images."""

    average: Fraction = 0.9995
    rho: Rate | None = 0.01


@dataclass(frozen=True)
class Mct(Mtt):
    """Trajectory matching along straight lines."""

    path: Literal["snapshots", "lines"] = "lines"


@dataclass(frozen=True)
class Pad(Datm):
    """Difficulty-aligned matching of the weights that matter."""

    mask_ratio: Fraction = 0.5
    curriculum: bool | None = True
    """Experts that see easy images first, and at last not the easiest. None: what --expert.curriculum says."""


@dataclass(frozen=True)
class SelMatch(Mtt):
    """Trajectory matching of a part of a selection, the harder rest of which stays real."""

    distilled: Fraction = 0.2
    """Part of the images that is learned (α): the easier ones."""
    skip: Rate | None = None
    """The hardest images of a class that are left out, in images per class (β; published for 25 and more). None: half
    of the class, because the hardest of thousands are of little use where few images are kept."""
    score: Score = "el2n"
    """How hard an image is: el2n, grand, forgetting or aum."""


Trajectory = Datm
"""Settings of any method of the family."""


def span_of(settings: Trajectory) -> int:
    """Epochs of the expert that a segment covers (M)."""
    return EXPERT_EPOCHS if settings.expert_epochs is None else settings.expert_epochs


def steps_of(settings: Trajectory) -> int:
    """Steps the student takes (N)."""
    return INNER_STEPS if settings.inner_steps is None else settings.inner_steps


def step_size_of(settings: Trajectory) -> float:
    """The student's step size before the first iteration."""
    return STEP_SIZE if settings.step_size is None else settings.step_size


def range_of(settings: Trajectory) -> StartEpochs | None:
    """The start epochs that may be drawn; None where they are still to be measured."""
    if settings.start_epochs is None:
        return None
    return StartEpochs(*settings.start_epochs, *(settings.opening or ()))


def check(settings: Trajectory, method: str, augmented: tuple[Operation, ...]) -> None:
    """Refuse settings that contradict each other; ``method`` names their flags.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    start = range_of(settings)
    if start is not None:
        start_epochs.check(start, span_of(settings), method)
    elif settings.opening is not None:
        raise PotstillError(
            f"opening {settings.opening}: needs the start epochs it grows to; add --{method}.start-epochs."
        )
    if settings.flip and "flip" not in augmented:
        raise PotstillError("flip: the experts see no mirrored images; leave it out, or augment by flip.")
    if settings.pictures > 1 and isinstance(settings, SelMatch):
        raise PotstillError(
            f"pictures {settings.pictures}: {method} keeps real images whole; take --{method}.pictures 1, or another "
            "method."
        )


def needs(settings: Trajectory) -> Experts:
    """Experts, with the snapshots at which segments begin and end."""
    start = range_of(settings)
    if start is None or settings.path == "lines":
        return Experts(None, settings.rho, reach_of(settings))
    return Experts(start.epochs(span_of(settings)), settings.rho)


def pad_needs(settings: Pad) -> Experts:
    """Experts as for DATM, by their curriculum."""
    return replace(needs(settings), curriculum=settings.curriculum)


def reach_of(settings: Trajectory) -> int:
    """The last epoch that a segment may end at; 0 where start epochs are still to be measured."""
    start = range_of(settings)
    return start.epochs(span_of(settings))[-1] if start else 0


def inner(settings: Trajectory) -> Inner:
    """The student's steps."""
    return Inner(settings.batch_size, steps_of(settings))


def kind(settings: Trajectory) -> Kind:
    """Labels are logits, learned or kept, or hard."""
    return "hard" if settings.labels == "hard" else "logits"


def learns(settings: Trajectory) -> dict[str, Rule]:
    """Images, the step size, and the labels where they are learned, by SGD with momentum as published."""
    cooldown = settings.cooldown or 0.0
    rules = {"images": Rule(settings.lr_images or 0.0, momentum=MOMENTUM["images"], cooldown=cooldown,
                            average=decay(settings.average, settings.iterations) or None)}  # fmt: skip
    if settings.labels == "learned":
        rules["logits"] = Rule(settings.lr_logits or 0.0, momentum=MOMENTUM["logits"], cooldown=cooldown)
    rules["step_size"] = Rule(
        settings.lr_step_size or 0.0, momentum=MOMENTUM["step_size"], positive=True, cooldown=cooldown
    )
    return rules


@torch.no_grad()
def begin(ctx: Context, settings: Trajectory, start: Start | None) -> Begun:
    """Real images, labelled by the experts that classify them correctly; or a set that is there already."""
    _warn_of_idle(ctx, settings)
    step_size = torch.tensor(step_size_of(settings), device=ctx.problem.device)
    if start is not None:
        return _continue(ctx, settings, start, step_size)
    f = settings.pictures
    rows = initial.correct_rows(ctx, f) if settings.initial == "correct" else initial.random_rows(ctx, f)
    images, labels = initial.tiles(ctx, rows, f), ctx.problem.train.labels[rows[:: f**2]].clone()
    variables = {"images": images, "step_size": step_size}
    if kind(settings) == "logits":
        variables["logits"] = _expert_labels(ctx, settings, images, labels)
    return Begun(variables, labels)


def begin_partly(ctx: Context, settings: SelMatch, start: Start | None) -> Begun:
    """IPC images of each class that follow the hardest ones; the easier of them are learned, the others stay."""
    if start is not None:
        return begin(ctx, settings, start)
    _warn_of_idle(ctx, settings)
    hardness, labels, rows, frozen = scores.hardness(ctx, settings.score, None), ctx.problem.train.labels, [], []
    for label in range(ctx.classes):
        own = rows_of(ctx, label)
        order = own[hardness[own.cpu()].argsort(descending=True, stable=True).to(own.device)]
        skipped = len(order) // 2 if settings.skip is None else int(settings.skip * ctx.ipc)
        first = min(skipped, len(order) - ctx.ipc)
        rows.append(order[first : first + ctx.ipc])
        frozen.append(torch.arange(ctx.ipc) < ctx.ipc - max(1, int(settings.distilled * ctx.ipc)))
    chosen = torch.cat(rows)
    images, truth = ctx.problem.train.images[chosen].clone(), labels[chosen].clone()
    variables = {"images": images, "step_size": torch.tensor(step_size_of(settings), device=ctx.problem.device)}
    if kind(settings) == "logits":
        variables["logits"] = _expert_labels(ctx, settings, images, truth)
    return Begun(variables, truth, {FROZEN: torch.cat(frozen).to(images.device)})


def _warn_of_idle(ctx: Context, settings: Trajectory) -> None:
    """Say so where there are more processes than segments for them."""
    if ctx.world > settings.segments:
        name, few = type(settings).__name__.lower(), settings.segments
        logger.warning(
            "%s: of %d processes only %d will distil, a segment each in an iteration; give --%s.segments %d, or a "
            "multiple of it.", name, ctx.world, few, name, ctx.world,
        )  # fmt: skip


def partial_needs(settings: SelMatch) -> Experts:
    """Experts, with all snapshots: how hard images are is seen on their way."""
    return Experts(None, settings.rho, reach_of(settings))


def _continue(ctx: Context, settings: Trajectory, start: Start, step_size: Tensor) -> Begun:
    """A set that is there already, its labels in this method's kind."""
    if settings.step_size is None and start.step_size is not None:
        step_size = torch.full_like(step_size, start.step_size)
    variables = {"images": start.images.clone(), "step_size": step_size}
    if kind(settings) == "logits":
        variables["logits"] = kinds.convert(start.targets, start.kind, start.labels, ctx.classes, "logits")
    return Begun(variables, start.labels.clone())


def _expert_labels(ctx: Context, settings: Trajectory, images: Tensor, labels: Tensor) -> Tensor:
    assert ctx.experts is not None
    count, per_slot = min(settings.label_experts or ctx.expert_count, ctx.expert_count), settings.pictures**2
    pictures, truth = decode(images, settings.pictures), labels.repeat_interleave(per_slot)
    return mean_logits(ctx.problem, ctx.experts, count, pictures, truth).unflatten(0, (-1, per_slot)).mean(1)


@dataclass(frozen=True)
class Segment:
    """A part of an expert's path, and what else is drawn for a student that follows it."""

    expert: int
    start: int  # epoch
    draws: torch.Generator


def draw_segment(ctx: Context, settings: Trajectory, iteration: int, number: int) -> Segment:
    """The segment of that number in an iteration."""
    draws = ctx.draws("segment", iteration, *([number] if number else []))
    chosen = range_of(settings)
    assert chosen is not None
    expert = int(torch.randint(ctx.expert_count, (), generator=draws))
    return Segment(expert, chosen.draw(iteration, draws), draws)


def matching_loss(
    ctx: Context, settings: Trajectory, variables: Variables, memory: dict[str, Tensor], labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """The mean L of the drawn segments, accepted up to the threshold.

    Expert, start epoch, batches and augmentations come from (seed, iteration, number of the segment) alone, so any
    iteration can be replayed.  Several processes share the segments; the metrics are those of the first segment.
    """
    drawn = [draw_segment(ctx, settings, iteration, number) for number in ctx.mine(range(settings.segments))]
    losses = [segment_loss(ctx, settings, variables, memory, labels, segment) for segment in drawn]
    loss = sum(losses[1:], losses[0]) / settings.segments if losses else nothing(variables)
    metrics = {"expert": drawn[0].expert, "start_epoch": drawn[0].start} if drawn else {}
    return Outcome(loss, memory, metrics, below(ctx.total(float(loss.detach())), settings.threshold))


def segment_loss(
    ctx: Context, settings: Trajectory, variables: Variables, memory: dict[str, Tensor], labels: Tensor,
    segment: Segment,
) -> Tensor:  # fmt: skip
    """L of one segment.

    With ``flip`` the student sees the set mirrored for half of the segments, which is the same as following the
    expert's mirror image: one that started from mirrored weights on mirrored data.
    """
    begin, end = (x.to(ctx.problem.device) for x in _snapshots(ctx, settings, segment.expert, segment.start))
    draws = segment.draws
    images, targets = shown(variables, labels, ctx.classes, settings.pictures)
    if FROZEN in memory:  # real images, which the student sees and nothing moves
        images = torch.where(memory[FROZEN].view(-1, 1, 1, 1), images.detach(), images)
    steps = draw_steps(ctx, settings.batch_size, steps_of(settings), len(images), draws)
    if settings.flip and bool(torch.randint(2, (), generator=draws)):
        images = images.flip(3)
    theta = unroll(
        begin, images, targets, variables["step_size"], steps, loss_for(ctx.problem.network, kind(settings)),
        adjoint=settings.adjoint, derivatives=ctx.derivatives, micro_batch=ctx.micro_batch,
    )  # fmt: skip
    missed, way = (theta - end).square(), (begin - end).square()
    if settings.mask_ratio:
        counted = mask.weights_of(ctx.problem.network.shapes, missed.detach(), settings.mask, settings.mask_ratio)
        missed, way = missed * counted, way * counted
    return missed.sum() / way.sum()


def _snapshots(ctx: Context, settings: Trajectory, expert: int, start: int) -> tuple[Tensor, Tensor]:
    """Where the student starts (P,), and where it should arrive."""
    assert ctx.experts is not None
    if settings.path == "lines":
        return lines.segment(ctx, expert, start, start + span_of(settings))
    return ctx.experts.segment(expert, start, span_of(settings))


def draw_steps(ctx: Context, batch_size: int, count: int, n: int, draws: torch.Generator) -> list[InnerStep]:
    """The batches of a student: the set in random order, again and again, in whole batches, each augmented."""
    device, size = ctx.problem.device, ctx.problem.dataset.shape[1:]
    steps: list[InnerStep] = []
    while len(steps) < count:
        for rows in torch.randperm(n, generator=draws).split(min(batch_size, n)):
            drawing = augment.draw(ctx.augment, len(rows), size, draws)
            steps.append(InnerStep(rows.to(device), drawing.to(device)))
    return steps[:count]
