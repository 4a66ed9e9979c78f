"""Foreign evaluation code, run as its authors published it: what recipes/foreign.py starts, a process for each.

python recipes/foreign_run.py datm --checkout DATM --work FOLDER --networks 5

It imports nothing of ours, for it runs in whatever interpreter has the packages that the foreign code needs.  FOLDER
holds images.pt, labels.pt and lr.pt of a set of CIFAR-10, and the real images as train.npz and test.npz.  It leaves
NAME.json: the accuracies as fractions of 1, the seeds, what was changed, and versions; and NAME-whitened.npy, the
first test images as the foreign code whitened them.
"""

import argparse
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHOWN = 500  # test images that are kept as the foreign code whitened them
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGES = ("torch", "torchvision", "kornia", "scipy")
LOCAL = "CIFAR-10 is read from the given arrays, instead of fetched by torchvision"
OPERATORS = "torchvision's compiled operators, which nothing here calls, are declared and not loaded"
CHANGES: dict[str, list[str]] = {
    "datm": [
        LOCAL,
        "--parall_eva True: the device is the one present, where the code else names cuda:0",
        "the pool of networks to evaluate holds ConvNet several times, so that CIFAR-10 is whitened once for all",
    ],
    "ddranking": [
        LOCAL,
        "only the accuracy of the set with its soft labels is measured, without the teachers, the full data and the "
        "random images of the whole score",
        "tested once, after the last epoch; the package reports the best of tests every 20 epochs, on the test images",
    ],
}
AUGMENTATION = {
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "scale": 1.2, "crop": 0.125,
    "cutout": 0.5,
}  # fmt: skip
"""As in demo_soft.py of DD-Ranking, for sets of DATM."""


class Arrays:
    """In place of ``torchvision.datasets.CIFAR10``: the images of train.npz and test.npz, (N, H, W, C) uint8."""

    def __init__(self, root: str, train: bool = True, transform: Callable | None = None, download: bool = False):
        with np.load(Path(root) / ("train.npz" if train else "test.npz")) as held:
            self.images, self.targets = held["images"], held["labels"].tolist()
            self.classes = held["classes"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image = self.images[row]
        return (self.transform(image) if self.transform else image), self.targets[row]


def datm(given: argparse.Namespace) -> dict[str, Any]:
    """DATM's ``distill/evaluation.py``, which trains each network on the set and tests it after the last epoch."""
    os.chdir(given.checkout / "distill")  # where it is to be started
    sys.path.insert(0, str(given.checkout))
    from utils import utils_baseline as theirs

    published, accuracies, seeds = theirs.evaluate_synset, [], []

    def noted(number: int, network: Any, images: Any, labels: Any, tests: Any, args: Any, **more: Any) -> Any:
        """Theirs; its accuracy on the test images is the last of what it returns."""
        keep(given, "datm", tests.dataset.images)
        seeds.append(torch.initial_seed())
        found = published(number, network, images, labels, tests, args, **more)
        accuracies.append(float(found[2]))
        return found

    theirs.evaluate_synset = noted
    theirs.get_eval_pool = lambda *_: ["ConvNet"] * given.networks
    files = {f"--{name}_dir": given.work / f"{file}.pt" for name, file in
             (("data", "images"), ("label", "labels"), ("lr", "lr"))}  # fmt: skip
    options = {
        "--dataset": "CIFAR10", "--data_path": given.work, **files, "--epoch_eval_train": given.epochs,
        "--parall_eva": True,
    }  # fmt: skip
    sys.argv = ["evaluation.py", "--zca", *(str(word) for pair in options.items() for word in pair)]
    runpy.run_path("evaluation.py", run_name="__main__")
    return {"accuracies": accuracies, "seeds": seeds, "epochs": given.epochs + 1}


def ddranking(given: argparse.Namespace) -> dict[str, Any]:
    """DD-Ranking's accuracy of a set with its own soft labels, by the settings of its demonstration for DATM."""
    sys.path.insert(0, str(given.checkout))
    from ddranking.metrics.soft_label import LabelRobustScoreSoft
    from ddranking.utils import set_seed

    images, labels, step_size = (torch.load(given.work / f"{name}.pt") for name in ("images", "labels", "lr"))
    theirs = LabelRobustScoreSoft(
        dataset="CIFAR10", real_data_path=str(given.work), ipc=len(images) // 10, model_name="ConvNet-3",
        soft_label_criterion="sce", soft_label_mode="S", loss_fn_kwargs={"temperature": 1.0, "scale_loss": False},
        data_aug_func="dsa", aug_params=AUGMENTATION, optimizer="sgd", lr_scheduler="step",
        step_size=given.epochs // 2, weight_decay=0.0005, momentum=0.9, num_epochs=given.epochs, use_zca=True,
        num_workers=0, teacher_model_names=[], random_data_format="tensor", device=DEVICE,
        save_path=str(given.work / "ddranking" / "scores.csv"),
    )  # fmt: skip
    theirs.test_interval = given.epochs
    keep(given, "ddranking", theirs.test_loader_syn.dataset.images)
    accuracies, seeds = [], []
    for _ in range(given.networks):
        set_seed()
        seeds.append(torch.initial_seed())
        per_cent, _ = theirs._compute_soft_label_metrics_helper(images, None, labels, step_size.item())
        accuracies.append(per_cent / 100)
    return {"accuracies": accuracies, "seeds": seeds, "epochs": given.epochs}


def keep(given: argparse.Namespace, name: str, whitened: torch.Tensor) -> None:
    """Write the first test images as the foreign code whitened them."""
    np.save(given.work / f"{name}-whitened.npy", whitened[:SHOWN].cpu().numpy())


def torchvision_here() -> list[str]:
    """Import torchvision, and have it read our arrays; what had to be changed for it, beside that.

    Its wheels of the Python Package Index are compiled for CUDA, so beside a PyTorch for the CPU their operators
    cannot be loaded, and it is the declaration of two of them that is then missing.
    """
    changes = []
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.operators = library  # declared as long as this lives
        changes.append(OPERATORS)
    torchvision.datasets.CIFAR10 = Arrays
    return changes


def main() -> None:
    """Evaluate, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CHANGES)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1000)
    given = parser.parse_args()
    given.checkout, given.work = given.checkout.resolve(), given.work.resolve()
    changes = CHANGES[given.name] + torchvision_here()
    began = time.monotonic()
    found = {"datm": datm, "ddranking": ddranking}[given.name](given)
    versions = {name: getattr(sys.modules[name], "__version__", None) for name in PACKAGES if name in sys.modules}
    found |= {"changes": changes, "versions": versions, "device": DEVICE, "seconds": time.monotonic() - began}
    (given.work / f"{given.name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
