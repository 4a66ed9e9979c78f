"""What a run would cost, from a few timed steps of each stage on this machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from potstill import machine, seeds
from potstill.adjoint import engine
from potstill.adjoint.chain import bytes_of
from potstill.adjoint.unroll import KEEP_BYTES, unroll
from potstill.config import Config
from potstill.evaluation.protocol import protocol_of
from potstill.evaluation.tuning import TRIED_FRACTIONS
from potstill.machine import timed
from potstill.methods import bptt, start_epochs
from potstill.methods.trajectory import draw_steps
from potstill.networks import flat
from potstill.runs import measure, run
from potstill.training import experts
from potstill.training.sgd import Recipe, one_hot, run_to_end, sgd

INNER_STEPS = 2  # timed ones


def forecast(config: Config) -> dict[str, Any]:
    """Seconds, bytes on disk and peak bytes of memory of each stage of a run.

    Each stage is run for a few steps, after a first one that does not count, and its time is multiplied out.  What is
    already kept from earlier runs (controls, experts) is not subtracted.
    """
    job = run.Run(config, Path("."), Path("."))
    problem = job.problem
    start_epochs.check(config.window, config.distil.expert_epochs, None, config.expert.epochs, "the experts")
    n, classes = config.ipc * len(problem.dataset.classes), len(problem.dataset.classes)
    protocol = protocol_of(config.evaluation)
    real = len(problem.train.labels)
    shape = problem.dataset.shape
    theta = flat.initial(problem.network_config, shape, classes, 0).to(problem.device)
    kept = len(experts.kept_epochs(config)) + 1
    width = 2 if config.expert.storage == "float16" else 4
    expert_epochs = config.expert.count * config.expert.epochs
    expert_step = _training_step(job, config.expert.batch_size, expert_epochs * real, config.expert.rho)
    full_seeds = protocol.seeds if config.evaluation.full_seeds is None else config.evaluation.full_seeds
    steps = protocol.epochs * -(-n // protocol.batch_size)
    searched, _ = measure.effort(config)
    selector = run.selector(config)
    judging = selector.epochs * selector.seeds * -(-n // protocol.batch_size) * sets_judged(config)
    small_step = _training_step(job, min(n, protocol.batch_size), protocol.epochs * n * protocol.seeds)
    full_images = protocol.full_epochs * real * full_seeds
    full_step = (
        _training_step(job, protocol.batch_size, full_images) * -(-real // protocol.batch_size) * protocol.full_epochs
    )
    windows = max(1, config.distil.horizon // config.distil.inner_steps)  # in the life of a student
    undifferentiated = config.distil.inner_steps / 2 / windows
    students = bptt.STUDENTS if config.distil.polish else 0
    spread = students * (config.distil.horizon - config.distil.inner_steps) / 2 * small_step
    polishing = undifferentiated * small_step + bptt.REAL_BATCH / config.expert.batch_size * expert_step
    values = n * (shape[0] * shape[1] * shape[2] + classes)
    transform = sum(tensor.numel() for tensor in problem.transform.tensors().values())
    inner, kept_bytes, how = _inner_step(job, theta, n)
    weights = (config.distil.inner_steps + 1) * len(theta) * 4
    return {
        "seconds": {
            "experts": expert_step * expert_epochs * -(-real // config.expert.batch_size),
            "distilling": inner * config.distil.inner_steps * (config.distil.iterations + searched)
            + config.distil.polish * polishing
            + spread
            + judging * small_step,
            "evaluation": 3 * protocol.seeds * steps * small_step + full_seeds * full_step,
        },
        "disk_bytes": {
            "experts": config.expert.count * kept * len(theta) * width,
            # state, momentum, previous state; the set; students
            "distilling": 4 * (3 * values + values + transform + students * len(theta)),
        },
        "memory_bytes": machine.peak_memory(problem.device) + weights + kept_bytes + 4 * students * len(theta),
        "device": str(problem.device),
        "engine": how,
    }


def sets_judged(config: Config) -> int:
    """Sets judged on validation images: through distilling, where asked for by every step size, and in the search."""
    _, races = measure.effort(config)
    trials = len(TRIED_FRACTIONS) if config.evaluation.step_size == "chosen" else 1
    return (config.distil.evaluations + 1) * trials + races


def _training_step(job: run.Run, batch: int, images_in_all: float, rho: float = 0.0) -> float:
    """Seconds of one SGD step on real images, in a job that sees so many of them."""
    problem = job.problem
    classes = len(problem.dataset.classes)
    images, labels = problem.train.images[:batch], problem.train.labels[:batch]
    theta = flat.initial(problem.network_config, problem.dataset.shape, classes, 0).to(problem.device)
    recipe = Recipe(1, batch, 0.01, rho=rho, augment=job.config.augment)
    targets = one_hot(labels, classes)
    gradient = engine.training_gradient(
        problem.network, problem.dataset.shape, batch, images_in_all, job.config.compile
    )
    return timed(lambda: run_to_end(sgd(gradient, theta, images, targets, recipe, 0), theta), problem.device)


def _inner_step(job: run.Run, theta: torch.Tensor, n: int) -> tuple[float, int, str]:
    """Seconds of one inner step with its adjoint, bytes that all of them keep, and how they are differentiated."""
    problem = job.problem
    derivatives, micro_batch = run.inner_engine(job)
    distil = replace(job.config.distil, micro_batch=micro_batch, inner_steps=INNER_STEPS)
    config = replace(job.config, distil=distil)
    images = problem.train.images[:n].clone().requires_grad_()
    logits = torch.zeros(len(images), len(problem.dataset.classes), device=problem.device, requires_grad=True)
    alpha = torch.tensor(distil.step_size, device=problem.device, requires_grad=True)
    steps = draw_steps(config, problem, len(images), seeds.generator(0, "forecast"))
    loss = flat.label_loss(problem.network)

    def seconds(keep: int) -> float:
        def iteration() -> None:
            end = unroll(
                theta, images, logits, alpha, steps, loss, adjoint=distil.adjoint, derivatives=derivatives,
                micro_batch=micro_batch, keep=keep,
            )  # fmt: skip
            torch.autograd.grad((end - theta).square().sum(), (images, logits, alpha))

        return timed(iteration, problem.device) / INNER_STEPS

    rows = steps[0].rows[:micro_batch]
    _, kept = derivatives.gradient(theta, images[rows], logits[rows])
    each = bytes_of(kept) * len(steps[0].rows) / len(rows)
    wanted = each * job.config.distil.inner_steps
    room = min(1.0, KEEP_BYTES / wanted) if wanted else 1.0  # part of the steps that it holds; the others are slower
    found = room * seconds(KEEP_BYTES) + ((1 - room) * seconds(0) if room < 1 else 0.0)
    precision = str(problem.network.precision).removeprefix("torch.")
    how = "compiled" if derivatives.compiled else "plain"
    return found, int(room * wanted), f"inner steps {how}, in {precision}"
