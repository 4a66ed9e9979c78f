"""Continual learning: two new digits at a time, of which a memory of one image a class is all that stays.

python examples/continual_learning.py --record records/continual-learning.json

After each task a network is trained from nothing on the memory alone, and tested on every class seen so far, as in
Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, section 4.3 (there twenty images a class).
"""

from typing import Any

from common import Part, accuracy, digits, distilled_part, main, of_classes, random_part

from potstill.evaluation.statistics import difference, interval

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def measure(
    seeds: int = 5, tasks: tuple[tuple[int, ...], ...] = TASKS, ipc: int = 1, iterations: int = 300, epochs: int = 300
) -> dict[str, Any]:  # fmt: skip
    """Accuracy on all classes so far after each task, with a distilled memory and with a random one.

    A repetition has sets and networks of its own; both memories hold as many images.
    """
    data = digits()
    after: dict[str, list[list[float]]] = {"distilled": [], "random": []}
    for seed in range(seeds):
        memory: dict[str, list[Part]] = {"distilled": [], "random": []}
        for found in after.values():
            found.append([])
        for number, task in enumerate(tasks):
            images, labels = of_classes(data.train.images, data.train.labels, task)
            memory["distilled"].append(distilled_part(images, labels, ipc, 100 * seed + number, iterations))
            memory["random"].append(random_part(images, labels, ipc, 100 * seed + number))
            seen = [one for earlier in tasks[: number + 1] for one in earlier]
            test = of_classes(data.test.images, data.test.labels, seen)
            for name, parts in memory.items():
                after[name][-1].append(accuracy(parts, test, seed, epochs))
    return summary(after, ipc, {"tasks": tasks, "iterations": iterations, "epochs": epochs})


def summary(after: dict[str, list[list[float]]], ipc: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Figures after each task, and in words what is left at the end."""
    figures = {name: [interval(values) for values in zip(*runs, strict=True)] for name, runs in after.items()}
    last = {name: found[-1] for name, found in figures.items()}
    return {
        "after_each_task": figures, "difference": difference(last["distilled"], last["random"]), "ipc": ipc, **settings,
        "sentence": f"after the last task {last['distilled']['mean']:.1%} with a distilled memory of {ipc} a class, "
        f"{last['random']['mean']:.1%} with a random one",
    }  # fmt: skip


def draw(found: dict[str, Any]) -> Any:
    """Accuracy by the number of tasks, with 95 % intervals over repetitions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, steps in found["after_each_task"].items():
        means, numbers = [100 * step["mean"] for step in steps], range(1, len(steps) + 1)
        axes.plot(numbers, means, "o-", label=f"{name} memory")
        if all(step["ci95"] for step in steps):
            low, high = ([100 * step["ci95"][end] for step in steps] for end in (0, 1))
            axes.fill_between(numbers, low, high, alpha=0.2)
    axes.set_xlabel("tasks of two digits")
    axes.set_ylabel("right on all classes so far (%)")
    axes.set_xticks(range(1, len(steps) + 1))
    axes.legend()
    return figure


if __name__ == "__main__":
    main("continual_learning", measure, draw)
