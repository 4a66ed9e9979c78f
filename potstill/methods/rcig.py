"""RCIG: a linearised network trained to the end on the set should explain real images, by implicit gradients.

Loo et al., "Dataset Distillation with Convexified Implicit Gradients", ICML 2023.  With δ the solution of the inner
problem ℓ (``convex.py``), L the loss of real images there, g = ∂L/∂δ and H the Hessian of ℓ,

    dL/d(x, y) = ∂L/∂(x, y) − ∂⟨v, ∂ℓ/∂δ⟩/∂(x, y),    v = H⁻¹ g,

a direct part, through the ridge regression of the last layer, and an implicit one.  δ and v each take a few steps of
Adam from 0.  Their step sizes begin as the largest, to within a factor of 1.2, at which every step goes down.  Every 50
iterations each is lowered by a tenth where 29 % of its runs ended above their beginning, and raised by a twentieth
where 70 % went down at every step (the authors' code reviews only that of δ).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.bounds import Count, Fraction, Positive, Rate
from potstill.data import labels as kinds
from potstill.methods import frepo, initial, ridge
from potstill.methods.convex import InnerProblem, behaviour, descend, inner_problem, largest_falling, reviewed
from potstill.methods.method import Begun, Context, Memory, Method, Outcome, Probe, Start, Variables
from potstill.methods.outer import Rule, decay
from potstill.networks.flat import FlatNetwork
from potstill.networks.tangent import linearise, smoothed

STEP_SIZES, RUNS = "step_sizes", "runs"  # of δ and of v (2,); runs of each that rose, that fell, and all (2, 3)
SMALLEST = (1e-5, 5e-5)  # step sizes of δ and v with which the search begins
MARGIN = 0.5  # by which labels should be sure, in units of 1/K
TINY = 1e-30  # below any norm but 0
CHUNK = 128  # real images whose graph is held at once

Real = tuple[Tensor, Tensor]
"""Real images (b, C, H, W) and their centred labels (b, K)."""


@dataclass(frozen=True)
class Rcig:
    """Convexified implicit gradients."""

    iterations: Count = 500
    """Outer iterations (published: 10,000)."""
    real_batch: Count = 256
    """Real images an iteration; all of them where there are fewer (published: 1024)."""
    pool: Count = 10
    """Networks that train on the set as it is learned; a random one serves each iteration (published: 30)."""
    life: Count = 100
    """Steps of that training after which a fresh network replaces one."""
    pool_steps: Count = 15
    """Steps that a network takes at most after it has served; 1 to so many, at random."""
    pool_step_size: Positive = 5e-5
    """Their step size, by Adam on the squared error."""
    batch_size: Count = 500
    """Synthetic images a step of it."""
    inner_steps: Count = 20
    """Steps of Adam towards the solution δ of the inner problem."""
    solve_steps: Count = 20
    """Steps of Adam towards v, the inverse Hessian times the gradient of the real images' loss."""
    l2: Positive = 5e-4
    """Weight of the squared parameters in the inner loss, for each synthetic image."""
    softplus: Rate = 60.0
    """β of log(1 + exp(βx)) / β, which stands for ReLU while distilling; 0 keeps ReLU."""
    flip: bool = False
    """Train on the set and its mirror images, as published for colour images."""
    lr_images: Rate = 0.03
    """Outer learning rate of the images, by AdaBelief (published: 0.003)."""
    lr_labels: Rate = 0.03
    """Outer learning rate of the labels, by AdaBelief (published: 0.003)."""
    lr_temperature: Rate = 0.03
    """Outer learning rate of the logarithm of what outputs are multiplied by before the softmax."""
    cooldown: Fraction = 0.3
    """Last fraction of the iterations over which the rates fall to nothing; 0 keeps them, as published."""
    average: Fraction = 0.99
    """Decay of the moving averages of images and labels, which are the result; less in a short run, where they reach
    back over two fifths of the iterations at most."""
    initial: Literal["random", "noise"] = "random"
    """Begin with random real images, or with noise."""


def learns(settings: Rcig) -> dict[str, Rule]:
    """Images, labels and the temperature, by AdaBelief."""
    rates = {"images": settings.lr_images, "values": settings.lr_labels}
    average = decay(settings.average, settings.iterations)
    rules = {name: Rule(lr, "adabelief", cooldown=settings.cooldown, average=average) for name, lr in rates.items()}
    return {**rules, "temperature": Rule(settings.lr_temperature, "adabelief", cooldown=settings.cooldown)}


def begin(ctx: Context, settings: Rcig, start: Start | None) -> Begun:
    """Random real images or noise with centred one-hot labels, or a set that is there already; tuned step sizes."""
    images, labels = initial.images_and_labels(ctx, settings.initial, start)
    given = start or Start(images, None, "hard", labels, None)
    values = kinds.convert(given.targets, given.kind, labels, ctx.classes, "values").clone()
    variables = {"images": images, "values": values, "temperature": torch.zeros((), device=images.device)}
    memory = frepo.pool_of(ctx, settings.pool)
    memory[STEP_SIZES] = tuned_step_sizes(ctx, settings, variables, memory["theta.0"])
    memory[RUNS] = torch.zeros(2, 3, dtype=torch.int64)
    return Begun(variables, labels, memory)


