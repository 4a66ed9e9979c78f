"""Architecture search: networks ranked by training on a distilled set, against their ranks after all data.

python examples/architecture_search.py --record records/architecture-search.json
"""

from typing import Any

from common import SET, main

import potstill
from potstill.evaluation.statistics import interval

NETWORKS = [
    *({"name": "mlp", "width": width} for width in (2, 4, 8, 64)),
    *({"name": "convnet", "width": width, "depth": 1} for width in (2, 8)),
    *({"name": "convnet", "width": width, "depth": 2} for width in (2, 4, 16)),
    {"name": "lenet"},
]


def measure(
    seeds: int = 5, networks: list[dict[str, Any]] = NETWORKS, epochs: int = 300, full_epochs: int = 150
) -> dict[str, Any]:  # fmt: skip
    """Rank correlation of ten networks trained on a set with the same ones trained on all data.

    Each is trained as often on the distilled set, on as many random real images and on all data, by one recipe.
    """
    distilled = potstill.load(SET)
    rows = []
    for network in networks:
        figures = potstill.evaluate(
            distilled, network=network, seeds=seeds, protocol="quick", epochs=epochs, full_epochs=full_epochs,
            progress=False, device="cpu",
        )  # fmt: skip
        rows.append({"network": network, "accuracy": {name: figures[name] for name in ("distilled", "random", "full")}})
    found = {name: correlations(rows, name) for name in ("distilled", "random")}
    told = {name: f"{figure['mean']:.2f}" for name, figure in found.items()}
    return {
        "networks": rows, "correlation": found, "images": len(distilled), "epochs": epochs, "full_epochs": full_epochs,
        "sentence": f"Spearman's rank correlation of {len(networks)} networks with the same ones on all data: "
        f"{told['distilled']} on {len(distilled)} distilled images, {told['random']} on as many random ones",
    }  # fmt: skip


def correlations(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Spearman's ρ of the mean accuracies, and of those of each seed alone with the mean on all data.

    One seed is what a search pays for; the mean shows what the set itself knows.
    """
    from scipy.stats import spearmanr

    full = [row["accuracy"]["full"]["mean"] for row in rows]
    means = [row["accuracy"][name]["mean"] for row in rows]
    alone = zip(*(row["accuracy"][name]["per_seed"] for row in rows), strict=True)
    return {
        "mean": float(spearmanr(means, full).statistic),
        "by_seed": [float(spearmanr(values, full).statistic) for values in alone],
        "accuracy": interval(means)["mean"],
    }


def draw(found: dict[str, Any]) -> Any:
    """A point a network: its accuracy on the set against the one on all data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker in (("distilled", "o"), ("random", "x")):
        points = [[100 * row["accuracy"][kind]["mean"] for row in found["networks"]] for kind in ("full", name)]
        axes.plot(*points, marker, label=f"{name} images, ρ = {found['correlation'][name]['mean']:.2f}")
    axes.set_xlabel("trained on all data (%)")
    axes.set_ylabel(f"trained on {found['images']} images (%)")
    axes.legend()
    return figure


if __name__ == "__main__":
    main("architecture_search", measure, draw)
