"""Federated learning in one round: each client sends a small set instead of its data, and the server trains on all.

python examples/federated.py --record records/federated.json

Five clients hold four digits each, and half of the images of every one: two clients share each digit.
"""

from typing import Any

import torch
from common import Part, accuracy, digits, distilled_part, main, random_part

from potstill.evaluation.statistics import difference, interval

CLIENTS = 5
CLASSES = 4  # that a client holds


def shares(
    images: torch.Tensor, labels: torch.Tensor, clients: int = CLIENTS
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each client holds: of client c the digits from 2c on, the even or the odd ones of their images."""
    held = []
    for client in range(clients):
        rows = []
        for place in range(CLASSES):
            found = torch.nonzero(labels == (2 * client + place) % 10).flatten()
            rows.append(found[place // 2 :: 2])
        mine = torch.cat(rows)
        held.append((images[mine], labels[mine]))
    return held


def measure(
    seeds: int = 5, clients: int = CLIENTS, ipc: int = 1, iterations: int = 300, epochs: int = 300,
    all_epochs: int = 30,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy of the server's network by what the clients send: distilled sets, random images, or all they have.

    A repetition has sets and networks of its own.  To send all data is what federated learning is there to avoid.
    """
    data = digits()
    held = shares(data.train.images, data.train.labels, clients)
    present = torch.cat([labels for _, labels in held]).unique()
    rows = torch.isin(data.test.labels, present)
    test = (data.test.images[rows], data.test.labels[rows])
    found: dict[str, list[float]] = {"distilled": [], "random": [], "all": []}
    for seed in range(seeds):
        numbered = [(100 * seed + number, *share) for number, share in enumerate(held)]
        sent: dict[str, list[Part]] = {
            "distilled": [distilled_part(images, labels, ipc, one, iterations) for one, images, labels in numbered],
            "random": [random_part(images, labels, ipc, one) for one, images, labels in numbered],
            "all": [(images / 255, labels) for images, labels in held],
        }
        for name, parts in sent.items():
            found[name].append(accuracy(parts, test, seed, all_epochs if name == "all" else epochs))
    figures = {name: interval(values) for name, values in found.items()}
    images = {name: sum(len(labels) for _, labels in parts) for name, parts in sent.items()}
    return {
        "accuracy_of_the_server": figures, "difference": difference(figures["distilled"], figures["random"]),
        "images": images, "clients": clients, "ipc": ipc, "iterations": iterations, "epochs": epochs,
        "all_epochs": all_epochs,
        "sentence": f"the server: {figures['distilled']['mean']:.1%} by {images['distilled']} distilled images, "
        f"{figures['random']['mean']:.1%} by as many random ones, {figures['all']['mean']:.1%} by all {images['all']}",
    }  # fmt: skip


def draw(found: dict[str, Any]) -> Any:
    """A bar for what the clients send, with 95 % intervals over repetitions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, told in found["accuracy_of_the_server"].items():
        mean = 100 * told["mean"]
        spread = [[abs(100 * end - mean)] for end in told["ci95"]] if told["ci95"] else None
        axes.bar(f"{name}\n{found['images'][name]} images", mean, yerr=spread, capsize=4)
    axes.set_ylabel("right, of the server's network (%)")
    return figure


if __name__ == "__main__":
    main("federated", measure, draw)
