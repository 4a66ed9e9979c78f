"""Records → figures, tables and one self-contained HTML page."""

import base64
import io
from pathlib import Path
from typing import Any

import torch

from potstill import artefacts, trajectories
from potstill.distilled import FILE, Distilled, load, png
from potstill.errors import PotstillError
from potstill.run import read_metrics

COLOURS = {"distilled": "#0b6e4f", "random": "#8a8f98", "random_soft": "#c98a1b", "full": "#2b4c7e"}
NAMES = {
    "distilled": "distilled set",
    "random": "random real images",
    "random_soft": "random, soft labels",
    "full": "full training set",
}
MOST_IMAGES = 10  # of each class that are drawn with their labels
TOP = 3  # soft labels shown for an image


def write(folder: Path) -> Path:
    """Write report.html of a run, from the files it left; returns its path.

    Raises:
        PotstillError: the folder is no finished run.
    """
    if not (folder / "results.json").is_file():
        raise PotstillError(
            f"{folder}: holds no finished run (results.json is missing); run `potstill run --out {folder}` to its end."
        )
    import jinja2

    results = artefacts.read_json(folder / "results.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    distilled = load(folder / FILE)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("report.html.j2").read_text()
    )
    text = template.render(
        results=results,
        rows=[_row(name, results) for name in NAMES if name in results["accuracy"]],
        accuracy_figure=_accuracy_figure(results),
        loss_figure=_loss_figure(metrics, results),
        judged_figure=_judged_figure(results, distilled),
        window_figure=_window_figure(metrics),
        classes=_classes(distilled, _start(folder, distilled)),
        most=MOST_IMAGES,
        transform=distilled.transform.kind,
        path=str(folder / FILE),
        settings=sorted(_flatten(results["config"]).items()),
        accuracies=_accuracies(folder),
    )
    artefacts.write_bytes(folder / "report.html", text.encode())
    return folder / "report.html"


def _row(name: str, results: dict[str, Any]) -> dict[str, Any]:
    figure, protocol = results["accuracy"][name], results["protocol"]
    low_high = figure["ci95"]
    return {
        "key": name,
        "name": NAMES[name],
        "images": results["images"] if name != "full" else results["full_images"],
        "epochs": protocol["full_epochs"] if name == "full" else protocol["epochs"],
        "mean": f"{figure['mean']:.1%}",
        "interval": f"{low_high[0]:.1%} to {low_high[1]:.1%}" if low_high else "–",
        "std": f"{figure['std']:.1%}" if figure["std"] is not None else "–",
        "seeds": len(figure["per_seed"]),
    }


def _start(folder: Path, distilled: Distilled) -> torch.Tensor:
    """Images in true colours before the first iteration (n, C, H, W) uint8."""
    tensors, _ = artefacts.load(folder / "start.safetensors", "start")
    images = distilled.transform.invert(tensors["images"].float())
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _classes(distilled: Distilled, before: torch.Tensor) -> list[dict[str, Any]]:
    """Each class with its first images: before, after, and the largest soft labels."""
    after, soft = distilled.pixels, distilled.soft_labels
    scale = max(1, 64 // after.shape[2])
    shown = []
    for label, name in enumerate(distilled.classes):
        rows = (distilled.labels == label).nonzero().flatten()[:MOST_IMAGES].tolist()
        images = []
        for row in rows:
            values, indices = soft[row].topk(min(TOP, len(distilled.classes)))
            images.append(
                {
                    "before": _data_uri(png(before[row], scale)),
                    "after": _data_uri(png(after[row], scale)),
                    "labels": [
                        (distilled.classes[k], round(100 * v))
                        for k, v in zip(indices.tolist(), values.tolist(), strict=True)
                    ],
                }
            )
        shown.append({"name": name, "images": images})
    return shown


def _accuracies(folder: Path) -> list[float]:
    """Validation accuracies of the run's own experts; none where they lie elsewhere."""
    path = folder / "experts" / trajectories.MANIFEST
    return artefacts.read_json(path)["accuracies"] if path.exists() else []


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


# --- figures -------------------------------------------------------------------------------------------------------


def _axes(x: str, y: str, height: float = 2.9) -> tuple[Any, Any]:
    """A bare figure; built without pyplot, so that no global state or display is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Any) -> str:
    """A figure as a data URI that holds its own fonts' outlines."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "potstill"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _accuracy_figure(results: dict[str, Any]) -> str:
    """Accuracy of each set: every network a dot, the mean a bar, the interval a line."""
    figure, axes = _axes("test accuracy (%)", "", 2.4)
    names = [name for name in reversed(NAMES) if name in results["accuracy"]]
    for y, name in enumerate(names):
        found = results["accuracy"][name]
        values = [100 * value for value in found["per_seed"]]
        axes.barh(y, 100 * found["mean"], color=COLOURS[name], alpha=0.35, height=0.6)
        axes.plot(values, [y] * len(values), "o", color=COLOURS[name], markersize=4)
        if found["ci95"]:
            axes.plot([100 * v for v in found["ci95"]], [y, y], color=COLOURS[name], linewidth=2.5)
        axes.annotate(
            f"{100 * found['mean']:.1f}", (100 * found["mean"], y), (8, 10), textcoords="offset points", fontsize=9
        )
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 105)
    return _svg(figure)


def _loss_figure(metrics: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """Matching loss by iteration, coloured by the start epoch of the segment."""
    figure, axes = _axes("iteration", "matching loss")
    finite = [line for line in metrics if line["loss"] == line["loss"] and abs(line["loss"]) < 1e6]
    points = axes.scatter(
        [line["iteration"] for line in finite],
        [line["loss"] for line in finite],
        c=[line["start_epoch"] for line in finite],
        cmap="viridis",
        s=9,
    )
    axes.axhline(results["config"]["distil"]["threshold"], color="#b3261e", linewidth=1, linestyle="--")
    axes.set_yscale("log")
    if finite:
        figure.colorbar(points, ax=axes, label="start epoch")
    return _svg(figure)


def _judged_figure(results: dict[str, Any], distilled: Distilled) -> str:
    """Accuracy on the split that chose the set, by iteration."""
    split = distilled.provenance["chosen_on"]
    figure, axes = _axes("iteration", f"accuracy on {split} images (%)")
    judged = results["judged"] or []
    axes.plot([j["iteration"] for j in judged], [100 * j["accuracy"] for j in judged], "o-", color="#0b6e4f")
    axes.axvline(distilled.provenance["iteration"], color="#0b6e4f", linewidth=1, linestyle=":")
    return _svg(figure)


def _window_figure(metrics: list[dict[str, Any]]) -> str:
    """The start epochs that were drawn, and the learned step size."""
    figure, axes = _axes("iteration", "start epoch drawn")
    iterations = [line["iteration"] for line in metrics]
    axes.plot(iterations, [line["start_epoch"] for line in metrics], ".", color="#2b4c7e", markersize=4)
    right = axes.twinx()
    right.plot(iterations, [line["step_size"] for line in metrics], color="#c98a1b", linewidth=1.5)
    right.set_ylabel("learned step size", color="#c98a1b")
    right.spines[["top"]].set_visible(False)
    return _svg(figure)
