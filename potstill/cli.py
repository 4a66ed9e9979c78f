"""The command line: the only place that parses, prints and chooses paths."""

import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from potstill import api, artefacts, atlas, engine, exploring, figures, forecasting, lossless, report
from potstill import run as stages
from potstill.config import Architecture, Config, EvaluationConfig, NetworkConfig, Norm, default
from potstill.distilled import FILE, grid, load, png
from potstill.errors import PotstillError
from potstill.evaluation import judge, protocol_of
from potstill.problem import prepare

T = TypeVar("T")
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

PLAIN_SECONDS = 15.0  # between lines of progress where the output is no terminal
Flat = Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Run:
    """The main job: data → experts → distil → evaluate → report.

    Interrupted or killed, the same command continues where it stopped. Without --preset the settings follow from the
    dataset and --ipc; a preset fills them from the paper. Try it as it is: it distils the embedded digits.
    """

    config: Flat = field(default_factory=Config)
    preset: str | None = None
    """Settings of a published cell, e.g. cifar10-ipc10; other flags change single ones."""
    out: Path | None = None
    """Folder of the run; omitted: runs/DATASET-ipcN."""
    experts: Path | None = None
    """Folder of experts shared between runs; omitted: inside the run's folder."""
    tensorboard: bool = False
    """Write event files as well, where the package tensorboard is installed."""


@dataclass(frozen=True)
class Experts:
    """Train experts on the real data: the trajectories to be matched. Resumable."""

    config: Flat = field(default_factory=Config)
    preset: str | None = None
    """Settings of a published cell; other flags change single ones."""
    out: Path | None = None
    """Folder of the experts; omitted: experts/DATASET."""


@dataclass(frozen=True)
class Distil:
    """Distil by the experts of a folder, and keep the set that is best on validation data. Resumable."""

    experts: Path
    """Folder of experts, made by `potstill experts`."""
    config: Flat = field(default_factory=Config)
    preset: str | None = None
    """Settings of a published cell; other flags change single ones."""
    out: Path | None = None
    """Folder of the run; omitted: runs/DATASET-ipcN."""
    tensorboard: bool = False
    """Write event files as well, where the package tensorboard is installed."""


@dataclass(frozen=True)
class Evaluate:
    """Train fresh networks on a distilled set, and judge them on the test images beside three controls."""

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run."""
    dataset: str | None = None
    """The data it was distilled from, if it lies elsewhere now; omitted: where it lay then."""
    experts: Path | None = None
    """Folder of the experts, for the control with soft labels; omitted: beside the set, if they are there."""
    network: Architecture | None = None
    """Network to train; omitted: the one the set was made with."""
    width: int | None = None
    """Its width, where it has one."""
    depth: int | None = None
    """Its depth, where it has one."""
    norm: Norm | None = None
    """Its normalisation."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)
    device: str = "auto"
    """Where to train."""
    json: Path | None = None
    """Write the figures to this file as well."""


@dataclass(frozen=True)
class Report:
    """Write report.html of a run anew: one page with figures, tables and pictures, to open in any browser."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""


@dataclass(frozen=True)
class Show:
    """Say what a distilled set holds, and draw its images in true colours."""

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run."""
    out: Path = Path("images.png")
    """The picture to write."""
    most: int = 10
    """Images of each class to draw."""
    dataset: str | None = None
    """The data it was distilled from; only a compact file needs it."""


@dataclass(frozen=True)
class Export:
    """Write a distilled set for other tools; the ending of --out decides the format."""

    path: tyro.conf.Positional[Path]
    """A distilled.safetensors, or the folder of a run."""
    out: Path
    """x.npz (exact: whitened images, soft labels, transform), x.parquet or x.png (true colours), or a folder of
    class folders."""
    dataset: str | None = None
    """The data it was distilled from; only a compact file needs it."""


@dataclass(frozen=True)
class Stages:
    """Match early, middle and late parts of the trajectories at several sizes: what networks gain over random images.

    Leaves a page with the figure, the table and the images side by side. Resumable.
    """

    config: Flat = field(default_factory=Config)
    ipcs: tuple[int, ...] = (1, 10, 30)
    """Images per class to try."""
    starts: tuple[int, ...] | None = None
    """First start epoch of each part; omitted: an early, a middle and the last one."""
    width: int = 3
    """Start epochs in a part."""
    out: Path | None = None
    """Folder of the exploration; omitted: runs/DATASET-stages."""


