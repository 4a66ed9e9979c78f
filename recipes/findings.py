"""The paper's findings, measured: explorations with their settings, each leaving a record and a picture.

    python recipes/findings.py digits-stages             # one of the names below; several may follow one another

digits-stages          which part of the path to match, at 1, 10 and 30 images per class
digits-windows-ipc1    the window that is found against five chosen by hand; also -ipc10
digits-ablations-ipc1  one thing changed at a time; also -ipc10
digits-lossless        the smallest set that trains as well as the full data
cifar10-narrow-stages  as above on CIFAR-10 with a narrow network (width 32), at 1 and 10 images per class
cifar10-narrow-windows-ipc1, -ipc10, -ipc50: the published window stands beside those chosen by hand
cifar10-narrow-exact-ipc1, -ipc10: exact against frozen gradients
cifar100-20-windows    as digits-windows on twenty classes of CIFAR-100, with five images per class

Times on a CPU core are in the records.  All are resumable; those on the same data share their experts, which one of
them should have trained before others are started beside it.
"""

import argparse
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from common import RECORDS, ending, heed_signals, teller

from potstill import files
from potstill.adjoint import engine
from potstill.config import Config, DistilConfig, EvaluationConfig, ExpertConfig, NetworkConfig, WindowConfig, default
from potstill.machine import commit
from potstill.report import study_page
from potstill.runs import api
from potstill.studies import exploring, lossless
from potstill.studies.exploring import Part

PUBLISHED = {1: WindowConfig(0, 1), 10: WindowConfig(0, 5, 3, 15), 50: WindowConfig(0, 10, 5, 15)}
"""The published windows by images per class (0–4, 0–10…20, 0–20…40), a fourth as long: see :func:`narrow`."""

ABLATED = {1: WindowConfig(0, 3), 10: WindowConfig(8, 11)}  # an early and a middle one, whatever the presets become
TWENTY = 20

Job = Callable[[Path], Generator[dict[str, Any], None, dict[str, Any]]]


def narrow(data: str, ipc: int) -> Config:
    """A small budget for CIFAR: width 32, three experts of fifteen epochs, sixty iterations of fifteen steps.

    An epoch of these experts is as long a path as four of the published ones: half the batch, twice the step size.
    """
    return Config(
        dataset=data,
        ipc=ipc,
        compile="no",
        network=NetworkConfig(width=32, depth=3),
        expert=ExpertConfig(count=3, epochs=15, batch_size=128, step_size=0.02),
        window=WindowConfig(mode="auto"),
        distil=DistilConfig(iterations=60, inner_steps=15, batch_size=100, step_size=0.04, rates="auto", evaluations=4),
        evaluation=EvaluationConfig(epochs=201, full_seeds=0),
    )


def explored(kind: str, cells: list[exploring.Cell], parts: Sequence[Part] = get_args(Part)) -> Job:
    """An exploration of these cells, with the experts of all explorations on these data."""

    def job(out: Path) -> Generator[dict[str, Any], None, dict[str, Any]]:
        share_experts(cells[0].config, out)
        return exploring.explore(kind, cells, out, parts)

    return job


def share_experts(config: Config, out: Path) -> None:
    """Let the folder of an exploration lead to the experts of these data."""
    experts = out.parent / f"experts-{Path(config.dataset).name}"
    for folder in (out, experts):
        folder.mkdir(parents=True, exist_ok=True)
    if not (out / "experts").exists():
        (out / "experts").symlink_to(experts.resolve(), target_is_directory=True)


def narrow_windows(data: str, ipc: int, published: WindowConfig) -> list[exploring.Cell]:
    """The window that is found, five chosen by hand, and the published one in epochs of these experts."""
    given = narrow(data, ipc)
    if ipc >= 50:  # five times the images: half the iterations, a third of the epochs
        evaluation = replace(given.evaluation, epochs=67)
        given = replace(given, distil=replace(given.distil, iterations=30), evaluation=evaluation)
    cells = exploring.window_cells(given, 5)
    told = f"published, 0–{published.stop - 1}"
    return [*cells, exploring.Cell("published", {"window": told}, replace(cells[1].config, window=published))]


def narrow_stages(data: str) -> list[exploring.Cell]:
    """An early, a middle and a late part at 1 and 10 images per class; the settings are the same for both."""
    cells = []
    for ipc in (1, 10):
        given = narrow(data, ipc)
        one = exploring.stage_cells(given, (ipc,), (0, 4, 11), 2)
        cells += [replace(cell, config=replace(given, expert=cell.config.expert, window=cell.config.window,
                  distil=replace(given.distil, keep="last", evaluations=1))) for cell in one]  # fmt: skip
    return cells


def jobs(data: str, data100: str) -> dict[str, Job]:
    """Every finding by name."""
    found: dict[str, Job] = {
        "digits-stages": explored("stages", exploring.stage_cells(_quiet(default("digits", 10)), (1, 10, 30), None, 3)),
        "digits-lossless": lossless_digits,
        "cifar10-narrow-stages": explored("stages", narrow_stages(data)),
        "cifar100-20-windows": lambda out: twenty_classes(Path(data100), out),
    }
    for ipc in (1, 10):
        digits = _quiet(default("digits", ipc))
        found[f"digits-windows-ipc{ipc}"] = explored("windows", exploring.window_cells(digits, 5))
        found[f"digits-ablations-ipc{ipc}"] = explored(
            "ablations", exploring.ablation_base(replace(digits, window=ABLATED[ipc]))
        )
        base = exploring.ablation_base(replace(narrow(data, ipc), window=PUBLISHED[ipc]))
        found[f"cifar10-narrow-exact-ipc{ipc}"] = explored("ablations", base, ["gradient"])
    for ipc, window in PUBLISHED.items():
        found[f"cifar10-narrow-windows-ipc{ipc}"] = explored("windows", narrow_windows(data, ipc, window))
    return found


def twenty_classes(data: Path, out: Path) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Data for which no one has chosen anything: the first twenty classes of CIFAR-100, from its .npz files."""
    some = out.parent / "cifar100-20"
    some.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        if (some / f"{part}.npz").exists():
            continue
        with np.load(data / f"{part}.npz") as every:
            kept = every["labels"] < TWENTY
            images, labels = every["images"][kept], every["labels"][kept]
            np.savez(some / f"{part}.npz", images=images, labels=labels, classes=every["classes"][:TWENTY])
    return explored("windows", exploring.window_cells(narrow(str(some), 5), 5))(out)


def lossless_digits(out: Path) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """From one image per class to half of the smallest class."""
    given = default("digits", 1)
    share_experts(given, out)
    return lossless.search(given, out, 57, 0.0)


def _quiet(config: Config) -> Config:
    """Without the full-set control, which is the same everywhere."""
    return replace(config, evaluation=EvaluationConfig(full_seeds=0))


def main() -> None:
    """Run the findings that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--data100", default="data/cifar100")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    heed_signals()
    engine.keep_freed_memory()
    known = jobs(given.data, given.data100)
    if unknown := set(given.names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: unknown; choose among {', '.join(sorted(known))}")
    ran_from = commit()
    for name in given.names:
        out = given.out / name
        with ending():
            record = api.exhaust(known[name](out), teller(None))
        page = study_page.write(record, out)
        files.write_json(RECORDS / f"{name}.json", {"commit": ran_from, **record})
        files.write_bytes(RECORDS / f"{name}.png", page.with_suffix(".png").read_bytes())
        heads, rows = study_page.table(record)
        print(" | ".join(heads))
        for row in rows:
            print(" | ".join(row["cells"]), flush=True)


if __name__ == "__main__":
    main()