@dataclass(frozen=True)
class Direct:
    """The inner problem's solution, the loss of real images there, and its gradient with δ held."""

    problem: InnerProblem
    leaves: tuple[Tensor, Tensor]  # images and values that the problem was made of
    delta: Tensor  # (P,)
    course: Tensor  # the inner loss before each step to δ
    loss: Tensor  # a scalar
    gradients: tuple[Tensor, Tensor, Tensor]  # in images, values and t
    of_delta: Tensor  # g (P,)


def direct(
    settings: Rcig, network: FlatNetwork, theta: Tensor, variables: Variables, real: Real, step_size: float
) -> Direct:  # fmt: skip
    """Solve the inner problem, and differentiate the loss of real images (b, C, H, W) with centred labels (b, K)."""
    problem, x, y = inner(settings, network, theta, variables)
    delta, course = descend(problem.loss, theta, settings.inner_steps, step_size)
    with torch.enable_grad():
        moved = delta.clone().requires_grad_()
        head, margin = problem.head(moved), ridge.unsureness(y, MARGIN)
        loss, at_delta, at_head, at_t = real_loss(network, theta, delta, head.detach(), variables["temperature"], real)
        through_head = (head * at_head).sum() + margin
    of_x, of_y, of_delta = torch.autograd.grad(through_head, (x, y, moved), retain_graph=True)
    return Direct(problem, (x, y), delta, course, (loss + margin).detach(), (of_x, of_y, at_t), at_delta + of_delta)


def inner(
    settings: Rcig, network: FlatNetwork, theta: Tensor, variables: Variables
) -> tuple[InnerProblem, Tensor, Tensor]:  # fmt: skip
    """The inner problem of the set, and the images and values that it is differentiable in."""
    x, y = (variables[name].detach().requires_grad_() for name in ("images", "values"))
    with torch.enable_grad():
        images, targets = frepo.with_mirrors(settings.flip, x, y)
        return inner_problem(network, theta, images, targets, settings.l2 * len(x)), x, y


