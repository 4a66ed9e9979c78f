"""What each command does: chooses paths, hands the work to the stages, and returns its results as plain values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from potstill import files, ranks
from potstill.adjoint import engine
from potstill.cli import doctor
from potstill.cli.arguments import parse
from potstill.cli.commands import (
    Ablations,
    Cache,
    Compare,
    Distill,
    Doctor,
    Evaluate,
    Experts,
    Export,
    Forecast,
    Import,
    Lossless,
    Methods,
    Push,
    Report,
    Run,
    Show,
    Stages,
    Train,
    Windows,
)
from potstill.cli.console import (
    deadline,
    print_cache,
    print_comparison,
    print_findings,
    print_json,
    print_method,
    print_methods,
    print_results,
    print_study,
    progress,
    set_up_logging,
    size,
    tensorboard,
    working,
)
from potstill.cli.terminal import err, mode, out, remark, say
from potstill.data import hub
from potstill.data.distilled import FILE, grid, load, png
from potstill.errors import PotstillError
from potstill.evaluation import saved, tuning
from potstill.evaluation.evaluator import evaluator_for, network_for, train
from potstill.evaluation.protocol import protocol_of, selecting
from potstill.machine import commit
from potstill.methods import METHODS
from potstill.methods.method import Experts as AllExperts
from potstill.methods.method import Method
from potstill.networks.architectures import NetworkConfig, is_own
from potstill.process import find_compiler_cache
from potstill.report import card, comparison_page, run_page
from potstill.report.study_page import Study
from potstill.runs import forecast, given, imported, recipes, record, settings, stage
from potstill.runs import run as runs
from potstill.runs.progress import duration
from potstill.runs.settings import Settings
from potstill.store import cache_folder, clear, kept
from potstill.studies import ablations, compare, execute, lossless, search, start_epochs
from potstill.studies import cells as cells_of
from potstill.studies.cells import Cell
from potstill.training import experts, trajectories

SHARED = ("run", "experts", "distill", "evaluate")  # commands that several processes can work at together


def run(name: str, arguments: list[str]) -> None:
    """Parse a command's arguments, and do what they say."""
    engine.keep_freed_memory()
    set_up_logging()
    find_compiler_cache()
    with ranks.together(), _quiet_beside_the_first():
        if ranks.world() > 1 and name not in SHARED:
            raise PotstillError(f"potstill {name}: works in one process; start it without torchrun.")
        command = _parsed_once(name, arguments)
        result = RUNNERS[type(command)](command)
        if mode.json and ranks.first():
            print_json(result)
        if isinstance(command, Compare) and not command.show:
            _check_rows(command, result)


def _parsed_once(name: str, arguments: list[str]) -> Any:
    """The command.  Of several processes the first parses before the others, so that wrong usage is told once."""
    if not ranks.first() and (code := ranks.from_first()) is not None:
        raise SystemExit(code)
    try:
        command = parse(name, arguments)
    except SystemExit as end:  # tyro's, after wrong usage or help
        if ranks.first():
            ranks.from_first(end.code)
        raise
    if ranks.first():
        ranks.from_first(None)
    return command


@contextmanager
def _quiet_beside_the_first() -> Iterator[None]:
    """Several processes at one job print once; endings are told by the one that ends first, whichever it is."""
    out.quiet = err.quiet = not ranks.first()
    try:
        yield
    finally:
        out.quiet = err.quiet = False


# --- the commands --------------------------------------------------------------------------------------------------


