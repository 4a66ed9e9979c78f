"""A set of CIFAR-10, evaluated by the code that others published: DATM's evaluation.py, and DD-Ranking.

    python recipes/foreign.py --datm DATM --ddranking DD-Ranking --data data/cifar10

Each folder is a checkout: NUS-HPC-AI-Lab/DATM and NUS-HPC-AI-Lab/DD-Ranking on GitHub.  The set is exported by
`potstill export --to pt`; then the foreign code, in a process of its own (recipes/foreign_run.py), whitens CIFAR-10 by
itself, trains its own networks on the set and tests them.  ``--python`` names an interpreter that has what this code
needs beside PyTorch: torchvision, kornia, scipy, tqdm, and for DD-Ranking pandas and timm.

The record holds every accuracy beside ours, what had to be changed to run the code here, and its commit.  Of a checkout
that is left out it keeps what it says.  About two minutes a network on two CPU cores.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import potstill
from potstill import files, machine
from potstill.cli import main as cli
from potstill.data import dataset as datasets
from potstill.data.dataset import Dataset
from potstill.errors import PotstillError
from potstill.evaluation import statistics

RECORDS = Path(__file__).parents[1] / "records"
KIND = "foreign"
NAMES = ("datm", "ddranking")
SHOWN = 500  # test images whose whitening is compared, as in foreign_run.py


def exported(path: Path, data: Path, work: Path) -> None:
    """Write the set as images.pt, labels.pt and lr.pt, by the command that anyone would use.

    Raises:
        PotstillError: the command failed; it has said why.
    """
    command = ["export", str(path), "--to", "pt", "--out", str(work), "--dataset", str(data)]
    if code := cli.main(command):
        raise PotstillError(f"potstill {' '.join(command)}: ended with code {code}; see what it says above.")


def write_arrays(data: Dataset, work: Path) -> None:
    """Write all real images as train.npz and test.npz; those kept aside for validation are training images too.

    The foreign code whitens by the covariance of all of them, in whatever order.
    """
    for part, splits in {"train": (data.train, data.val), "test": (data.test,)}.items():
        images = torch.cat([split.images for split in splits]).permute(0, 2, 3, 1).numpy()
        labels = torch.cat([split.labels for split in splits]).numpy()
        np.savez(work / f"{part}.npz", images=images, labels=labels, classes=np.array(data.classes))


def run(name: str, given: argparse.Namespace, checkout: Path) -> dict[str, Any]:
    """Let foreign code evaluate the exported set; what it prints lies in NAME.log.

    Raises:
        PotstillError: it failed.
    """
    script = Path(__file__).with_name("foreign_run.py")
    command = [given.python, script, name, "--checkout", checkout, "--work", given.work]
    numbers = ["--networks", given.networks, "--epochs", given.epochs]
    log = given.work / f"{name}.log"
    with log.open("wb") as written:
        ended = subprocess.run([str(word) for word in command + numbers], stdout=written, stderr=subprocess.STDOUT)
    if ended.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise PotstillError(f"{name}: ended with code {ended.returncode} ({last}); see {log}, and give --python.")
    return files.read_json(given.work / f"{name}.json")


def beside(found: dict[str, Any], ours: statistics.Figure) -> dict[str, Any]:
    """A foreign evaluation beside our own figure.

    Args:
        found: of foreign_run.py; its accuracies become a figure with an interval.
        ours: accuracy of the set in its own record.

    Returns:
        What was found, with "accuracy", "difference" (theirs less ours, with Welch's interval), and whether their mean
        lies "within_our_interval".
    """
    accuracy = statistics.interval(found["accuracies"])
    low, high = ours["ci95"]
    return {
        **{key: value for key, value in found.items() if key != "accuracies"}, "accuracy": accuracy,
        "difference": statistics.difference(accuracy, ours), "within_our_interval": low <= accuracy["mean"] <= high,
    }  # fmt: skip


def prepared(path: Path, given: argparse.Namespace) -> torch.Tensor:
    """Write all that the foreign code reads; the first test images as the set's own transform whitens them.

    Nothing else is held while the foreign code works, which needs three gigabytes.
    """
    given.work.mkdir(parents=True, exist_ok=True)
    exported(path, given.data, given.work)
    data = datasets.load(str(given.data))
    write_arrays(data, given.work)
    return potstill.load(path, dataset=given.data).transform(data.test.images[:SHOWN])


def whitening(own: torch.Tensor, theirs: np.ndarray) -> dict[str, float]:
    """How far their whitened test images are from those of the set's own transform, as root mean squares."""
    apart = torch.from_numpy(theirs) - own
    return {"difference": float(apart.square().mean().sqrt()), "of": float(own.square().mean().sqrt())}


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout, marked where its files differ from it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.stdout.strip() or None


def evaluate(given: argparse.Namespace, checkouts: dict[str, Path], ran_from: str | None) -> dict[str, Any]:
    """All of it: what stands in the record of each foreign evaluation.

    Raises:
        PotstillError: the set or the data cannot be read, or foreign code failed.
    """
    path = RECORDS / f"{given.set}.safetensors"
    ours = files.read_json(path.with_suffix(".json"))["accuracy"]["distilled"]
    own, evaluations = prepared(path, given), {}
    for name, checkout in checkouts.items():
        found = beside(run(name, given, checkout), ours)
        apart = whitening(own, np.load(given.work / f"{name}-whitened.npy"))
        commits = {"commit": ran_from, "their_commit": commit_of(checkout)}
        told = evaluations[name] = {**commits, **found, "whitening": apart}
        print(sentence(name, told, ours), flush=True)
    return evaluations


def sentence(name: str, told: dict[str, Any], ours: statistics.Figure) -> str:
    """A foreign evaluation in words."""
    low, high = (100 * value for value in ours["ci95"])
    values = ", ".join(f"{100 * value:.1f}" for value in told["accuracy"]["per_seed"])
    where = "within" if told["within_our_interval"] else "outside of"
    return (
        f"{name}: {100 * told['accuracy']['mean']:.1f} % ({values}), {where} our {100 * ours['mean']:.1f} % "
        f"({low:.1f}–{high:.1f})"
    )


def main() -> None:
    """Evaluate, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in NAMES:
        parser.add_argument(f"--{name}", type=Path, help="checkout")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--set", default="cifar10-ipc1-cpu", help="of records/ (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has their packages")
    parser.add_argument("--work", type=Path, default=Path("runs/foreign"))
    given = parser.parse_args()
    checkouts = {name: getattr(given, name) for name in NAMES if getattr(given, name)}
    if not checkouts:
        parser.error("name a checkout: --datm FOLDER, --ddranking FOLDER")
    try:
        evaluations = evaluate(given, checkouts, machine.commit())
    except PotstillError as error:
        sys.exit(f"error: {error}")
    path = RECORDS / f"{given.set.removesuffix('-cpu')}-{KIND}.json"
    evaluations = (files.read_json(path)["evaluations"] if path.exists() else {}) | evaluations
    own = files.read_json(RECORDS / f"{given.set}.json")
    files.write_json(path, {
        "kind": KIND, "set": given.set, "dataset": own["dataset"], "images": own["images"],
        "command": f"python recipes/foreign.py {' '.join(f'--{name} FOLDER' for name in evaluations)}",
        "ours": {"accuracy": own["accuracy"]["distilled"], "protocol": own["protocol"], "step_size": own["step_size"]},
        "evaluations": evaluations, "environment": machine.environment(torch.device("cpu")),
    })  # fmt: skip


if __name__ == "__main__":
    main()
