"""Methods × images per class × networks: what a comparison consists of, and the table that its records make.

A comparison is planned once, with every setting resolved to a number, and written to comparison.json.  The table is a
pure function of that plan and of the records in the store, so it can be drawn at any time, by anyone, while others
work.
"""

import ast
import dataclasses
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import bounds, files
from potstill.errors import PotstillError
from potstill.evaluation import statistics
from potstill.evaluation.evaluator import Event
from potstill.evaluation.protocol import protocol_of
from potstill.machine import environment
from potstill.methods import published
from potstill.networks.architectures import Architecture, NetworkConfig
from potstill.runs import run as runs
from potstill.runs import settings
from potstill.runs.settings import Settings
from potstill.runs.written import stages_of
from potstill.studies import budget
from potstill.studies import task as tasks
from potstill.studies.cells import check_honest
from potstill.studies.execute import Executor, execute, neighbours_of, threads_of
from potstill.studies.remedies import in_comparison
from potstill.studies.task import ExpertTask, FigureTask, SetTask, Task

logger = logging.getLogger(__name__)
KIND = "compare"
PLAN = "comparison.json"
CONTROLS = {"hard": "random", "soft": "random:labels=soft"}  # a method is held against the one with its kind of labels


@dataclass(frozen=True)
class Asked:
    """A comparison as it is asked for."""

    shared: Settings  # data, network, experts, augmentation and evaluation of all rows; its seed is the experts'
    methods: tuple[str, ...]  # as "datm", "datm+rat-bptt", "random:labels=soft", "datm:iterations=100+rat-bptt"
    ipcs: tuple[int, ...]
    networks: tuple[str, ...] = ()  # as "resnet18", "convnet:norm=batch"; none: the network that distils
    set_seeds: int = 3
    minutes: float | None = None  # of distilling, the same for every method; None: as each method's settings say
    published_settings: bool = False  # take each method's published cell where there is one
    published_as: str | None = None  # the dataset's name in published tables


@dataclass(frozen=True)
class Row:
    """A method at a size, and the tasks behind its figures."""

    name: str
    settings: Settings
    experts: list[ExpertTask]
    sets: list[SetTask]
    figures: dict[str, list[list[FigureTask]]]  # by network, then by set

    def tasks(self) -> list[Task]:
        """All, each after those it needs."""
        return [*self.experts, *self.sets, *(one for by_set in self.figures.values() for of in by_set for one in of)]


@dataclass(frozen=True)
class Plan:
    """All tasks of a comparison."""

    asked: Asked
    rows: list[Row]
    full: dict[str, list[FigureTask]]  # by network

    def tasks(self) -> list[Task]:
        """All, row by row."""
        return [one for row in self.rows for one in row.tasks()] + [one for of in self.full.values() for one in of]