def _run(command: Run) -> Any:
    _check_ending("record", command.record, ".json")
    asked = recipes.tiny(command.settings) if command.tiny else command.settings
    folder = command.out or _folder(asked, command.recipe, command.tiny)
    ran_from = commit()  # before the hours in which another may be checked out
    with _opened(asked, folder, command.experts) as run:
        with progress(tensorboard(command.tensorboard and ranks.first(), folder), deadline(command.minutes)) as show:
            stage.check_start(run)
            show(runs.train_experts(run))
            distilled = show(stage.distil(run))
            results = show(record.evaluate(run, distilled))
        page = run_page.write(folder) if ranks.first() else None
    if command.record and ranks.first():
        recipes.write_record(command.record, command.recipe or folder.name, ran_from, results, distilled)
    print_results(results)
    say(f"\nthe set    {folder / FILE}\nthe page   {page}")
    remark(f'train on it in Python:  network = potstill.train(potstill.load("{folder}"))')
    return {**results, "folder": str(folder)}


def _methods(command: Methods) -> Any:
    if command.name is None:
        print_methods(METHODS)
        return [_plain(method) for method in METHODS.values()]
    settings.check_methods((command.name,))
    print_method(METHODS[command.name])
    return _plain(METHODS[command.name])


def _plain(method: Method) -> dict[str, Any]:
    """A method for other programs: what it is, the defaults of its settings, and its cells."""
    cells = {"published": method.published, "tuned": method.tuned}
    return {
        "name": method.name, "title": method.title, "family": method.family, "citation": method.citation,
        "settings": asdict(method.settings()),
        **{kind: {f"{data}-ipc{ipc}": dict(cell) for (data, ipc), cell in of.items()} for kind, of in cells.items()},
    }  # fmt: skip


def _experts(command: Experts) -> Any:
    folder = command.out or Path("experts") / _name(command.settings)
    settings.check(command.settings)
    needed = runs.expert_needs(command.settings) or AllExperts()
    problem = runs.prepare_problem(command.settings)
    with progress() as show:
        show(runs.train_all(command.settings, problem, folder, needed))
    store = trajectories.open_store(folder)
    say(f"{len(store)} experts in {folder}, {store.accuracy:.1%} right on validation images")
    return {"folder": str(folder), "accuracies": list(store.accuracies)}


def _distill(command: Distill) -> Any:
    folder = command.out or _folder(command.settings)
    with _opened(command.settings, folder, command.experts) as run:  # noqa: SIM117
        with progress(tensorboard(command.tensorboard and ranks.first(), folder)) as show:
            distilled = show(stage.distil(run))
    chosen = distilled.provenance
    known = "chosen_on" in chosen
    seen = f"{chosen['chosen_with_accuracy']:.1%} on {chosen['chosen_on']} images" if known else "not evaluated"
    say(
        f"{len(distilled)} images in {folder / FILE}, of iteration {chosen['iteration']}: {seen}. Test it by `potstill "
        "evaluate`."
    )
    told = ("iteration", "chosen_with_accuracy", "chosen_on")
    return {"set": str(folder / FILE), "images": len(distilled), **{name: chosen.get(name) for name in told}}


def _evaluate(command: Evaluate) -> Any:
    _check_ending("record", command.record, ".json")
    distilled, ran_from = load(command.path, command.dataset), commit()
    given.check_protocol(command.evaluation)
    asked = replace(
        settings.from_dict(distilled.provenance["config"]), evaluation=command.evaluation, device=command.device
    )
    asked = replace(asked, dataset=command.dataset or asked.dataset)
    _check_evaluate(command)
    foreign = is_own(asked.network) and command.network is not None  # a network whose function is not known here
    if foreign:
        asked = replace(asked, network=_chosen_network(command, asked.network))
    problem = given.problem_of(distilled, asked)
    network = _chosen_network(command, problem.network_config)
    who = evaluator_for(problem, network, protocol_of(command.evaluation), asked.augment)
    folder = command.path if command.path.is_dir() else command.path.parent
    run = runs.Run(asked, folder, command.experts or folder / "experts")
    store = None if foreign else trajectories.find(run.experts_folder, experts.subject(problem))
    with progress() as show:
        if command.evaluation.step_size == "chosen":
            chooser = replace(who, protocol=selecting(asked.evaluation))
            event = {"stage": "evaluation", "done": 0, "total": 1}
            distilled = show(tuning.choose_step_size(chooser, distilled, "chosen", event))
        tried = bool(distilled.provenance.get("step_sizes"))
        asked = replace(asked, evaluation=replace(asked.evaluation, step_size="chosen" if tried else "learned"))
        found = show(record.evaluate_set(who, distilled, asked, store))
    results = record.summary(replace(run, settings=asked), who, distilled, found, store)
    print_results(results)
    if command.record and ranks.first():
        named = folder.resolve().name if command.path.is_dir() or command.path.name == FILE else command.path.stem
        recipes.write_record(command.record, named, ran_from, results)
        say(f"figures    {command.record}")
    return results


