"""What the gradients of a refinement have in common, and what drowns it.

    python recipes/gradient_noise.py --data data/cifar10

Students train on a set; through the last steps the loss of real images is differentiated in the set's images, as
RaT-BPTT does.  Two such gradients differ in the student's initialisation, in the augmentations that were drawn and in
the real images.  With each of them held alike in all, the mean cosine of pairs says which one they owe their
differences to; where nothing is alike it is the share of a gradient's square that is signal.  That is measured without
augmentation and with each of its operations alone as well, with students that a set made under all of them trains so.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files
from potstill.adjoint import engine
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.data import augment
from potstill.data.augment import DSA
from potstill.data.dataset import load as read
from potstill.data.distilled import load
from potstill.data.labels import one_hot
from potstill.evaluation.evaluator import training_set_of
from potstill.machine import commit, environment
from potstill.networks.architectures import NetworkConfig
from potstill.networks.losses import loss_for
from potstill.seeds import generator
from potstill.training.problem import prepare

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "records" / "cifar10-ipc1-gradient-noise.json"
LEAD, WINDOW, STEP_SIZE, REAL_BATCH = 100, 20, 0.06, 500
SOURCES = ("network", "augmentation", "real images")
CASES: dict[str, tuple[str, ...]] = {  # which of the sources are alike in all gradients
    "nothing alike": (),
    **{f"the same {source}": (source,) for source in SOURCES},
    "the same network and augmentation": ("network", "augmentation"),
    "nothing alike, no augmentation": (),
    **{f"nothing alike, only {operation}": () for operation in DSA},
}


class Refinement:
    """A set, the students that train on it, and the real images whose loss they should lower."""

    def __init__(self, path: Path, data: Path, compile: engine.Compile = "yes") -> None:
        distilled = load(path, read(str(data)))
        config = NetworkConfig(**distilled.recipe["network"])
        self.problem = prepare(str(data), config, transform=distilled.transform.kind, device="cpu")
        self.set = training_set_of(distilled, config, self.problem.device)
        self.operations = tuple(distilled.recipe["augment"])
        network, shape = self.problem.network, self.problem.dataset.shape
        self.loss = loss_for(network, self.set.kind)
        self.derivatives, _ = engine.inner_derivatives(
            network, shape, len(self.set.images), 0.0, compile, None, self.set.kind
        )

    def gradient(self, numbers: Sequence[int], operations: Sequence[augment.Operation]) -> Tensor:
        """The gradient in the images, as a vector of norm 1, by the number of each of the sources' draws."""
        network, augmentation, real = numbers
        draws = generator(augmentation, "augmentation")
        steps = [self._step(draws, operations) for _ in range(LEAD + WINDOW)]
        images = self.set.images.clone().requires_grad_()
        end = unroll(
            self.problem.network.fresh(network), images, self.set.targets, torch.tensor(STEP_SIZE), steps, self.loss,
            adjoint="truncated", last=WINDOW, derivatives=self.derivatives,
        )  # fmt: skip
        split = self.problem.train
        rows = torch.randint(len(split.labels), (REAL_BATCH,), generator=generator(real, "real"))
        targets = one_hot(split.labels[rows], len(self.problem.dataset.classes))
        size = engine.even_part(REAL_BATCH, self.problem.at_once)
        parts = [*zip(split.images[rows].split(size), targets.split(size), strict=True)]
        loss = engine.mean_loss(self.problem.network, end, parts, REAL_BATCH, self.derivatives.compiled)
        (found,) = torch.autograd.grad(loss, images)
        return found.flatten() / found.norm()

    def _step(self, draws: torch.Generator, operations: Sequence[augment.Operation]) -> InnerStep:
        count, _, *size = self.set.images.shape
        return InnerStep(torch.arange(count), augment.draw(operations, count, (size[0], size[1]), draws))


def mean_cosine(gradients: list[Tensor]) -> dict[str, float]:
    """Mean cosine of all pairs, and its standard error by leaving out one gradient at a time."""
    cosines = torch.stack(gradients) @ torch.stack(gradients).T
    n = len(gradients)
    total = float(cosines.sum()) - n
    without = [(total - 2 * (float(cosines[i].sum()) - 1)) / ((n - 1) * (n - 2)) for i in range(n)]
    spread = sum((one - sum(without) / n) ** 2 for one in without)
    return {"mean": total / (n * (n - 1)), "standard_error": ((n - 1) / n * spread) ** 0.5}


def main() -> None:
    """Measure all cases, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, default=ROOT / "records" / "cifar10-ipc1-cpu.safetensors")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--gradients", type=int, default=12, help="of each case")
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args()
    if given.gradients < 3:
        parser.error(f"--gradients {given.gradients}: give 3 or more, for the error leaves one out at a time")
    refinement, found = Refinement(given.set, given.data), dict[str, Any]()
    for name, alike in CASES.items():
        only = [operation for operation in DSA if name.endswith(f"only {operation}")]
        operations = () if "no augmentation" in name else only or refinement.operations
        gradients = [
            refinement.gradient([0 if source in alike else n for source in SOURCES], operations)
            for n in range(given.gradients)
        ]
        found[name] = mean_cosine(gradients)
        print(f"{name}: {found[name]['mean']:+.3f} ± {found[name]['standard_error']:.3f}", flush=True)
    files.write_json(given.record, {
        "set": given.set.name, "commit": commit(), "lead": LEAD, "window": WINDOW, "step_size": STEP_SIZE,
        "real_batch": REAL_BATCH, "gradients": given.gradients, "cosines": found,
        "environment": environment(refinement.problem.device),
    })  # fmt: skip


if __name__ == "__main__":
    main()