def with_controls(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, with the controls before them that always stand in a comparison."""
    return (*(name for name in CONTROLS.values() if name not in methods), *methods)


# --- what is asked for ---------------------------------------------------------------------------------------------


def parse(text: str, what: str = "method") -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """A method as it is written on the command line: its stages, and what is changed in the settings of each.

    Stages are joined by "+", changes follow a colon: "datm:iterations=100,start_epochs=(8,11)+rat-bptt".

    Raises:
        PotstillError: a change that is no FIELD=VALUE.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, told in stages_of(text):
        if name in changes:
            raise PotstillError(f"{what} {text!r}: {name} stands there twice; name each stage once.")
        changes[name] = {}
        for pair in told:
            field, equals, value = pair.partition("=")
            if not equals:
                raise PotstillError(f"{what} {text!r}: {pair!r} changes nothing; write {name}:FIELD=VALUE.")
            changes[name][field.strip().replace("-", "_")] = _value(value.strip())
    return tuple(changes), changes


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def row_settings(asked: Asked, name: str, ipc: int) -> Settings:
    """The settings of a row: the method's own for this size, and what all rows share."""
    method, changes = parse(name)
    settings.check_methods(method)
    shared = asked.shared
    cell = _published_cell(asked, method, ipc)
    own = settings.configure(shared.dataset, ipc, cell, {"method": method, **changes})
    kept = {"method", "ipc", "start"}
    if cell is not None:  # whose network and whitening belong to it
        kept |= {key for one in method for key in settings.METHODS[one].published.get((dataset_name(asked), ipc), {})}
    names = {item.name for item in dataclasses.fields(settings.Shared)} - kept
    return replace(own, **{**{one: getattr(shared, one) for one in names}, "snapshots": 0})


def _published_cell(asked: Asked, method: Sequence[str], ipc: int) -> str | None:
    cell = (dataset_name(asked), ipc)
    known = asked.published_settings and any(cell in settings.METHODS[name].published for name in method)
    return settings.name_of(cell) if known else None


def dataset_name(asked: Asked) -> str:
    """The dataset as published tables call it: what was said, or what its path suggests."""
    return asked.published_as or Path(asked.shared.dataset).stem.lower().replace("cifar-", "cifar")


# --- the plan ------------------------------------------------------------------------------------------------------


def plan(asked: Asked, folder: Path, executor: Executor | None = None) -> Generator[Event, None, Plan]:
    """Resolve every setting, and name every task.

    Raises:
        PotstillError: a method, size or network that the data do not allow, before any work is done.
    """
    try:
        return (yield from _planned(asked, folder, executor))
    except PotstillError as error:
        raise PotstillError(in_comparison(error)) from error


def _planned(asked: Asked, folder: Path, executor: Executor | None) -> Generator[Event, None, Plan]:
    _check(asked)
    rows: dict[tuple[str, int], Row] = {}
    for ipc in sorted(asked.ipcs):
        for name in asked.methods:
            told, total = f"{name}, {ipc} per class", len(asked.ipcs) * len(asked.methods)
            yield {"stage": "planning", "done": len(rows), "total": total, "doing": told}
            with _naming(name, ipc):
                own = row_settings(asked, name, ipc)
                settings.check(own)
                rows[name, ipc] = _row(asked, name, own)
    if asked.minutes is not None:
        for row, own in (yield from _within_minutes(rows, asked.minutes, folder, executor)).items():
            rows[row] = _row(asked, row[0], own)
    return Plan(asked, [*rows.values()], _full(asked, [*rows.values()]))


@contextmanager
def _naming(name: str, ipc: int) -> Iterator[None]:
    """Say in errors which row they are of."""
    try:
        yield
    except PotstillError as error:
        raise PotstillError(f"{name} at {ipc} per class: {error}") from error


def _within_minutes(
    rows: Mapping[tuple[str, int], Row], minutes: float, folder: Path, executor: Executor | None
) -> Generator[Event, None, dict[tuple[str, int], Settings]]:
    """Settings of the rows that learn, with as many iterations as the minutes allow where they will be worked at.

    Raises:
        PotstillError: some could not be timed; all of them are named.
    """
    where = threads_of(executor), neighbours_of(executor)
    timed = {at: budget.timings(row.settings, minutes, *where) for at, row in rows.items() if row.settings.iterations}
    failures = yield from execute([one for of in timed.values() for one in of], folder, executor, stage="timing")
    failed = [
        f"{name} at {ipc} per class: {why[0].removeprefix(f'{of[0].label}: ')}"
        for (name, ipc), of in timed.items() if (why := [failures[one.key] for one in of if one.key in failures])
    ]  # fmt: skip
    if failed:
        raise PotstillError("; ".join(failed).rstrip(".") + ". Mend that, or leave those methods out.")
    found = {}
    for (name, ipc), of in timed.items():
        found[name, ipc], notes = budget.settled(of, folder)
        for note in notes:
            logger.warning("%s at %d per class: %s", name, ipc, note)
    return found


def _full(asked: Asked, rows: Sequence[Row]) -> dict[str, list[FigureTask]]:
    """The control of all training images, for every network of any row."""
    count = asked.shared.evaluation.full_seeds
    numbers = range(protocol_of(asked.shared.evaluation).seeds if count is None else count)
    found: dict[str, list[FigureTask]] = {}
    for row in rows:
        if found.keys() >= row.figures.keys():  # else its data would be read once more
            continue
        for name, config in _networks(asked, tasks.problem_of(row.settings).network_config).items():
            if name not in found:
                found[name] = [FigureTask(row.settings, config, None, number) for number in numbers]
    return found


def _check(asked: Asked) -> None:
    for flag, values in (("methods", asked.methods), ("ipcs", asked.ipcs), ("networks", asked.networks)):
        given = [str(value) for value in values]
        if twice := {value for value in given if given.count(value) > 1}:
            raise PotstillError(f"--{flag} {' '.join(given)}: {min(twice)} stands there twice; name each once.")
    if not asked.ipcs:
        raise PotstillError("--ipcs: no size is named; give one or more, e.g. --ipcs 1 10.")
    check_honest(asked.shared)
    known: dict[Settings, str] = {}
    for name in asked.methods:
        same = known.setdefault(row_settings(asked, name, asked.ipcs[0]), name)
        if same != name:
            raise PotstillError(f"--methods: {name} is the same as {same}; leave one of them out.")
    problem = tasks.problem_of(asked.shared)
    if (most := max(asked.ipcs)) > problem.smallest_class:
        raise PotstillError(
            f"--ipcs {most}: the smallest class has {problem.smallest_class} training images; lower it."
        )
    for name in asked.methods:
        runs.check_enough(row_settings(asked, name, most), problem.smallest_class)
    for config in _networks(asked, problem.network_config).values():
        _check_network(asked, config)


def _check_network(asked: Asked, config: NetworkConfig) -> None:
    """Refuse a network that the images do not suit."""
    try:
        tasks.evaluator_of(asked.shared, config)
    except PotstillError as error:
        reason = str(error).partition("; ")[0]
        raise PotstillError(f"--networks {config.name}: {reason}; leave it out.") from error


def _row(asked: Asked, name: str, own: Settings) -> Row:
    before = tasks.expert_tasks(own, asked.shared.seed)
    made = [tasks.set_task(replace(own, seed=own.seed + number), before) for number in range(asked.set_seeds)]
    networks, each = _networks(asked, tasks.problem_of(own).network_config), protocol_of(own.evaluation).seeds
    figures: dict[str, list[list[FigureTask]]] = {
        name: [
            [FigureTask(one.settings, config, one, each * number + seed) for seed in range(each)]
            for number, one in enumerate(made)
        ]
        for name, config in networks.items()
    }
    return Row(name, own, before, made, figures)


def _networks(asked: Asked, own: NetworkConfig) -> dict[str, NetworkConfig]:
    """The networks that are trained on the sets, as they were written: the one that distils, as it is, and others.

    Changes follow a colon, as for methods: "convnet:norm=batch", "resnet18:narrower=4".

    Raises:
        PotstillError: there is no such network or setting, or one stands there twice.
    """
    found: dict[str, NetworkConfig] = {}
    for told in asked.networks or (own.name,):
        names, changes = parse(told, "network")
        if len(names) > 1:
            raise PotstillError(f"--networks {told}: networks are not joined; separate them by spaces.")
        name = names[0]
        begun = own if name == own.name else NetworkConfig(bounds.fit(name, Architecture, "networks"))
        found[told] = bounds.changed(begun, changes[name], f"{name}:")
    return found


def as_plain(made: Plan, threads: int) -> dict[str, Any]:
    """The plan as it is written: settings, the keys of all tasks, and the machine with the threads of a task."""
    asked, shared = made.asked, made.asked.shared
    problem = tasks.problem_of(shared)
    rows = [
        {
            "name": row.name, "ipc": row.settings.ipc, "labels": _kind(row.settings),
            "config": settings.as_dict(row.settings), "experts": [one.key for one in row.experts],
            "sets": [one.key for one in row.sets],
            "figures": {name: [[one.key for one in of] for of in by] for name, by in row.figures.items()},
            "published": _published(asked, row), "changed": _unlike_published(asked, row),
        }
        for row in made.rows
    ]  # fmt: skip
    return files.stamped({
        "kind": KIND, "dataset": problem.dataset.name, "classes": len(problem.dataset.classes),
        "full_images": len(problem.dataset.train.labels), "shape": list(problem.dataset.shape),
        "network": problem.network_config.name, "protocol": vars(protocol_of(shared.evaluation)),
        "minutes": asked.minutes, "set_seeds": asked.set_seeds, "config": settings.as_dict(shared),
        "environment": {**environment(problem.device), "threads": threads}, "rows": rows,
        "full": {name: [one.key for one in of] for name, of in made.full.items()},
    })  # fmt: skip


def _kind(own: Settings) -> str:
    """Of the labels that networks train on."""
    return own.methods[-1].kind(own.stages[-1])


def _published(asked: Asked, row: Row) -> dict[str, Any] | None:
    """What the literature reports for a row, and where it was read; for a method as it is, without changes."""
    found = published.accuracy(row.name, dataset_name(asked), row.settings.ipc)
    return None if found is None else dataclasses.asdict(found)


def _unlike_published(asked: Asked, row: Row) -> list[str]:
    """In which settings a row differs from what its method's authors published for this cell; a line each."""
    lines = []
    for method, stage in zip(row.settings.methods, row.settings.stages, strict=True):
        cell = method.published.get((dataset_name(asked), row.settings.ipc), {})
        named = ((name, getattr(stage, name, getattr(row.settings, name, None)), value) for name, value in cell.items())
        for name, here, value in named:
            if not isinstance(value, Mapping) and files.plain(here) != files.plain(value):
                lines.append(f"{method.name}.{name} {here} (published {value})")
    return lines


# --- carrying it out -----------------------------------------------------------------------------------------------


def compare(
    asked: Asked, out: Path, folder: Path | None = None, executor: Executor | None = None
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Plan, do whatever the store lacks, and return the record; also written to out/compare.json.

    Args:
        asked: the comparison.
        out: where its plan and its record go.
        folder: the store of its tasks, which comparisons can share; None: the same as ``out``.
        executor: where tasks are carried out, closed at the end; None: here, one after another.
    """
    where = folder or out
    told = "." if where.resolve() == out.resolve() else str(where.resolve())  # so that a folder can be moved
    with nullcontext() if executor is None else closing(executor):
        made = yield from plan(asked, where, executor)
        files.write_json(out / PLAN, {**as_plain(made, threads_of(executor)), "store": told})
        yield from execute(made.tasks(), where, executor)
    return so_far(out, where)


def so_far(out: Path, folder: Path | None = None) -> dict[str, Any]:
    """The record of a comparison as far as it is done, also written to out/compare.json.

    Args:
        out: folder of the comparison.
        folder: the store of its tasks, where that is not where the plan says.
    """
    made = read_plan(out)
    found = results(made, folder or out / made["store"])
    files.write_json(out / f"{KIND}.json", found)
    return found


def read_plan(out: Path) -> dict[str, Any]:
    """The plan of a comparison.

    Raises:
        PotstillError: there is none.
    """
    if not (out / PLAN).is_file():
        raise PotstillError(f"{out}: holds no comparison ({PLAN} is missing); begin one by `potstill compare`.")
    found: dict[str, Any] = files.read_json(out / PLAN)
    return found


def results(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The record of a comparison, as far as its tasks are done: a pure function of its plan and of the store.

    Accuracies are means over sets, each the mean of its networks; their intervals are over sets.  "networks" holds the
    interval over all networks, whichever set they trained on; "first_figures" of a row the keys of the figures of its
    first set on the first network.
    """
    full = {name: _networks_done(folder, keys) for name, keys in made["full"].items()}
    failed = [why for keys in made["full"].values() for key in keys if (why := tasks.why_failed(folder, key))]
    rows = [_row_results(row, folder) for row in made["rows"]]
    found = {
        **{name: value for name, value in made.items() if name not in ("rows", "full")},
        "full": {name: statistics.interval(values) if values else None for name, values in full.items()},
        "full_failed": failed[0] if failed else None,
        "rows": rows,
    }
    for ipc in dict.fromkeys(row["ipc"] for row in rows):
        for network in made["full"]:
            _compare_column([row for row in rows if row["ipc"] == ipc], network)
    return found


def failed(record: Mapping[str, Any]) -> int:
    """How many rows of a record failed; the full training set counts as one."""
    return sum(why is not None for why in (record["full_failed"], *(row["failed"] for row in record["rows"])))


def _networks_done(folder: Path, keys: Sequence[str]) -> list[float]:
    return [found for key in keys if (found := tasks.accuracy_of(folder, key)) is not None]


def _row_results(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row's figures by network, and what its sets cost."""
    told = [tasks.set_folder(folder, key) / tasks.SET for key in row["sets"]]
    made = [files.read_json(path) for path in told if path.exists()]
    accuracy, networks = {}, {}
    for name, by_set in row["figures"].items():
        done = [values for keys in by_set if len(values := _networks_done(folder, keys)) == len(keys)]
        accuracy[name] = statistics.interval([sum(values) / len(values) for values in done]) if done else None
        networks[name] = statistics.interval([value for values in done for value in values]) if done else None
    keys = [*row["experts"], *row["sets"], *(key for by in row["figures"].values() for of in by for key in of)]
    failed = next((why for key in keys if (why := tasks.why_failed(folder, key)) is not None), None)
    own = {name: value for name, value in row.items() if name != "figures"}
    first = next(iter(row["figures"].values()))[0]  # on the first network: keys of those trained on the first set
    return {
        **own, "first_figures": first, "accuracy": accuracy, "networks": networks, "failed": failed,
        "sets_done": len(made),
        "diverged": next((one["diverged"] for one in made if one["diverged"]), None),
        "images": made[0]["images"] if made else None, "bytes": made[0]["bytes"] if made else None,
        "seconds": {
            name: _mean([one["seconds"][name] for one in made if one["seconds"][name] is not None])
            for name in ("distilling", "choosing", "experts")
        },
        "iterations": _mean([one["iterations"] for one in made]),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _compare_column(rows: Sequence[dict[str, Any]], network: str) -> None:
    """Hold the rows of one size against the control with their kind of labels, and against the best of them."""
    there = [row for row in rows if row["accuracy"].get(network)]
    by_name = {row["name"]: row for row in there}
    for row in rows:
        row.setdefault("gain", {})[network] = None
        row.setdefault("best", {})[network] = False
        control = by_name.get(CONTROLS["hard" if row["labels"] == "hard" else "soft"]) or by_name.get(CONTROLS["hard"])
        if row in there and control is not None and control is not row:
            against = statistics.difference(row["accuracy"][network], control["accuracy"][network])
            row["gain"][network] = {**against, "over": control["name"]}
    if not there:
        return
    first = max(there, key=lambda row: row["accuracy"][network]["mean"])
    others = [row for row in there if row is not first]
    worse = statistics.holm([statistics.p_value(first["accuracy"][network], o["accuracy"][network]) for o in others])
    for row, is_worse in zip(others, worse, strict=True):  # of one set nothing can be told
        row["best"][network] = not is_worse and row["accuracy"][network]["ci95"] is not None
    first["best"][network] = True
