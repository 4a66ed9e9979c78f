"""Records → figures, tables and one self-contained HTML page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import files
from potstill.data.distilled import FILE, Distilled, load, png
from potstill.errors import PotstillError
from potstill.evaluation import memorisation
from potstill.evaluation.protocol import described
from potstill.report.figures import COLOURS, NAMES, SERIES, axes, data_uri, page, svg
from potstill.report.gallery import Shown, gallery
from potstill.runs import snapshots
from potstill.runs.record import METRICS, NEAREST, NEAREST_KIND, read_metrics, upgrade
from potstill.runs.snapshots import Snapshot
from potstill.training import trajectories

MOST_IMAGES = 10  # of each class that are drawn with their labels
MOST_NAMES = 20  # classes that are named at an axis
TOP = 3  # soft labels shown for an image


@dataclass(frozen=True)
class Finished:
    """A finished run: all that its page shows, as its files hold it."""

    folder: Path
    results: dict[str, Any]
    metrics: list[dict[str, Any]]  # of each iteration
    distilled: Distilled
    before: Tensor  # (n, C, H, W) uint8, the images before the first iteration
    snapshots: list[Snapshot]
    nearest: dict[str, Tensor] | None  # training images nearest to the set's; None where their file is gone
    accuracies: list[float]  # on validation images, of the run's own experts; none where they lie elsewhere


def write(folder: Path) -> Path:
    """Write report.html of a run, from the files it left; returns its path.

    Raises:
        PotstillError: the folder is no finished run, or its results are not those of one.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise PotstillError(
            f"{folder}: holds no finished run (results.json is missing); run `potstill run --out {folder}` to its end."
        )
    results = files.read_json(path)
    try:
        text = _text(_read(folder, upgrade(results)))
    except (PotstillError, OSError, MemoryError):
        raise
    except Exception as error:  # of many kinds, by which of its many values is damaged
        raise PotstillError(
            f"{path}: does not hold what the results of a run hold ({type(error).__name__}: {error}); give the command "
            "of the run again, which evaluates anew."
        ) from error
    files.write_bytes(folder / "report.html", text.encode())
    return folder / "report.html"


def _read(folder: Path, results: dict[str, Any]) -> Finished:
    """What the folder of a run holds beside its results."""
    distilled, own = load(folder / FILE), trajectories.find(folder / "experts")
    start, _ = files.read_tensors(folder / "start.safetensors", "start")
    nearest = files.read_tensors(folder / NEAREST, NEAREST_KIND)[0] if (folder / NEAREST).exists() else None
    return Finished(
        folder=folder,
        results=results,
        metrics=read_metrics(folder / METRICS),
        distilled=distilled,
        before=distilled.transform.pixels(start["images"].float()),
        snapshots=snapshots.read(folder),
        nearest=nearest,
        accuracies=list(own.accuracies) if own else [],
    )


def _text(run: Finished) -> str:
    """The page."""
    results, distilled, kept, told = run.results, run.distilled, run.snapshots, run.results["memorisation"]
    shown = Shown("", distilled, run.before, kept, told, run.nearest, results["confusion"])
    return page(
        "report",
        results=results,
        protocol=described(results["protocol"]),
        rows=[row_of(name, results) for name in NAMES if name in results["accuracy"]],
        accuracy_figure=_accuracy_figure(results),
        panels=[panel for stage in results["stages"] for panel in _panels(stage, run.metrics, len(results["stages"]))],
        validation_figure=_validation_figure(results),
        step_size_figure=_step_size_figure(run.metrics),
        classes=_classes(distilled, run.before),
        browsed=gallery([shown]),
        memorised=_memorised(told, distilled, run.nearest),
        most=MOST_IMAGES,
        transform=distilled.transform.kind,
        path=str(run.folder / FILE),
        settings=sorted(flatten(results["config"]).items()),
        accuracies=run.accuracies,
        frames=frames_of(kept) if kept else None,
        animation=data_uri(snapshots.animation(kept), "image/gif") if kept else None,
        moved_figure=_moved_figure(kept) if kept else None,
        labels_figure=_labels_figure(distilled),
        measured=[_measured(name, found) for name, found in results["measured"].items() if "grid" in found],
    )