@dataclass(frozen=True)
class Ablations:
    """Leave out or change one part of the method at a time: what each is worth, in one table with intervals.

    Labels fixed or learned, growing window, start, number of experts, exact or frozen gradients. Resumable.
    """

    config: Flat = field(default_factory=Config)
    preset: str | None = None
    """Settings of a published cell; other flags change single ones."""
    out: Path | None = None
    """Folder of the exploration; omitted: runs/DATASET-ipcN-ablations."""


@dataclass(frozen=True)
class Windows:
    """Hold the window that --window auto finds against some chosen by hand, evenly from early to late. Resumable."""

    config: Flat = field(default_factory=Config)
    preset: str | None = None
    """Settings of a published cell; other flags change single ones."""
    count: int = 5
    """Windows chosen by hand."""
    out: Path | None = None
    """Folder of the exploration; omitted: runs/DATASET-ipcN-windows."""


@dataclass(frozen=True)
class Lossless:
    """Find the smallest set that trains as well as the full data: doubling, then bisection, over resumable runs."""

    config: Flat = field(default_factory=Config)
    most: int | None = None
    """Images per class at which to give up; omitted: half of the smallest class."""
    margin: float = 0.0
    """How much accuracy may be lost, as a fraction of 1; 0: none that is significant."""
    out: Path | None = None
    """Folder of the search; omitted: runs/DATASET-lossless."""


@dataclass(frozen=True)
class Forecast:
    """Time, memory and disk of a run before it starts, from a few timed steps."""

    config: Flat = field(default_factory=Config)
    preset: str | None = None
    """Settings of a published cell; other flags change single ones."""


