"""What the recipes share: run every stage in turn, say how far it is, and leave a record.

A recipe needs torch, numpy and safetensors only.  Interrupt it whenever you like; given again, it continues.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill import api, artefacts, engine
from potstill import run as stages
from potstill.config import Config

RECORDS = Path(__file__).parents[1] / "records"
LINE_SECONDS = 30.0


def cook(name: str, config: Config, description: str) -> None:
    """Run a recipe from the command line, and write records/NAME.json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=config.dataset, help="the dataset (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / name, help="folder of the run (default: %(default)s)"
    )
    parser.add_argument("--experts", type=Path, help="folder of experts shared between recipes")
    parser.add_argument("--record", type=Path, default=RECORDS / f"{name}.json", help="default: %(default)s")
    given = parser.parse_args()
    engine.keep_freed_memory()
    run = stages.open_run(replace(config, dataset=given.data), given.out, given.experts)
    tell = _teller()
    results: dict[str, Any] = {}
    for stage in (stages.train_experts, stages.distil, stages.evaluate):
        results = api.exhaust(stage(run), tell)
    record = {"recipe": name, "commit": _commit(), **results}
    artefacts.write_json(given.record, record)
    for key, figure in results["accuracy"].items():
        print(f"{key:12} {figure['mean']:.2%}  {figure['ci95']}")


def _teller() -> Any:
    began = told = time.monotonic()

    def tell(event: dict[str, Any]) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= LINE_SECONDS or event["done"] == event["total"]:
            told = now
            detail = {name: value for name, value in event.items() if name not in ("stage", "done", "total")}
            print(f"{now - began:7.0f} s  {event['stage']} {event['done']}/{event['total']}  {detail}", flush=True)

    return tell


def _commit() -> str:
    """The commit this ran from, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        print("no git here: the record names no commit", file=sys.stderr)
        return "unknown"