def _check_evaluate(command: Evaluate) -> None:
    if command.experts is not None and not (command.experts / trajectories.MANIFEST).exists():
        raise PotstillError(
            f"{command.experts}: holds no experts (no {trajectories.MANIFEST}); give their folder, or leave --experts "
            "out to do without the control with soft labels."
        )


def _chosen_network(command: Evaluate | Train, own: NetworkConfig) -> NetworkConfig:
    """The network of the command line, or the set's own with what the flags change."""
    base = own if command.network in (None, own.name) else NetworkConfig(name=command.network or own.name)
    changes = {name: getattr(command, name) for name in ("width", "depth", "norm")}
    return replace(base, **{name: value for name, value in changes.items() if value is not None})


def _train(command: Train) -> Any:
    saved.check(command.out)
    distilled = load(command.path, command.dataset)
    config = network_for(distilled, _chosen_network(command, NetworkConfig(**distilled.recipe["network"])))
    with working("training a network ..."):
        network = train(
            distilled, config, seed=command.seed, epochs=command.epochs, step_size=command.step_size,
            device=None if command.device == "auto" else command.device,
        )  # fmt: skip
    saved.save(network, config, distilled, command.out)
    say(f"a {config.name} trained on {len(distilled)} images\nwritten    {command.out}")
    return {"network": str(command.out)}


def _report(command: Report) -> Any:
    page = run_page.write(command.run)
    say(f"the page   {page}")
    return {"page": str(page)}


def _show(command: Show) -> Any:
    _check_ending("out", command.out, ".png")
    distilled = load(command.path, command.dataset)
    image = grid(distilled.pixels, distilled.labels, command.most)
    files.write_bytes(command.out, png(image))
    n, c, h, w = distilled.images.shape
    mean = float(distilled.soft_labels.max(1).values.mean())
    learned = "none" if distilled.step_size is None else f"{distilled.step_size:.4f}"
    say(
        f"{n} images of {w}×{h} pixels, {'grey' if c == 1 else 'colour'}, {len(distilled.classes)} classes; from "
        f"{distilled.provenance['dataset']['name']}, iteration {distilled.provenance['iteration']}; labels: "
        f"{distilled.kind}, step size: {learned}; {distilled.transform.kind}; mean largest label {mean:.2f}",
    )
    say(f"picture    {command.out}")
    return {
        "images": n, "shape": [c, h, w], "classes": list(distilled.classes), "labels": distilled.kind,
        "step_size": distilled.step_size, "transform": distilled.transform.kind, "pictures": distilled.pictures,
        "provenance": distilled.provenance, "picture": str(command.out),
    }  # fmt: skip


def _export(command: Export) -> Any:
    load(command.path, command.dataset).export(command.out, command.rescale, command.to)
    say(f"written    {command.out}")
    return {"written": str(command.out)}


def _push(command: Push) -> Any:
    contents = card.contents(command.path, command.name, command.licence, command.dataset)
    if command.dry is not None:
        for name, content in contents.items():
            files.write_bytes(command.dry / name, content)
        say(f"written    {command.dry}, and nothing pushed")
        return {"written": str(command.dry)}
    address = hub.push(command.name, contents, command.private, f"Distilled set of {command.path.name}")
    say(f'the set    {address}\nread it    potstill.load("hf://{command.name}")')
    return {"address": address}


