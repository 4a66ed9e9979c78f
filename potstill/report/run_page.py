"""Records → figures, tables and one self-contained HTML page."""

from pathlib import Path
from typing import Any

import torch

from potstill import files
from potstill.data.distilled import FILE, Distilled, load, png
from potstill.errors import PotstillError
from potstill.report.figures import COLOURS, NAMES, STAGES, axes, data_uri, page, svg
from potstill.runs import snapshots
from potstill.runs.run import read_metrics
from potstill.runs.snapshots import Snapshot
from potstill.training import trajectories

MOST_IMAGES = 10  # of each class that are drawn with their labels
MOST_NAMES = 20  # classes that are named at an axis
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
    results = files.read_json(folder / "results.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    distilled = load(folder / FILE)
    kept = snapshots.read(folder)
    text = page(
        "report",
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
        settings=sorted(flatten(results["config"]).items()),
        accuracies=_accuracies(folder),
        film=film(kept) if kept else None,
        animation=data_uri(snapshots.animation(kept), "image/gif") if kept else None,
        moved_figure=_moved_figure(kept) if kept else None,
        labels_figure=_labels_figure(distilled),
        found=found if (found := results["difficulty"]) and "survey" in found else None,
        survey_figure=_survey_figure(found) if found and "survey" in found else None,
        race_figure=_race_figure(found) if found and "survey" in found else None,
    )
    files.write_bytes(folder / "report.html", text.encode())
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
    tensors, _ = files.load(folder / "start.safetensors", "start")
    return distilled.transform.pixels(tensors["images"].float())


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
                    "before": data_uri(png(before[row], scale)),
                    "after": data_uri(png(after[row], scale)),
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
    return files.read_json(path)["accuracies"] if path.exists() else []


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


# --- figures -------------------------------------------------------------------------------------------------------


def _accuracy_figure(results: dict[str, Any]) -> str:
    """Accuracy of each set: every network a dot, the mean a bar, the interval a line."""
    figure, plot = axes("test accuracy (%)", "", 2.4, "Networks trained on each set")
    names = [name for name in reversed(NAMES) if name in results["accuracy"]]
    for y, name in enumerate(names):
        found = results["accuracy"][name]
        values = [100 * value for value in found["per_seed"]]
        plot.barh(y, 100 * found["mean"], color=COLOURS[name], alpha=0.35, height=0.6)
        plot.plot(values, [y] * len(values), "o", color=COLOURS[name], markersize=4)
        if found["ci95"]:
            plot.plot([100 * v for v in found["ci95"]], [y, y], color=COLOURS[name], linewidth=2.5)
        plot.annotate(
            f"{100 * found['mean']:.1f}", (100 * found["mean"], y), (8, 10), textcoords="offset points", fontsize=9
        )
    plot.set_yticks(range(len(names)), [NAMES[name] for name in names])
    plot.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    plot.grid(axis="y", visible=False)
    plot.set_xlim(0, 105)
    return svg(figure)


def _loss_figure(metrics: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """Matching loss by iteration, coloured by the start epoch of the segment; polishing, the loss of real images."""
    figure, plot = axes("iteration", "matching loss", title="How near the student comes")
    finite = [line for line in metrics if line["loss"] == line["loss"] and abs(line["loss"]) < 1e6]
    polished = [line for line in finite if "age" in line]
    finite = [line for line in finite if "age" not in line]
    if polished:
        plot.plot(
            [line["iteration"] for line in polished], [line["loss"] for line in polished], ".", color="#8a8f98",
            markersize=4, label="polishing: real images",
        )  # fmt: skip
        plot.legend()
    points = plot.scatter(
        [line["iteration"] for line in finite],
        [line["loss"] for line in finite],
        c=[line["start_epoch"] for line in finite],
        cmap="viridis",
        s=9,
    )
    plot.axhline(results["config"]["distil"]["threshold"], color="#b3261e", linewidth=1, linestyle="--")
    plot.set_yscale("log")
    if finite:
        figure.colorbar(points, ax=plot, label="start epoch")
    return svg(figure)


def _judged_figure(results: dict[str, Any], distilled: Distilled) -> str:
    """Accuracy on the split that chose the set, by iteration."""
    split = distilled.provenance["chosen_on"]
    figure, plot = axes("iteration", f"accuracy on {split} images (%)", title="How good the set is")
    judged = results["judged"] or []
    plot.plot([j["iteration"] for j in judged], [100 * j["accuracy"] for j in judged], "o-", color="#0b6e4f")
    plot.axvline(distilled.provenance["iteration"], color="#0b6e4f", linewidth=1, linestyle=":")
    return svg(figure)


def _window_figure(metrics: list[dict[str, Any]]) -> str:
    """The start epochs that were drawn, and the learned step size."""
    figure, plot = axes("iteration", "start epoch drawn", title="Difficulty and step size")
    iterations = [line["iteration"] for line in metrics]
    matched = [line for line in metrics if "start_epoch" in line]
    drawn = [line["iteration"] for line in matched], [line["start_epoch"] for line in matched]
    plot.plot(*drawn, ".", color="#2b4c7e", markersize=4)
    right = plot.twinx()
    right.plot(iterations, [line["step_size"] for line in metrics], color="#c98a1b", linewidth=1.5)
    right.set_ylabel("learned step size", color="#c98a1b")
    right.spines[["top"]].set_visible(False)
    return svg(figure)


def film(snapshots: list[Snapshot], title: str = "") -> dict[str, Any]:
    """Snapshots as the frames of a slider."""
    frames = [{"iteration": s.iteration, "picture": data_uri(png(s.picture))} for s in snapshots]
    return {"title": title, "frames": frames}


def _moved_figure(kept: list[Snapshot]) -> str:
    """How far images and labels are from where they began."""
    found = snapshots.moved(kept)
    figure, plot = axes("iteration", "images: distance (% of pixel range)", title="How far the set has moved")
    plot.plot(found["iteration"], [100 * v for v in found["images"]], "o-", color=COLOURS["distilled"], markersize=4)
    right = plot.twinx()
    right.plot(found["iteration"], [100 * v for v in found["labels"]], "o-", color="#c98a1b", markersize=4)
    right.set_ylabel("labels: probability moved (%)", color="#c98a1b")
    right.spines[["top"]].set_visible(False)
    return svg(figure)


def _labels_figure(distilled: Distilled) -> str:
    """Mean soft label of each class, as a picture of classes by classes."""
    names = distilled.classes
    soft = torch.stack([distilled.soft_labels[distilled.labels == k].mean(0) for k in range(len(names))])
    figure, plot = axes("probability of", "images of", 3.6, "What the labels say")
    shown = plot.imshow(soft.numpy(), cmap="Greens", vmin=0, vmax=1, aspect="auto")
    plot.grid(visible=False)
    if len(names) <= MOST_NAMES:
        plot.set_xticks(range(len(names)), names, rotation=45, ha="right")
        plot.set_yticks(range(len(names)), names)
    figure.colorbar(shown, ax=plot, label="probability")
    return svg(figure)


def _survey_figure(found: dict[str, Any]) -> str:
    """What the set leaves unexplained of each part of the trajectories, before anything is learned."""
    figure, plot = axes("start epoch", "matching loss of the start", title="What the set can follow")
    chosen = found["settings"]["distil"]
    epochs = [row["start"] for row in found["survey"]]
    for number, alpha in enumerate(sorted({entry["step_size"] for entry in found["survey"][0]["losses"]})):
        losses = [
            next(
                entry["loss"] for entry in row["losses"]
                if entry["step_size"] == alpha
                and all(entry[name] == chosen[name] for name in ("inner_steps", "expert_epochs"))
            )
            for row in found["survey"]
        ]  # fmt: skip
        width = 2.4 if alpha == chosen["step_size"] else 1.2
        label = f"step size {alpha:g}"
        plot.plot(epochs, losses, "o-", color=STAGES[number], label=label, linewidth=width, markersize=4)
    plot.axhline(found["follows"], color="#b3261e", linewidth=1, linestyle="--")
    plot.axvspan(-0.3, found["limit"] + 0.3, color=COLOURS["distilled"], alpha=0.07, linewidth=0)
    plot.set_ylim(0, 1.5)
    plot.legend(frameon=False, fontsize=9)
    return svg(figure)


def _race_figure(found: dict[str, Any]) -> str:
    """Accuracy on validation images of every band after each round."""
    figure, plot = axes("iteration", "accuracy on validation images (%)", title="The bands' race")
    for band, window in enumerate(found["bands"]):
        rounds = [entry for entry in found["rounds"] if entry["band"] == band]
        name = f"epochs {window['start']}–{window['stop'] - 1}" + (", won" if band == found["winner"] else "")
        plot.plot(
            [entry["iteration"] for entry in rounds], [100 * entry["accuracy"] for entry in rounds], "o-",
            color=STAGES[band % len(STAGES)], label=name, linewidth=2.4 if band == found["winner"] else 1.2,
        )  # fmt: skip
    plot.legend(frameon=False, fontsize=9)
    return svg(figure)