def implicit(settings: Rcig, found: Direct, step_size: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """− ∂⟨v, ∂ℓ/∂δ⟩ in images and values, and the quadratic before each step to v."""
    v, course = descend(
        lambda v: found.problem.quadratic(v, found.of_delta), found.delta, settings.solve_steps, step_size
    )  # fmt: skip
    with torch.enable_grad():
        slope = -found.problem.slope_along(v, found.delta)
    return torch.autograd.grad(slope, found.leaves), course


def joined(by_direct: Tensor, by_implicit: Tensor) -> Tensor:
    """The gradient in one variable; the implicit part's norm is cut to that of the direct one (the authors' code)."""
    most = by_direct.norm() / by_implicit.norm().clamp_min(TINY)
    return by_direct + by_implicit * most.clamp_max(1.0)


def real_loss(
    network: FlatNetwork, theta: Tensor, delta: Tensor, head: Tensor, tau: Tensor, real: Real
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Mean cross-entropy of softmax(eᵗ (J δ + h W)), and its gradients in δ (P,), W (F, K) and t, of real images."""
    loss, of_delta = torch.zeros((), device=theta.device), torch.zeros_like(theta)
    leaves = [head.detach().requires_grad_(), tau.detach().requires_grad_()]
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    images, labels = real[0], real[1].argmax(1)
    for part, truth in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        tangent = linearise(network, theta, part)
        moved = tangent.times(delta).requires_grad_()
        outputs = moved + tangent.features.detach().double() @ leaves[0]
        own = F.cross_entropy(leaves[1].exp() * outputs, truth, reduction="sum") / len(images)
        of_outputs, *found = torch.autograd.grad(own, [moved, *leaves])
        of_delta += tangent.transposed(of_outputs)
        totals = [total + one for total, one in zip(totals, found, strict=True)]
        loss = loss + own.detach()
    return loss, of_delta, totals[0], totals[1]


def implicit_loss(
    ctx: Context, settings: Rcig, variables: Variables, memory: Memory, labels: Tensor, iteration: int
) -> Outcome:  # fmt: skip
    """Mean cross-entropy of real images, plus how unsure the labels are (its algorithm 1).

    The gradient enters autograd as L + ⟨g, x − x₀⟩ with x₀ = x held.  Steps of Adam are not linear in the real images:
    of several processes each computes the same, and gives its share.
    """
    number = int(torch.randint(settings.pool, (), generator=ctx.draws("network", iteration)))
    real, sizes = frepo.real_batch(ctx, settings.real_batch, iteration), memory[STEP_SIZES].tolist()
    network, theta = distilling_network(ctx, settings), memory[f"theta.{number}"]
    found = direct(settings, network, theta, variables, real, sizes[0])
    more, course = implicit(settings, found, sizes[1])
    *parts, of_t = found.gradients
    images, values = (joined(one, other) for one, other in zip(parts, more, strict=True))
    loss = found.loss.to(theta)
    for name, gradient in {"images": images, "values": values, "temperature": of_t}.items():
        loss = loss + (gradient * (variables[name] - variables[name].detach())).sum()
    after = _trained(settings, network, memory, number, variables, ctx.draws("batch", iteration))
    if int(after[frepo.STEPS][number]) >= settings.life:
        after = _replaced(ctx, after, number, iteration)
    after |= counted(memory, torch.stack([behaviour(found.course), behaviour(course)]))
    return Outcome(loss / ctx.world, after, {"inner_step_size": sizes[0], "solve_step_size": sizes[1]})


def counted(memory: Memory, runs: Tensor) -> Memory:
    """The step sizes after these runs (2, 3) too, and how they went; a checkpoint brings both to the device."""
    sizes, all_runs = reviewed(memory[STEP_SIZES].cpu(), memory[RUNS].cpu() + runs)
    return {STEP_SIZES: sizes, RUNS: all_runs}


def distilling_network(ctx: Context, settings: Rcig) -> FlatNetwork:
    """The network as it is linearised and trained here; evaluation keeps its ReLU."""
    return smoothed(ctx.problem.network, settings.softplus) if settings.softplus else ctx.problem.network


def _trained(
    settings: Rcig, network: FlatNetwork, memory: Memory, number: int, variables: Variables, draws: torch.Generator
) -> Memory:  # fmt: skip
    """The pool after the network that served trained on the set."""
    images, values = frepo.with_mirrors(settings.flip, variables["images"].detach(), variables["values"].detach())
    for _ in range(1 + int(torch.randint(settings.pool_steps, (), generator=draws))):
        rows = torch.randperm(len(images), generator=draws)[: settings.batch_size].to(images.device)
        memory = frepo.trained(network, memory, number, images[rows], values[rows], settings.pool_step_size)
    return memory


def _replaced(ctx: Context, memory: Memory, number: int, iteration: int) -> Memory:
    """The pool with a fresh network in the place of one."""
    steps = memory[frepo.STEPS].clone()
    steps[number] = 0
    return {**memory, frepo.STEPS: steps, **frepo.fresh(ctx, number, iteration)}


def tuned_step_sizes(ctx: Context, settings: Rcig, variables: Variables, theta: Tensor) -> Tensor:
    """Step sizes of δ and of v (2,), float64, with which to begin."""
    network, real = distilling_network(ctx, settings), frepo.real_batch(ctx, settings.real_batch, 0)
    problem, *_ = inner(settings, network, theta, variables)
    first = largest_falling(problem.loss, theta, settings.inner_steps, SMALLEST[0])
    found = direct(settings, network, theta, variables, real, first)
    second = largest_falling(
        lambda v: found.problem.quadratic(v, found.of_delta), theta, settings.solve_steps, SMALLEST[1]
    )  # fmt: skip
    return torch.tensor((first, second), dtype=torch.float64)


def probe(settings: Rcig) -> Probe:
    """One iteration as it is."""
    return Probe(settings, 1.0, 3 * settings.pool + 8)


def _cell(iterations: int, flip: bool = True, depth: int = 3) -> dict[str, Any]:
    """As its repository runs it; it says how many iterations for CIFAR-10 alone."""
    return {
        "iterations": iterations, "real_batch": 1024, "pool": 30, "lr_images": 3e-3, "lr_labels": 3e-3, "cooldown": 0.0,
        "flip": flip, "softplus": 60.0 if depth == 3 else 0.0,
        "transform": "zca", "network": {"name": "wide-convnet", "depth": depth, "norm": "none"},
    }  # fmt: skip


RCIG = Method(
    name="rcig", title="Convexified implicit gradients", family="kernel", batch_norm=False,
    citation='Loo et al., "Dataset Distillation with Convexified Implicit Gradients", ICML 2023', settings=Rcig,
    begin=begin, loss=implicit_loss, learns=learns, kind=lambda settings: "values",
    loss_label="cross-entropy of real images", probe=probe,
    metrics={"inner_step_size": "step size of the inner problem", "solve_step_size": "step size of the solve"},
    published={("cifar10", ipc): _cell(15_000 if ipc == 1 else 10_000) for ipc in (1, 10, 50)}
    | {("cifar100", ipc): _cell(10_000, ipc < 50) for ipc in (1, 10, 50)}
    | {("tiny-imagenet", ipc): _cell(10_000, ipc == 1, 4) for ipc in (1, 10)},
)  # fmt: skip
