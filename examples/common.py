"""What the applications share: parts of the digits, small sets of a part, one network on several sets, and records."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potstill
from potstill import machine
from potstill.data.dataset import Dataset, load
from potstill.data.transform import Transform
from potstill.networks.architectures import NetworkConfig

Part = tuple[Tensor, Tensor]
"""Images as values of about 0 to 1 (n, C, H, W), which learned ones may leave, and their classes (n,)."""
NETWORK = NetworkConfig(width=16, depth=2)
AUGMENT = ["crop", "scale", "rotate"]  # what a digit bears
SET = Path(__file__).parents[1] / "records" / "digits-ipc10.safetensors"


def digits() -> Dataset:
    """The embedded digits; what is kept aside for validation is not used."""
    return load("digits")


def of_classes(images: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images of some classes, and their labels."""
    rows = torch.isin(labels, torch.tensor(list(classes)))
    return images[rows], labels[rows]


def distilled_part(images: Tensor, labels: Tensor, ipc: int, seed: int, iterations: int) -> Part:
    """So many synthetic images of each class that is there, by distribution matching.

    The last set is taken, so nothing is chosen; the images stand as the test part too, which is not read here: without
    one a fifth of them would be kept aside.
    """
    classes, numbers = labels.unique(return_inverse=True)
    made = potstill.distill(
        (images, numbers), ipc, test=(images, numbers), method="dm", dm={"iterations": iterations, "real_batch": 64},
        network=asdict(NETWORK), augment=AUGMENT, transform="standardise", seed=seed, keep="last", evaluations=1,
        evaluation={"protocol": "quick", "epochs": 1, "seeds": 1}, snapshots=0, progress=False,
    )  # fmt: skip
    return made.transform.invert(made.images), classes[made.labels]


def random_part(images: Tensor, labels: Tensor, ipc: int, seed: int) -> Part:
    """So many real images of each class that is there."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.cat([
        found[torch.randperm(len(found), generator=draws)[:ipc]]
        for found in (torch.nonzero(labels == number).flatten() for number in labels.unique())
    ])  # fmt: skip
    return images[rows] / 255, labels[rows]


def accuracy(parts: Sequence[Part], test: tuple[Tensor, Tensor], seed: int, epochs: int) -> float:
    """Accuracy of one network that trains on several parts together; it knows nothing but them.

    The pixels are standardised by the mean and the deviation of what it trains on.
    """
    values, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    transform = Transform("standardise", values.mean((0, 2, 3)), values.std((0, 2, 3)))
    together = potstill.Distilled(
        images=transform.apply(values), targets=None, kind="hard", labels=labels, step_size=None, transform=transform,
        classes=tuple(str(number) for number in range(10)), provenance={},
        recipe={"network": asdict(NETWORK), "augment": AUGMENT},
    )  # fmt: skip
    network = potstill.train(together, epochs=epochs, seed=seed)
    with torch.no_grad():
        return float((network(transform(test[0])).argmax(1) == test[1]).float().mean())


def main(application: str, measure: Callable[..., dict[str, Any]], draw: Callable[[dict[str, Any]], Any]) -> None:
    """Measure, and print; write a record and a figure where asked for."""
    parser = argparse.ArgumentParser(description=(measure.__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="repetitions")
    parser.add_argument("--record", type=Path, help="a .json to write, with a .png beside it")
    given = parser.parse_args()
    commit, began = machine.commit(), time.perf_counter()
    found = {
        "application": application, "command": f"python examples/{application}.py --seeds {given.seeds}",
        "commit": commit, **measure(given.seeds), "seconds": time.perf_counter() - began,
        "environment": machine.environment(torch.device("cpu")),
    }  # fmt: skip
    print(found["sentence"])
    if given.record:
        given.record.write_text(json.dumps(found, indent=2) + "\n")
        draw(found).savefig(given.record.with_suffix(".png"), dpi=120)