COMMANDS: dict[str, type[Any]] = {
    "run": Run, "experts": Experts, "distill": Distil, "evaluate": Evaluate, "report": Report, "show": Show,
    "export": Export, "forecast": Forecast, "explore stages": Stages, "explore ablations": Ablations,
    "explore windows": Windows,    "lossless": Lossless,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a clear error, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        return _help()
    if arguments[0] == "--version":
        out.print(f"potstill {artefacts.VERSION}")
        return 0
    words = 2 if arguments[0] == "explore" else 1
    name, arguments = " ".join(arguments[:words]), arguments[words:]
    if name in ("explore", "explore -h", "explore --help"):
        return _help("explore")
    if name not in COMMANDS:
        _fail(f"{name!r}: no such command; choose among {', '.join(COMMANDS)}.")
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    engine.keep_freed_memory()
    try:
        command = _parse(name, arguments)
        _RUNNERS[type(command)](command)
    except SystemExit as end:  # tyro's: 0 after --help, 2 for wrong usage
        return end.code if isinstance(end.code, int) else 2
    except PotstillError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(
            f"{error.filename or 'a file'}: {error.strerror or error}; choose another path or mend its rights."
        )
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return _fail("out of memory; lower --distil.batch-size, --distil.micro-batch or --distil.inner-steps.")
    except KeyboardInterrupt:
        err.print("\nInterrupted; what was done is kept. The same command continues where it stopped.")
        return 130
    return 0


def _say(text: str) -> None:
    """Print text as it stands: a path may hold what rich takes for markup."""
    out.print(text, markup=False, soft_wrap=True)


def _fail(sentence: str) -> int:
    err.print("[bold red]error:[/] ", end="")
    err.print(sentence, markup=False, soft_wrap=True)
    return 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _help(group: str = "") -> int:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, command in COMMANDS.items():
        if name.startswith(group):
            table.add_row(f"[bold]{name}[/]", (command.__doc__ or "").strip().splitlines()[0])
    if group:
        out.print(table)
        return 0
    out.print("[bold]potstill[/] distils a training set: a small synthetic one to train on instead of the original.\n")
    out.print("usage: potstill COMMAND [OPTIONS]      potstill COMMAND --help explains every option\n")
    out.print(table)
    out.print("\nStart with:  potstill run                                            the embedded digits, two minutes")
    out.print("             potstill run --dataset path/to/folder --ipc 10          your own data")
    out.print("             potstill explore stages                                 which part of the path to match")
    out.print("             potstill forecast --preset cifar10-ipc10 --dataset ...  what it would cost")
    return 0


def _parse(name: str, arguments: list[str]) -> Any:
    """The command's dataclass, its defaults first set by --preset, --dataset and --ipc."""
    kind = COMMANDS[name]
    arguments = list(_window_mode(arguments))
    if "config" not in kind.__dataclass_fields__:
        return tyro.cli(kind, args=arguments, prog=f"potstill {name}")
    given = {"ipc": "10"} if kind is Stages else {}  # whose experts go far enough for late parts
    given |= _peek(arguments)
    if given.get("preset"):
        only_asking = {"-h", "--help"} & set(arguments)
        config = api.named_preset(given["preset"], given.get("dataset", "digits" if only_asking else None))
    else:
        ipc = given.get("ipc", "1")
        config = default(given.get("dataset", "digits"), int(ipc) if ipc.lstrip("-").isdigit() else 1)
    required = {"experts": tyro.MISSING} if kind is Distil else {}
    return tyro.cli(kind, args=arguments, prog=f"potstill {name}", default=kind(config=config, **required))


def _window_mode(arguments: list[str]) -> Iterator[str]:
    """``--window auto`` spelt as its field, and numbers of a window taken as given where nothing says otherwise."""
    names = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for argument, name in zip(arguments, names, strict=True):
        yield argument.replace("--window", "--window.mode", 1) if name == "--window" else argument
    numbers = {"--window.start", "--window.stop", "--window.initial", "--window.expand"}
    if numbers & set(names) and not {"--window", "--window.mode"} & set(names):
        yield "--window.mode=given"


def _peek(arguments: list[str]) -> dict[str, str]:
    """The flags that decide the defaults of the others."""
    found: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--preset", "--dataset", "--ipc"):
            found[name[2:]] = value if equals else arguments[i + 1] if i + 1 < len(arguments) else ""
    return found


# --- the commands --------------------------------------------------------------------------------------------------


def _run(command: Run) -> None:
    run = _open(command.config, command.out, command.experts)
    with _progress(_tensorboard(command.tensorboard, run.folder)) as show:
        show(stages.train_experts(run))
        show(stages.distil(run))
        results = show(stages.evaluate(run))
    page = report.write(run.folder)
    _print_results(results)
    _say(f"\nthe set    {run.folder / FILE}\nthe page   {page}")
    _say(f'train on it in Python:  network = potstill.train(potstill.load("{run.folder}"))')


def _experts(command: Experts) -> None:
    folder = command.out or Path("experts") / _name(command.config)
    stages.check(command.config)
    run = stages.Run(command.config, folder, folder)
    with _progress() as show:
        store = show(stages.train_experts(run))
    mean = sum(store.accuracies) / len(store)
    _say(f"{len(store)} experts in {folder}, {mean:.1%} right on validation images")


def _distill(command: Distil) -> None:
    run = _open(command.config, command.out, command.experts)
    with _progress(_tensorboard(command.tensorboard, run.folder)) as show:
        distilled = show(stages.distil(run))
    chosen = distilled.provenance
    _say(
        f"{len(distilled)} images in {run.folder / FILE}, of iteration {chosen['iteration']}: "
        f"{chosen['chosen_with_accuracy']:.1%} on {chosen['chosen_on']} images. Judge it by `potstill evaluate`.",
    )


def _evaluate(command: Evaluate) -> None:
    distilled = load(command.path, command.dataset)
    if protocol_of(command.evaluation).selection == "test":
        raise PotstillError(
            "protocol paper: it chooses the set on test data while distilling, so a finished set cannot be judged by "
            "it; give it to `potstill run`, or judge by --protocol standard."
        )
    config = api.configure("digits", None, None, _settings(distilled.provenance["config"]))
    config = replace(
        config, dataset=command.dataset or config.dataset, evaluation=command.evaluation, device=command.device
    )
    _check_shape(command)
    problem = prepare(config)
    if problem.dataset.fingerprint != distilled.provenance["dataset"]["fingerprint"]:
        raise PotstillError(
            f"{config.dataset}: is not the data this set was distilled from (fingerprint "
            f"{problem.dataset.fingerprint}, not {distilled.provenance['dataset']['fingerprint']}); give the original "
            "data by --dataset."
        )
    problem = replace(problem, transform=distilled.transform)
    network = _chosen_network(command, problem.network_config)
    who = judge(problem, network, protocol_of(command.evaluation), config.augment)
    folder = command.path if command.path.is_dir() else command.path.parent
    with _progress() as show:
        found = show(stages.evaluate_set(problem, distilled, config, who, command.experts or folder / "experts"))
    run = stages.Run(config, folder, command.experts or folder / "experts")
    results = stages.summary(run, problem, distilled, found, who)
    _print_results(results)
    if command.json:
        artefacts.write_json(command.json, results)
        _say(f"figures    {command.json}")


def _check_shape(command: Evaluate) -> None:
    for name in ("width", "depth"):
        if (value := getattr(command, name)) is not None and value < 1:
            raise PotstillError(f"{name} {value}: at least 1 is needed; raise --{name}.")


def _chosen_network(command: Evaluate, own: NetworkConfig) -> NetworkConfig:
    """The network of the command line, or the set's own with what the flags change."""
    base = own if command.network in (None, own.name) else NetworkConfig(name=command.network or own.name)
    changes = {name: getattr(command, name) for name in ("width", "depth", "norm")}
    return replace(base, **{name: value for name, value in changes.items() if value is not None})


def _settings(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration as settings: lists become the tuples they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _report(command: Report) -> None:
    _say(f"the page   {report.write(command.run)}")


def _show(command: Show) -> None:
    distilled = load(command.path, command.dataset)
    image = grid(distilled.pixels, distilled.labels, command.most)
    artefacts.write_bytes(command.out, png(image))
    n, c, h, w = distilled.images.shape
    certain = float(distilled.soft_labels.max(1).values.mean())
    _say(
        f"{n} images of {w}×{h} pixels, {'grey' if c == 1 else 'colour'}, {len(distilled.classes)} classes; from "
        f"{distilled.provenance['dataset']['name']}, iteration {distilled.provenance['iteration']}; step size "
        f"{distilled.step_size:.4f}; {distilled.transform.kind}; mean largest label {certain:.2f}",
    )
    _say(f"picture    {command.out}")


def _export(command: Export) -> None:
    load(command.path, command.dataset).export(command.out)
    _say(f"written    {command.out}")


def _forecast(command: Forecast) -> None:
    stages.check(command.config)
    with out.status("timing a few steps of each stage ..."):
        found = forecasting.forecast(command.config)
    table = Table("", "time", "disk", title=f"{command.config.dataset}, {command.config.ipc} images per class")
    for stage in ("experts", "distilling", "evaluation"):
        table.add_row(stage, _duration(found["seconds"][stage]), _size(found["disk_bytes"].get(stage, 0)))
    table.add_row(
        "[bold]in all[/]", _duration(sum(found["seconds"].values())), _size(sum(found["disk_bytes"].values()))
    )
    out.print(table)
    out.print(f"peak memory about {_size(found['memory_bytes'])} on {found['device']}; {found['engine']}")


def _stages(command: Stages) -> None:
    cells = exploring.stage_cells(command.config, command.ipcs, command.starts, command.width)
    _explored("stages", cells, command.out or Path("runs") / f"{_name(command.config)}-stages", atlas.stages_finding)


def _ablations(command: Ablations) -> None:
    cells = exploring.ablation_base(command.config)
    folder = command.out or Path("runs") / f"{_name(command.config)}-ipc{command.config.ipc}-ablations"
    _explored("ablations", cells, folder, atlas.ablations_finding)


def _windows(command: Windows) -> None:
    if command.count < 1:
        raise PotstillError(f"--count {command.count}: at least 1 window is needed to compare with.")
    cells = exploring.window_cells(command.config, command.count)
    folder = command.out or Path("runs") / f"{_name(command.config)}-ipc{command.config.ipc}-windows"
    _explored("windows", cells, folder, atlas.windows_finding)


def _explored(
    kind: str, cells: list[exploring.Cell], folder: Path, finding: Callable[[dict[str, Any]], str]
) -> None:  # fmt: skip
    for cell in cells:
        stages.check(cell.config)
    _say(f"{folder}: {len(cells)} runs")
    with _progress() as show:
        record = show(exploring.explore(kind, cells, folder))
    _print_exploration(record, folder, finding(record))


def _lossless(command: Lossless) -> None:
    config = lossless.with_full_control(command.config)
    stages.check(config)
    folder = command.out or Path("runs") / f"{_name(config)}-lossless"
    most = command.most or prepare(config).smallest_class // 2
    if most < config.ipc:
        raise PotstillError(f"--most {most}: is less than --ipc {config.ipc}, where the search begins; raise it.")
    _say(f"{folder}: from {config.ipc} to at most {most} images per class")
    with _progress() as show:
        record = show(lossless.search(config, folder, most, command.margin))
    _print_exploration(record, folder, atlas.lossless_finding(record))


def _print_exploration(record: dict[str, Any], folder: Path, finding: str) -> None:
    page = atlas.write(record, folder)
    heads, rows = atlas.table(record)
    printed = Table(*heads, title=record["dataset"])
    for row in rows:
        printed.add_row(*row["cells"], style="bold" if row["best"] else None)
    out.print(printed)
    _say(f"{finding}.")
    _say(f"\nthe page    {page}\nthe figure  {page.with_suffix('.png')}\nfigures     {page.with_suffix('.json')}")


_RUNNERS: dict[type[Any], Callable[[Any], None]] = {
    Run: _run, Experts: _experts, Distil: _distill, Evaluate: _evaluate, Report: _report, Show: _show,
    Export: _export, Forecast: _forecast, Stages: _stages, Ablations: _ablations, Windows: _windows,
    Lossless: _lossless,
}  # fmt: skip


# --- what they share -----------------------------------------------------------------------------------------------


def _open(config: Config, folder: Path | None, experts: Path | None) -> stages.Run:
    folder = folder or Path("runs") / f"{_name(config)}-ipc{config.ipc}"
    run = stages.open_run(config, folder, experts)
    _say(f"{run.folder}: {config.dataset}, {config.ipc} images per class, seed {config.seed}")
    return run


def _name(config: Config) -> str:
    """A folder's name for a dataset."""
    return Path(config.dataset).stem if Path(config.dataset).exists() else config.dataset.replace("/", "-")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _print_results(results: dict[str, Any]) -> None:
    protocol = results["protocol"]
    title = f"{results['dataset']}, {results['ipc']} images per class, {results['network']}, {protocol['name']}"
    table = Table("trained on", "accuracy", "95 % interval", "networks", title=title)
    for name, label in figures.NAMES.items():
        if name in results["accuracy"]:
            figure = results["accuracy"][name]
            low_high = figure["ci95"]
            shown = f"{low_high[0]:.1%} to {low_high[1]:.1%}" if low_high else "one network: none"
            table.add_row(label, f"{figure['mean']:.1%}", shown, str(len(figure["per_seed"])))
    out.print(table)
    if protocol["selection"] == "test":
        out.print("protocol paper: chosen on the test set, only to compare with published tables")


@contextmanager
def _progress(record: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """A function that runs a stage to its end and shows how far it is, with the time left."""
    columns = (
        TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False), TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    live = Progress(*columns, console=err, disable=not err.is_terminal, speed_estimate_period=120)

    def show(events: Generator[dict[str, Any], None, T]) -> T:
        bar = live.add_task("starting", total=None, detail="reading the data")
        lines = _PlainLines()

        def on_event(event: dict[str, Any]) -> None:
            live.update(
                bar, description=event["stage"], completed=event["done"], total=event["total"], detail=_detail(event)
            )
            if not err.is_terminal:
                lines.tell(event)
            if record:
                record(event)

        return api.exhaust(events, on_event)

    with live:
        yield show


class _PlainLines:
    """Progress as lines now and then, for logs."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.told, self.first = 0.0, None

    def tell(self, event: dict[str, Any]) -> None:
        now, done, total = time.monotonic(), event["done"], event["total"]
        if self.first is None:
            self.first = done
        if now - self.told < PLAIN_SECONDS and done < total:
            return
        self.told = now
        fresh = done - self.first
        left = f", {_duration((now - self.began) / fresh * (total - done))} left" if fresh and done < total else ""
        err.print(f"{event['stage']} {done}/{total}{left}  {_detail(event)}", markup=False, soft_wrap=True)


def _detail(event: dict[str, Any]) -> str:
    """What is worth knowing of an event, in a few words."""
    parts: Iterable[tuple[str, str]] = (
        ("doing", "{}"), ("expert", "expert {}"), ("epoch", "epoch {}"), ("start_epoch", "from epoch {}"),
        ("loss", "loss {:.3f}"), ("step_size", "step size {:.4f}"),
        ("cell", "{}"), ("judged", "{0[on]} {0[accuracy]:.1%}"), ("set", "{}"), ("network", "network {}"),
    )  # fmt: skip
    words = [text.format(event[name]) for name, text in parts if name in event]
    counts = (("skipped", "skipped"), ("rolled_back", "undone"))
    words += [f"{event[name]} {label}" for name, label in counts if event.get(name)]
    return ", ".join(words)


def _tensorboard(wanted: bool, folder: Path) -> Callable[[dict[str, Any]], None] | None:
    """Writes the metrics of distilling as event files."""
    if not wanted:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PotstillError("--tensorboard: the package tensorboard is missing; pip install tensorboard.") from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def record(event: dict[str, Any]) -> None:
        if event["stage"] == "distilling" and "iteration" in event:
            for name in ("loss", "step_size", "start_epoch", "skipped", "rolled_back"):
                writer.add_scalar(name, event[name], event["iteration"])
            writer.add_scalar("accuracy", event["judged"]["accuracy"], event["judged"]["iteration"])
            writer.flush()

    return record


if __name__ == "__main__":
    sys.exit(main())
