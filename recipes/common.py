"""What the recipes share: run every stage in turn, say how far it is, and leave a record.

With .npz files a recipe needs torch, numpy and safetensors only.  Interrupt it whenever you like, or give it
``--minutes``; the same command continues it.  The record is records/NAME.json, and up to ten images per class the set
itself beside it.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import files
from potstill.adjoint import engine
from potstill.config import PRESETS, Config, EvaluationConfig, WindowConfig
from potstill.data.distilled import FILE, load
from potstill.errors import PotstillError
from potstill.machine import commit
from potstill.runs import api
from potstill.runs import run as stages

RECORDS = Path(__file__).parents[1] / "records"
LINE_SECONDS = 30.0
SMALL = 10  # images per class up to which the set is kept with the record
INTERRUPTED = 130


def cell(preset: str, experts: int, epochs: int, iterations: int, **distil: Any) -> Config:
    """A published cell at another expense: number of experts, their epochs, and iterations."""
    base = PRESETS[preset]
    return replace(
        base,
        dataset=f"data/{preset.partition('-')[0]}",
        expert=replace(base.expert, count=experts, epochs=epochs),
        distil=replace(base.distil, iterations=iterations, **distil),
        evaluation=EvaluationConfig(full_seeds=1),
    )


def cook(name: str, config: Config, description: str) -> None:
    """Run a recipe from the command line, and write its record."""
    given = _arguments(config, description)
    heed_signals()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("potstill").setLevel(logging.INFO)
    config = replace(config, dataset=given.data)
    if given.tiny:  # apart from the real one
        config, name = _tiny(config), f"{name}-tiny"
    ran_from = commit()  # before the hours in which another may be checked out
    folder = given.out or Path("runs") / name
    record = given.record or (folder / "record.json" if given.tiny else RECORDS / f"{name}.json")
    engine.keep_freed_memory()
    tell = teller(given.minutes)
    results: dict[str, Any] = {}
    with ending():
        run = stages.open_run(config, folder, given.experts)
        for stage in (stages.train_experts, stages.distil, stages.evaluate):
            results = api.exhaust(stage(run), tell)
    files.write_json(record, {"recipe": name, "commit": ran_from, **results})
    if config.ipc <= SMALL:
        load(run.folder / FILE).save(record.with_suffix(".safetensors"), compact=True)
    for key, figure in results["accuracy"].items():
        print(f"{key:12} {figure['mean']:.2%}  {figure['ci95']}")


def heed_signals() -> None:
    """End by KeyboardInterrupt, which leaves a checkpoint, in the background of a script and by ``kill`` too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@contextmanager
def ending() -> Iterator[None]:
    """End the program where the work is interrupted or can't go on: by a sentence, not by a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("unfinished; the same command continues", flush=True)
        sys.exit(INTERRUPTED)
    except PotstillError as error:
        sys.exit(f"error: {error}")


def _arguments(config: Config, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=config.dataset, help="the dataset (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--experts", type=Path, help="folder of experts shared between recipes")
    parser.add_argument("--record", type=Path, help="default: records/NAME.json")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command continues")
    parser.add_argument("--tiny", action="store_true", help="a few seconds of everything, to see that it runs")
    given = parser.parse_args()
    if given.data == config.dataset and given.data.startswith("data/") and not Path(given.data).exists():
        parser.error(  # rather than asking Hugging Face for an owner called data
            f"{given.data}: no such folder; name by --data a folder with train.npz and test.npz or Parquet files, or a "
            "Hugging Face dataset such as uoft-cs/cifar10"
        )
    return given


def _tiny(config: Config) -> Config:
    """The same job at next to no expense; what it gives means nothing."""
    return replace(
        config,
        ipc=min(config.ipc, 2),
        transform="standardise",  # ZCA's eigenvectors alone take a minute on one core
        network=replace(config.network, width=8),
        expert=replace(config.expert, count=2, epochs=3),
        window=WindowConfig(0, 2, 1, 2),
        distil=replace(
            config.distil,
            iterations=2,
            polish=min(config.distil.polish, 1),
            inner_steps=2,
            horizon=4,
            expert_epochs=1,
            evaluations=1,
            snapshots=1,
        ),
        evaluation=EvaluationConfig(protocol="paper", epochs=1, full_epochs=1),  # whose choosing is as short
    )


def teller(minutes: float | None) -> Callable[[dict[str, Any]], None]:
    """Prints a line now and then, and interrupts the work when its time is up."""
    began = told = time.monotonic()

    def tell(event: dict[str, Any]) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= LINE_SECONDS or event["done"] == event["total"]:
            told = now
            detail = {name: value for name, value in event.items() if name not in ("stage", "done", "total")}
            print(f"{now - began:7.0f} s  {event['stage']} {event['done']}/{event['total']}  {detail}", flush=True)
        if minutes is not None and now - began > 60 * minutes:
            raise KeyboardInterrupt

    return tell