def _import(command: Import) -> Any:
    found = imported.read(command.files)
    names = ("network", "augment", "resize", "label_column", "image_column")
    changes = {name: getattr(command, name) for name in names}
    if imported.is_experts(found):
        store = imported.import_experts(
            found, command.dataset, command.out, changes, space=command.space or "zca",
            step_size=command.expert_step_size,
        )  # fmt: skip
        say(
            f"{len(store)} experts of {store.epochs[-1]} epochs in {command.out}, {store.accuracy:.1%} right on "
            f"validation images, which they were trained on. Distil by them: potstill distill --experts {command.out}"
        )
        return {"folder": str(command.out), "accuracies": list(store.accuracies)}
    distilled = imported.import_set(
        found, command.dataset, changes, space=command.space, mean=command.mean, std=command.std, method=command.method
    )
    distilled.save(command.out / FILE)
    say(f"{distilled!r}\nthe set    {command.out / FILE}\ntest it    potstill evaluate {command.out}")
    return {"set": str(command.out / FILE), "images": len(distilled)}


def _forecast(command: Forecast) -> Any:
    settings.check(command.settings)
    with working("timing a few steps of each stage ..."):
        found = forecast.forecast(command.settings)
    table = Table("", "time", "disk", title=f"{command.settings.dataset}, {command.settings.ipc} images per class")
    for name in ("experts", "distilling", "evaluation"):
        table.add_row(name, duration(found["seconds"][name]), size(found["disk_bytes"].get(name, 0)))
    table.add_row("[bold]in all[/]", duration(sum(found["seconds"].values())), size(sum(found["disk_bytes"].values())))
    out.print(table)
    out.print(f"peak memory about {size(found['memory_bytes'])} on {found['device']}; {found['engine']}")
    return found


def _stages(command: Stages) -> Any:
    cells = start_epochs.cells(command.settings, command.ipcs, command.starts, command.width)
    return _explored(start_epochs.STUDY, cells, command.out or Path("runs") / f"{_name(command.settings)}-stages")


def _ablations(command: Ablations) -> Any:
    cells = [ablations.base(command.settings)]
    folder = command.out or Path("runs") / f"{_name(command.settings)}-ipc{command.settings.ipc}-ablations"
    return _explored(ablations.STUDY, cells, folder, lambda settled: ablations.cells(settled, command.parts))


def _windows(command: Windows) -> Any:
    cells = search.cells(command.settings, command.count)
    folder = command.out or Path("runs") / f"{_name(command.settings)}-ipc{command.settings.ipc}-windows"
    return _explored(search.STUDY, cells, folder)


def _explored(
    study: Study, cells: list[Cell], folder: Path, following: Callable[[Settings], list[Cell]] | None = None
) -> dict[str, Any]:  # fmt: skip
    for cell in cells:
        settings.check(cell.settings)
    remark(f"{folder}: {len(cells)} runs")
    with progress() as show:
        found = show(cells_of.explore(study.kind, cells, folder, following))
    print_study(study, found, folder)
    return found


def _lossless(command: Lossless) -> Any:
    asked = lossless.with_full_control(command.settings)
    settings.check(asked)
    folder = command.out or Path("runs") / f"{_name(asked)}-lossless"
    smallest = runs.prepare_problem(asked).smallest_class
    most = smallest // 2 if command.most is None else command.most
    if most > smallest:
        raise PotstillError(f"--most {most}: the smallest class has {smallest} training images; lower it.")
    if most < asked.ipc:
        raise PotstillError(f"--most {most}: is less than --ipc {asked.ipc}, where the search begins; raise it.")
    remark(f"{folder}: from {asked.ipc} to at most {most} images per class")
    with progress() as show:
        found = show(lossless.search(asked, folder, most, command.margin))
    print_study(lossless.STUDY, found, folder)
    return found


