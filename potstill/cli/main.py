"""The command line: parses, chooses paths, and hands the work to the stages."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from rich.table import Table

from potstill import files
from potstill.adjoint import engine
from potstill.cli.commands import (
    COMMANDS,
    Ablations,
    Distil,
    Evaluate,
    Experts,
    Export,
    Forecast,
    Lossless,
    Report,
    Run,
    Show,
    Stages,
    Windows,
)
from potstill.cli.console import (
    duration,
    err,
    fail,
    listen,
    out,
    print_exploration,
    print_results,
    progress,
    say,
    size,
    tensorboard,
)
from potstill.config import Config, NetworkConfig, default
from potstill.data.distilled import FILE, Distilled, grid, load, png
from potstill.errors import PotstillError
from potstill.evaluation.evaluator import Judge, judge, protocol_of
from potstill.report import run_page
from potstill.runs import api, forecast, measure
from potstill.runs import run as stages
from potstill.studies import exploring, lossless
from potstill.studies.exploring import Part
from potstill.training.problem import prepare


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a clear error, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        return _help()
    if arguments[0] == "--version":
        out.print(f"potstill {files.VERSION}")
        return 0
    words = 2 if arguments[0] == "explore" else 1
    name, arguments = " ".join(arguments[:words]), arguments[words:]
    if name in ("explore", "explore -h", "explore --help"):
        return _help("explore")
    if name not in COMMANDS:
        fail(f"{name!r}: no such command; choose among {', '.join(COMMANDS)}.")
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    engine.keep_freed_memory()
    listen()
    try:
        command = _parse(name, arguments)
        _RUNNERS[type(command)](command)
    except SystemExit as end:  # tyro's: 0 after --help, 2 for wrong usage
        return end.code if isinstance(end.code, int) else 2
    except PotstillError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename or 'a file'}: {error.strerror or error}; choose another path or mend its rights.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        sizes = "lower --distil.batch-size, --distil.micro-batch or --distil.inner-steps"
        return fail(f"out of memory; {'lower --width, or use --device cpu' if name == 'evaluate' else sizes}.")
    except KeyboardInterrupt:
        err.print("\nInterrupted; what was done is kept. The same command continues where it stopped.")
        return 130
    return 0


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
    command = tyro.cli(kind, args=arguments, prog=f"potstill {name}", default=kind(config=config, **required))
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--distil.")]
    names = [flag.removeprefix("--distil.").replace("-", "_") for flag in flags]
    return replace(command, config=measure.keep(command.config, names))


def _window_mode(arguments: list[str]) -> Iterator[str]:
    """``--window auto`` spelt as its field, and numbers of a window taken as given where nothing says otherwise."""
    names = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for argument, name in zip(arguments, names, strict=True):
        yield argument.replace("--window", "--window.mode", 1) if name == "--window" else argument
    numbers = {"--window.start", "--window.stop", "--window.initial", "--window.expand"} & set(names)
    if numbers and not {"--window", "--window.mode"} & set(names):
        yield "--window.mode=given"
    elif numbers and "auto" in _peek(arguments, ("--window", "--window.mode")).values():
        raise PotstillError(f"--window auto: finds what {min(numbers)} gives; leave one of them out.")


def _peek(arguments: list[str], flags: Sequence[str] = ("--preset", "--dataset", "--ipc")) -> dict[str, str]:
    """The values of some flags: by default of those that decide the defaults of the others."""
    found: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in flags:
            found[name[2:]] = value if equals else arguments[i + 1] if i + 1 < len(arguments) else ""
    return found


# --- the commands --------------------------------------------------------------------------------------------------


def _run(command: Run) -> None:
    run = _open(command.config, command.out, command.experts)
    with progress(tensorboard(command.tensorboard, run.folder)) as show:
        show(stages.train_experts(run))
        show(stages.distil(run))
        results = show(stages.evaluate(run))
    page = run_page.write(run.folder)
    print_results(results)
    say(f"\nthe set    {run.folder / FILE}\nthe page   {page}")
    say(f'train on it in Python:  network = potstill.train(potstill.load("{run.folder}"))')


def _experts(command: Experts) -> None:
    folder = command.out or Path("experts") / _name(command.config)
    stages.check(command.config)
    run = stages.Run(command.config, folder, folder)
    with progress() as show:
        store = show(stages.train_experts(run))
    mean = sum(store.accuracies) / len(store)
    say(f"{len(store)} experts in {folder}, {mean:.1%} right on validation images")


def _distill(command: Distil) -> None:
    run = _open(command.config, command.out, command.experts)
    with progress(tensorboard(command.tensorboard, run.folder)) as show:
        distilled = show(stages.distil(run))
    chosen = distilled.provenance
    say(
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
    with progress() as show:
        if command.evaluation.step_size == "chosen":
            distilled = show(_step_size_chosen(distilled, who, config))
        tried = bool(distilled.provenance.get("step_sizes"))
        config = replace(config, evaluation=replace(config.evaluation, step_size="chosen" if tried else "learned"))
        found = show(stages.evaluate_set(problem, distilled, config, who, command.experts or folder / "experts"))
    run = stages.Run(config, folder, command.experts or folder / "experts")
    results = stages.summary(run, problem, distilled, found, who)
    print_results(results)
    if command.json:
        files.write_json(command.json, results)
        say(f"figures    {command.json}")


def _step_size_chosen(distilled: Distilled, who: Judge, config: Config) -> Any:
    """The set with a step size chosen on validation images; the file stays as it is."""
    if vars(who.config) != distilled.recipe["network"]:
        raise PotstillError(
            "--step-size chosen: is between the step size the set has learned and smaller ones, which another network "
            "than the set's does not use; leave it out."
        )
    selecting = replace(who, protocol=stages.selector(config))
    return stages.settle_step_size(distilled, "chosen", selecting, {"stage": "evaluation", "done": 0, "total": 1})


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
    say(f"the page   {run_page.write(command.run)}")


def _show(command: Show) -> None:
    distilled = load(command.path, command.dataset)
    image = grid(distilled.pixels, distilled.labels, command.most)
    files.write_bytes(command.out, png(image))
    n, c, h, w = distilled.images.shape
    certain = float(distilled.soft_labels.max(1).values.mean())
    learned = "none" if distilled.step_size is None else f"{distilled.step_size:.4f}"
    say(
        f"{n} images of {w}×{h} pixels, {'grey' if c == 1 else 'colour'}, {len(distilled.classes)} classes; from "
        f"{distilled.provenance['dataset']['name']}, iteration {distilled.provenance['iteration']}; labels: "
        f"{distilled.kind}; step size {learned}; {distilled.transform.kind}; mean largest label {certain:.2f}",
    )
    say(f"picture    {command.out}")


def _export(command: Export) -> None:
    load(command.path, command.dataset).export(command.out)
    say(f"written    {command.out}")


def _forecast(command: Forecast) -> None:
    stages.check(command.config)
    with out.status("timing a few steps of each stage ..."):
        found = forecast.forecast(command.config)
    table = Table("", "time", "disk", title=f"{command.config.dataset}, {command.config.ipc} images per class")
    for stage in ("experts", "distilling", "evaluation"):
        table.add_row(stage, duration(found["seconds"][stage]), size(found["disk_bytes"].get(stage, 0)))
    table.add_row("[bold]in all[/]", duration(sum(found["seconds"].values())), size(sum(found["disk_bytes"].values())))
    out.print(table)
    out.print(f"peak memory about {size(found['memory_bytes'])} on {found['device']}; {found['engine']}")


def _stages(command: Stages) -> None:
    cells = exploring.stage_cells(command.config, command.ipcs, command.starts, command.width)
    _explored("stages", cells, command.out or Path("runs") / f"{_name(command.config)}-stages")


def _ablations(command: Ablations) -> None:
    cells = exploring.ablation_base(command.config)
    folder = command.out or Path("runs") / f"{_name(command.config)}-ipc{command.config.ipc}-ablations"
    _explored("ablations", cells, folder, command.parts)


def _windows(command: Windows) -> None:
    if command.count < 1:
        raise PotstillError(f"--count {command.count}: at least 1 window is needed to compare with.")
    cells = exploring.window_cells(command.config, command.count)
    folder = command.out or Path("runs") / f"{_name(command.config)}-ipc{command.config.ipc}-windows"
    _explored("windows", cells, folder)


def _explored(
    kind: str, cells: list[exploring.Cell], folder: Path, parts: tuple[Part, ...] = get_args(Part)
) -> None:  # fmt: skip
    for cell in cells:
        stages.check(cell.config)
    say(f"{folder}: {len(cells)} runs")
    with progress() as show:
        record = show(exploring.explore(kind, cells, folder, parts))
    print_exploration(record, folder)


def _lossless(command: Lossless) -> None:
    config = lossless.with_full_control(command.config)
    stages.check(config)
    folder = command.out or Path("runs") / f"{_name(config)}-lossless"
    smallest = prepare(config).smallest_class
    most = smallest // 2 if command.most is None else command.most
    if most > smallest:
        raise PotstillError(f"--most {most}: the smallest class has {smallest} training images; lower it.")
    if most < config.ipc:
        raise PotstillError(f"--most {most}: is less than --ipc {config.ipc}, where the search begins; raise it.")
    say(f"{folder}: from {config.ipc} to at most {most} images per class")
    with progress() as show:
        record = show(lossless.search(config, folder, most, command.margin))
    print_exploration(record, folder)


_RUNNERS: dict[type[Any], Callable[[Any], None]] = {
    Run: _run, Experts: _experts, Distil: _distill, Evaluate: _evaluate, Report: _report, Show: _show,
    Export: _export, Forecast: _forecast, Stages: _stages, Ablations: _ablations, Windows: _windows,
    Lossless: _lossless,
}  # fmt: skip


# --- what they share -----------------------------------------------------------------------------------------------


def _open(config: Config, folder: Path | None, experts: Path | None) -> stages.Run:
    folder = folder or Path("runs") / f"{_name(config)}-ipc{config.ipc}"
    run = stages.open_run(config, folder, experts)
    say(f"{run.folder}: {config.dataset}, {config.ipc} images per class, seed {config.seed}")
    return run


def _name(config: Config) -> str:
    """A folder's name for a dataset."""
    return Path(config.dataset).stem if Path(config.dataset).exists() else config.dataset.replace("/", "-")


if __name__ == "__main__":
    sys.exit(main())
