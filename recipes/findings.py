"""The paper's findings, measured: studies with their settings, each leaving a record and a picture.

    python recipes/findings.py digits-stages             # one of the names below; several may follow one another

digits-stages          which start epochs to match, at 1, 10 and 30 images per class
digits-windows-ipc1    the start epochs found by measuring, against five ranges chosen by hand; also -ipc10
digits-ablations-ipc1  one thing changed at a time; also -ipc10
digits-lossless        the smallest set that trains as well as the full data
cifar10-narrow-stages  as above on CIFAR-10 with a narrow network (width 32), at 1 and 10 images per class
cifar10-narrow-windows-ipc1, -ipc10, -ipc50: the published start epochs stand beside those chosen by hand
cifar10-narrow-exact-ipc1, -ipc10: exact against frozen gradients
cifar100-20-windows    as digits-windows on twenty classes of CIFAR-100, with five images per class

Times on a CPU core are in the records.  All are resumable; those on the same data share their experts, which one of
them should have trained before others are started beside it.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from potstill import files
from potstill.adjoint import engine
from potstill.cli.console import progress
from potstill.errors import PotstillError
from potstill.machine import commit
from potstill.report import study_page
from potstill.report.study_page import Study
from potstill.runs.settings import Settings, configure
from potstill.studies import ablations, lossless, search, start_epochs
from potstill.studies.ablations import Part
from potstill.studies.cells import Cell, explore, with_first

RECORDS = Path(__file__).parents[1] / "records"
PUBLISHED = {
    1: {"start_epochs": (0, 1)},
    10: {"start_epochs": (0, 5), "opening": (3, 15)},
    50: {"start_epochs": (0, 10), "opening": (5, 15)},
}
"""The published start epochs by images per class (0–4, 0–10…20, 0–20…40), a fourth as long: see :func:`narrow`."""
ABLATED = {1: (0, 3), 10: (8, 11)}  # an early and a middle range, whatever the digits' cells become
OPEN = {"lr_images": None, "lr_logits": None, "lr_step_size": None, "cooldown": None}
TWENTY = 20

Job = tuple[Study, Callable[[Path], Generator[dict[str, Any], None, dict[str, Any]]]]


def narrow(data: str, ipc: int) -> Settings:
    """A small budget for CIFAR: width 32, three experts of fifteen epochs, sixty iterations of fifteen steps.

    An epoch of these experts is as long a path as four of the published ones: half the batch, twice the step size.
    """
    return configure(data, ipc, "none", {
        "compile": "no", "evaluations": 4, "network": {"width": 32, "depth": 3},
        "expert": {"count": 3, "epochs": 15, "batch_size": 128, "step_size": 0.02},
        "datm": {"iterations": 60, "inner_steps": 15, "expert_epochs": 2, "step_size": 0.04, **OPEN},
        "evaluation": {"epochs": 201, "full_seeds": 0},
    })  # fmt: skip


def explored(
    study: Study, cells: Sequence[Cell], following: Callable[[Settings], Sequence[Cell]] | None = None
) -> Job:  # fmt: skip
    """A study of these cells, with the experts of all studies on these data."""

    def job(out: Path) -> Generator[dict[str, Any], None, dict[str, Any]]:
        share_experts(cells[0].settings, out)
        return explore(study.kind, cells, out, following)

    return study, job


def ablated(base: Settings, parts: Sequence[Part] = get_args(Part)) -> Job:
    """One thing changed at a time."""
    return explored(ablations.STUDY, [ablations.base(base)], lambda settled: ablations.cells(settled, parts))


def share_experts(settings: Settings, out: Path) -> None:
    """Let the folder of a study lead to the experts of these data."""
    experts = out.parent / f"experts-{Path(settings.dataset).name}"
    for folder in (out, experts):
        folder.mkdir(parents=True, exist_ok=True)
    if not (out / "experts").exists():
        (out / "experts").symlink_to(experts.resolve(), target_is_directory=True)


def narrow_windows(data: str, ipc: int) -> list[Cell]:
    """The start epochs found, five ranges chosen by hand, and the published one in epochs of these experts."""
    given = narrow(data, ipc)
    if ipc >= 50:  # five times the images: half the iterations, a third of the epochs
        given = with_first(replace(given, evaluation=replace(given.evaluation, epochs=67)), iterations=30)
    cells = search.cells(given, 5)
    last = PUBLISHED[ipc]["start_epochs"][1] - 1
    published = with_first(cells[1].settings, **PUBLISHED[ipc])
    return [*cells, Cell("published", {"window": f"published, 0–{last}"}, published)]


def narrow_stages(data: str) -> list[Cell]:
    """An early, a middle and a late range at 1 and 10 images per class; the settings are the same for both."""
    return [cell for ipc in (1, 10) for cell in start_epochs.cells(narrow(data, ipc), (ipc,), (0, 4, 11), 2)]


def jobs(data: str, data100: str, out: Path) -> dict[str, Job]:
    """Every finding by name."""
    found: dict[str, Job] = {
        "digits-stages": explored(start_epochs.STUDY, start_epochs.cells(digits(10), (1, 10, 30), None, 3)),
        "digits-lossless": (lossless.STUDY, lossless_digits),
        "cifar10-narrow-stages": explored(start_epochs.STUDY, narrow_stages(data)),
        "cifar100-20-windows": explored(search.STUDY, search.cells(narrow(str(out / "cifar100-20"), 5), 5)),
    }
    for ipc in (1, 10):
        found[f"digits-windows-ipc{ipc}"] = explored(search.STUDY, search.cells(digits(ipc), 5))
        found[f"digits-ablations-ipc{ipc}"] = ablated(
            with_first(digits(ipc), start_epochs=ABLATED[ipc], labels="learned")
        )
        exact = with_first(narrow(data, ipc), **PUBLISHED[ipc])
        found[f"cifar10-narrow-exact-ipc{ipc}"] = ablated(exact, ["gradient"])
    for ipc in PUBLISHED:
        found[f"cifar10-narrow-windows-ipc{ipc}"] = explored(search.STUDY, narrow_windows(data, ipc))
    return found


def twenty_classes(data: Path, some: Path) -> None:
    """Data for which no one has chosen anything: the first twenty classes of CIFAR-100, from its .npz files."""
    some.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        if (some / f"{split}.npz").exists():
            continue
        with np.load(data / f"{split}.npz") as every:
            kept = every["labels"] < TWENTY
            images, labels = every["images"][kept], every["labels"][kept]
            np.savez(some / f"{split}.npz", images=images, labels=labels, classes=every["classes"][:TWENTY])


def lossless_digits(out: Path) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """From one image per class to half of the smallest class; ten networks a figure, for five leave a point open."""
    given = configure("digits", 1, changes={"evaluation": {"seeds": 10}})
    share_experts(given, out)
    return lossless.search(given, out, 57, 0.01)


def digits(ipc: int) -> Settings:
    """The digits without the full-set control, which is the same everywhere."""
    return configure("digits", ipc, changes={"evaluation": {"full_seeds": 0}})


def main() -> None:
    """Run the findings that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--data100", default="data/cifar100")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    engine.keep_freed_memory()
    known = jobs(given.data, given.data100, given.out)
    if unknown := set(given.names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: unknown; choose among {', '.join(sorted(known))}")
    ran_from = commit()
    for name in given.names:
        try:
            run(name, known[name], given.out, Path(given.data100), ran_from)
        except KeyboardInterrupt:
            sys.exit("unfinished; the same command continues")
        except PotstillError as error:
            sys.exit(f"error: {error}")


def run(name: str, job: Job, folder: Path, data100: Path, ran_from: str | None) -> None:
    """Run one finding, and write its record and its picture."""
    study, work = job
    out = folder / name
    if name.startswith("cifar100-20"):
        twenty_classes(data100, folder / "cifar100-20")
    with progress() as show:
        record = show(work(out))
    page = study_page.write(study, record, out)
    files.write_json(RECORDS / f"{name}.json", {"commit": ran_from, **record})
    files.write_bytes(RECORDS / f"{name}.png", page.with_suffix(".png").read_bytes())
    header, rows = study.table(record)
    print(" | ".join(header))
    for row in rows:
        print(" | ".join(row["cells"]), flush=True)


if __name__ == "__main__":
    main()