def _compare(command: Compare) -> Any:
    out = _compare_folder(command)
    if command.show:
        found = compare.so_far(out, command.store)
    else:
        asked = _asked(command)
        remark(f"{out}: {len(asked.methods)} methods at {' '.join(map(str, asked.ipcs))} images per class")
        with progress() as show:
            executor = execute.executor_for(command.workers, command.ray, command.settings.device)
            found = show(compare.compare(asked, out, command.store, executor))
    page = comparison_page.write(found, out, command.store)
    print_comparison(found)
    say(f"\nthe page    {page}\nthe tables  {page.with_suffix('.csv')}, .tex\nfigures     {page.with_suffix('.json')}")
    return found


def _check_rows(command: Compare, found: dict[str, Any]) -> None:
    """End with an error where rows failed, after all others are done and the page is written."""
    if count := compare.failed(found):
        page = _compare_folder(command) / "compare.html"
        raise PotstillError(
            f"{count} {'row' if count == 1 else 'rows'} failed: the notes at the end of {page} say why; mend the "
            "cause, then give the same command again to do what is missing."
        )


def _compare_folder(command: Compare) -> Path:
    return command.out or Path("runs") / f"{_name(command.settings)}-compare"


def _asked(command: Compare) -> compare.Asked:
    """The comparison that a command asks for."""
    return compare.Asked(
        command.settings, compare.with_controls(command.methods), command.ipcs, command.networks, command.set_seeds,
        command.minutes, command.published, command.published_as,
    )  # fmt: skip


def _cache(command: Cache) -> Any:
    if command.clear:
        clear()
    held = kept()
    print_cache(cache_folder(), held)
    return {
        "folder": str(cache_folder()),
        "kinds": {kind: {"entries": entries, "bytes": size_of} for kind, (entries, size_of) in held.items()},
    }


def _doctor(command: Doctor) -> Any:
    with working("looking at this machine ..."):
        found = doctor.examine()
    print_findings(found)
    return {item.name: {"here": item.here, "remark": item.remark, "lacking": item.lacking} for item in found}


RUNNERS: dict[type[Any], Callable[[Any], Any]] = {
    Run: _run, Methods: _methods, Experts: _experts, Distill: _distill, Evaluate: _evaluate, Train: _train,
    Report: _report, Show: _show, Export: _export, Import: _import, Push: _push, Forecast: _forecast, Stages: _stages,
    Ablations: _ablations, Windows: _windows, Lossless: _lossless, Compare: _compare,
    Cache: _cache, Doctor: _doctor,
}  # fmt: skip


# --- what they share -----------------------------------------------------------------------------------------------


@contextmanager
def _opened(asked: Settings, folder: Path, experts_folder: Path | None) -> Iterator[runs.Run]:
    with runs.opened(asked, folder, experts_folder) as run:
        stages = " then ".join(asked.method)
        remark(f"{folder}: {asked.dataset}, {asked.ipc} images per class, {stages}, seed {asked.seed}")
        yield run


def _check_ending(flag: str, path: Path | None, ending: str) -> None:
    """Refuse a file whose name promises another format, before any work."""
    if path is not None and path.suffix.lower() != ending:
        raise PotstillError(f"--{flag} {path}: is written as {ending}; let its name end so.")


def _folder(asked: Settings, recipe: str | None = None, tiny: bool = False) -> Path:
    """Where a run goes for which no folder was named."""
    own = Path(recipe).stem if recipe else f"{_name(asked)}-ipc{asked.ipc}{_suffix(asked)}"
    return Path("runs") / f"{own}{'-tiny' if tiny else ''}"


def _suffix(asked: Settings) -> str:
    """What tells the folder of another method from that of the default one."""
    return "" if asked.method == Settings().method else "-" + "-".join(asked.method)


def _name(asked: Settings) -> str:
    """A folder's name for a dataset."""
    return Path(asked.dataset).stem if Path(asked.dataset).exists() else asked.dataset.replace("/", "-")