def row_of(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """A set of the record as a row of a table, in words: "distilled" or one of its controls."""
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
        "kept": results.get("kept", {}).get(name, 0),
    }


def _classes(distilled: Distilled, before: Tensor) -> list[dict[str, Any]]:
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


def _memorised(
    told: dict[str, Any] | None, distilled: Distilled, nearest: dict[str, Tensor] | None
) -> dict[str, Any] | None:  # fmt: skip
    """What the set gives away: a sentence, a figure, and the most copied images beside the nearest training images.

    None where the results are of a version that did not look; no images where their file is gone.
    """
    if told is None:
        return None
    drawn = memorisation.drawn(told)
    return {
        "sentence": memorisation.sentence(told), "notes": told["notes"],
        "figure": _distances_figure(drawn, distilled.classes),
        "left_out": len(told["classes"]) - len(drawn),
        "classes": _most_copied(nearest, drawn, distilled) if nearest else [],
    }  # fmt: skip


def _most_copied(
    nearest: dict[str, Tensor], drawn: list[dict[str, Any]], distilled: Distilled
) -> list[dict[str, Any]]:  # fmt: skip
    """The pictures of each class that is drawn; only where those at hand are of the same images as the results."""
    entries = [one["most_copied"] for one in drawn]
    if nearest["rows"].tolist() != [row for entry in entries for row in entry["rows"]]:
        return []
    mine = memorisation.pixels_of(distilled, torch.tensor([entry["image"] for entry in entries]))
    real = nearest["pixels"].split([len(entry["rows"]) for entry in entries])
    scale = max(1, 64 // mine.shape[2])
    return [
        {
            "name": distilled.classes[entry["label"]], "image": data_uri(png(image, scale)), "copy": entry["near_copy"],
            "nearest": [
                (data_uri(png(picture, scale)), f"{distance:.1%}")
                for picture, distance in zip(pictures, entry["distances"], strict=True)
            ],
        }
        for entry, image, pictures in zip(entries, mine, real, strict=True)
    ]  # fmt: skip


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


def _panels(stage: dict[str, Any], metrics: list[dict[str, Any]], stages: int) -> list[dict[str, str]]:
    """A panel for a stage's loss and one for each metric that its method declares."""
    lines = [line for line in metrics if line.get("stage", stage["name"]) == stage["name"]]
    after = f", {stage['title'].lower()}" if stages > 1 else ""
    panels = [
        {
            "figure": _loss_figure(stage, lines),
            "label": stage["loss"],
            "caption": f"The method's own loss ({stage['loss']}) by iteration{after}; open rings were not stepped on.",
        }
    ]
    for name, label in stage["metrics"].items():
        drawn = [line for line in lines if name in line]
        if drawn:
            figure, plot = axes("iteration", label, title=label[0].upper() + label[1:])
            points = [line["iteration"] for line in drawn], [line[name] for line in drawn]
            plot.plot(*points, ".", color="#2b4c7e", markersize=4)
            panels.append(
                {
                    "figure": svg(figure),
                    "label": label,
                    "caption": f"{label[0].upper()}{label[1:]} by iteration{after}.",
                }
            )
    return panels  # fmt: skip


def _loss_figure(stage: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """The loss by iteration; iterations that the method did not accept as open rings."""
    figure, plot = axes("iteration", stage["loss"], title=stage["title"])
    finite = [line for line in lines if line["loss"] == line["loss"] and 0 < abs(line["loss"]) < 1e6]
    for accepted, look in ((True, {"color": COLOURS["distilled"]}), (False, {"color": "#b3261e", "fillstyle": "none"})):
        some = [line for line in finite if line.get("accepted", True) == accepted]
        plot.plot([line["iteration"] for line in some], [line["loss"] for line in some], ".", markersize=5, **look)
    if finite:
        plot.set_yscale("log")
    return svg(figure)


def _validation_figure(results: dict[str, Any]) -> str | None:
    """Accuracy on the split that chose the set, by iteration; None where none did."""
    found = results["validation"]
    if not found:
        return None
    split = results["chosen"]["on"]
    figure, plot = axes("iteration", f"accuracy on {split} images (%)", title="How good the set is")
    points = [entry["iteration"] for entry in found], [100 * entry["accuracy"] for entry in found]
    plot.plot(*points, "o-", color=COLOURS["distilled"], markersize=4)
    plot.axvline(results["chosen"]["iteration"], color="#8a8f98", linewidth=1, linestyle=":")
    return svg(figure)


def _step_size_figure(metrics: list[dict[str, Any]]) -> str | None:
    """The learned step size by iteration; None where none is learned."""
    drawn = [line for line in metrics if "step_size" in line]
    if not drawn:
        return None
    figure, plot = axes("iteration", "learned step size", title="The step size of the students")
    points = [line["iteration"] for line in drawn], [line["step_size"] for line in drawn]
    plot.plot(*points, color="#c98a1b", linewidth=1.5)
    return svg(figure)


def frames_of(snapshots: list[Snapshot], title: str = "") -> dict[str, Any]:
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
        plot.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        plot.set_yticks(range(len(names)), names, parse_math=False)  # a name may hold dollars
    figure.colorbar(shown, ax=plot, label="probability")
    return svg(figure)


def _distances_figure(drawn: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    """Distance of each image to its nearest training image, over how far real images lie from theirs."""
    x = "distance to the nearest training image (% of pixel range)"
    figure, plot = axes(x, "", 1.2 + 0.22 * len(drawn), "How near the set comes to real images")
    for y, one in enumerate(reversed(drawn)):
        if one["real"]:
            low, middle, high = (100 * value for value in one["real"])
            plot.barh(y, high - low, left=low, color=COLOURS["random"], alpha=0.35, height=0.6)
            plot.plot([middle, middle], [y - 0.3, y + 0.3], color=COLOURS["random"], linewidth=2)
        found = [100 * value for value in one["distances"]]
        plot.plot(found, [y] * len(found), "o", color=COLOURS["distilled"], markersize=4, alpha=0.6)
    plot.set_yticks(range(len(drawn)), [names[one["label"]] for one in reversed(drawn)], parse_math=False)
    plot.set_xlim(left=0)
    plot.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    plot.grid(axis="y", visible=False)
    return svg(figure)


def _measured(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a method found by measuring, with its two figures."""
    return {
        "name": name, "settings": {key: value for key, value in found["settings"].items() if value is not None},
        "grid_figure": _grid_figure(found), "rungs_figure": _rungs_figure(found),
    }  # fmt: skip


def _grid_figure(found: dict[str, Any]) -> str:
    """What the set leaves unexplained of each part of the trajectories, before anything is learned."""
    figure, plot = axes("start epoch", "matching loss of the initial set", title="What the set can match")
    chosen = found["settings"]
    epochs = [row["start"] for row in found["grid"]]
    for number, alpha in enumerate(sorted({entry["step_size"] for entry in found["grid"][0]["losses"]})):
        losses = [
            next(
                entry["loss"] for entry in row["losses"]
                if entry["step_size"] == alpha
                and all(entry[name] == chosen[name] for name in ("inner_steps", "expert_epochs"))
            )
            for row in found["grid"]
        ]  # fmt: skip
        width = 2.4 if alpha == chosen["step_size"] else 1.2
        label = f"step size {alpha:g}"
        plot.plot(epochs, losses, "o-", color=SERIES[number], label=label, linewidth=width, markersize=4)
    plot.axhline(found["matchable"], color="#b3261e", linewidth=1, linestyle="--")
    plot.axvspan(-0.3, found["limit"] + 0.3, color=COLOURS["distilled"], alpha=0.07, linewidth=0)
    plot.set_ylim(0, 1.5)
    plot.legend(frameon=False, fontsize=9)
    return svg(figure)


def _rungs_figure(found: dict[str, Any]) -> str:
    """Accuracy on validation images of every arm after each rung."""
    figure, plot = axes("iteration", "accuracy on validation images (%)", title="Successive halving")
    for arm, start in enumerate(found["arms"]):
        rungs = [entry for entry in found["rungs"] if entry["arm"] == arm]
        name = f"epochs {start['first']}–{start['stop'] - 1}" + (", won" if arm == found["winner"] else "")
        plot.plot(
            [entry["iteration"] for entry in rungs], [100 * entry["accuracy"] for entry in rungs], "o-",
            color=SERIES[arm % len(SERIES)], label=name, linewidth=2.4 if arm == found["winner"] else 1.2,
        )  # fmt: skip
    plot.legend(frameon=False, fontsize=9)
    return svg(figure)
