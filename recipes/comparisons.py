"""The comparisons behind records/, each made by one command; resumable, and longer lists reuse what is done.

python recipes/comparisons.py digits                                  every method at 1 and 10 images per class
python recipes/comparisons.py digits-30                               and at 30, the same minutes for every method
python recipes/comparisons.py cifar10-narrow --data data/cifar10      the same minutes for every method
python recipes/comparisons.py cifar10-narrow-many --data data/cifar10 against pruning, over six networks
python recipes/comparisons.py cifar10-narrow-refining --data data/cifar10    ways to refine one image per class
python recipes/comparisons.py cifar10-narrow-lossless --data data/cifar10    against labels alone
"""

import argparse
import shlex
import shutil
from pathlib import Path

from potstill import files
from potstill.cli import main as cli
from potstill.machine import commit
from potstill.methods import METHODS
from potstill.studies.compare import KIND

RECORDS = Path(__file__).parents[1] / "records"
ALL = [name for name in METHODS if name != "random"]
TWENTY = [  # half of the steps, which they find enough at 1: found, they would leave half of their minute unused
    f"{name}:inner_steps=20" if METHODS[name].family == "trajectory" else name for name in ALL
]
NARROW = "--network.width 32 --expert.count 2 --published-as cifar10 --evaluation.full-seeds 1"
LATER = (  # not the last third of the path: of that, forty steps of this student explain less than a tenth
    "start_epochs=(2,7),expert_epochs=1,inner_steps=40,batch_size=250,step_size=0.02,"
    "lr_images=200,lr_logits=60,lr_step_size=1e-5"
)
LATE = (  # as many steps of the experts from their start as the published window is, of shorter epochs
    "start_epochs=(8,16),expert_epochs=1,inner_steps=40,batch_size=250,step_size=0.02,"
    "lr_images=200,lr_logits=60,lr_step_size=1e-5,iterations=54"
)
UNMOVED = (  # what the same begins with: images that the experts recognise, their labels, and this step size
    "start_epochs=(8,16),expert_epochs=1,inner_steps=1,batch_size=250,step_size=0.02,"
    "lr_images=0,lr_logits=0,lr_step_size=0,iterations=1"
)
MATCHED = (
    "iterations=500,start_epochs=(0,2),expert_epochs=1,inner_steps=20,step_size=0.02,"
    "lr_images=1000,lr_logits=5,lr_step_size=1e-5,cooldown=0.8"
)
DATM = f"datm:{MATCHED}"
REFINED = "rat-bptt:iterations=500,cooldown=0.8"
ADAM = f"{REFINED},outer=adam,lr_images=0.005,lr_labels=0.01,lr_step_size=1e-4,clip=2"
REFINEMENTS = (  # what may give more accuracy in the same minutes, each a change of the second row
    DATM,
    f"{DATM}+{REFINED}",
    f"{DATM}+{ADAM}",
    f"{DATM}+{ADAM},average=0.99",
    f"{DATM}+{REFINED},labels=raw",
    f"{DATM}+{REFINED},real_batch=2500",
    f"{DATM}+{REFINED},window=40",
    f"{DATM}+{REFINED},window=16,unroll=32",
    f"{DATM},flip=True+{REFINED}",
    f"mct:{MATCHED},labels=learned+{REFINED}",
    f"tesla:{MATCHED},labels=learned+{REFINED}",
    f"frepo:iterations=500+{REFINED}",
    f"rcig:iterations=500+{REFINED}",
    f"dm:iterations=200+{REFINED}",
)
MANY = "convnet convnet:norm=batch resnet18:narrower=8 vgg11:narrower=4 alexnet:narrower=4 lenet"
COMPARISONS = {
    "digits": f"--methods {' '.join(ALL)} datm+rat-bptt --ipcs 1 10 --workers 2",
    "digits-30": f"--methods {' '.join(ALL)} datm+rat-bptt --ipcs 30 --minutes 0.5 --workers 2 --evaluations 1 "
    "--evaluation.seeds 2 --evaluation.epochs 501",
    "cifar10-narrow": f"--methods {' '.join(TWENTY)} datm:inner_steps=20+rat-bptt --ipcs 1 10 --minutes 1 "
    "--set-seeds 1 --workers 2 "
    f"--evaluations 1 --evaluation.seeds 3 --evaluation.epochs 301 {NARROW} --expert.epochs 6 "
    "--evaluation.full-epochs 6",
    "cifar10-narrow-many": "--methods herding:labels=soft forgetting:labels=soft glister:labels=soft window "
    f"window:labels=soft datm:{LATER} window:labels=soft+datm:{LATER} --ipcs 500 --networks {MANY} "
    "--minutes 6 --set-seeds 1 --workers 2 --evaluations 1 --evaluation.seeds 1 --evaluation.epochs 31 "
    f"--evaluation.full-epochs 8 {NARROW} --expert.epochs 15 --expert.batch-size 128 --expert.step-size 0.02",
    "cifar10-narrow-refining": f"--methods {' '.join(REFINEMENTS)} --ipcs 1 --minutes 2 --compile yes "
    "--set-seeds 1 --workers 2 --evaluations 1 --keep last --evaluation.step-size chosen --evaluation.seeds 3 "
    "--evaluation.full-seeds 0 "
    "--network.width 32 --expert.count 10 --expert.epochs 3 --expert.batch-size 128 --published-as cifar10",
    "cifar10-narrow-lossless": f"--methods window:labels=soft datm:{UNMOVED} datm:{LATE} "
    "--ipcs 200 500 1000 --set-seeds 1 --workers 2 --evaluations 0 --evaluation.seeds 2 "
    "--evaluation.epochs 121 --evaluation.full-epochs 60 --evaluation.full-seeds 5 --network.width 32 "
    "--expert.count 2 --expert.epochs 40 --expert.batch-size 128 --expert.step-size 0.02 --published-as cifar10",
}


def arguments(name: str, data: Path, out: Path) -> list[str]:
    """The command line of ``potstill`` that makes a comparison."""
    dataset = [] if name.startswith("digits") else ["--dataset", str(data)]
    return ["compare", *shlex.split(COMPARISONS[name]), *dataset, "--out", str(out / name)]


def main() -> int:
    """Make the comparisons that are named, and keep their records and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=COMPARISONS)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    for name in given.names:
        ran_from = commit()  # before the hours in which another may be checked out
        if code := cli.main(arguments(name, given.data, given.out)):
            return code
        keep(name, given.out / name, ran_from)
    return 0


def keep(name: str, out: Path, ran_from: str | None) -> None:
    """Write the record of a finished comparison, and its picture."""
    record = files.read_json(out / f"{KIND}.json")
    record.pop("store")  # a path of this machine
    files.write_json(RECORDS / f"compare-{name}.json", {"commit": ran_from, **record})
    shutil.copyfile(out / f"{KIND}.png", RECORDS / f"compare-{name}.png")


if __name__ == "__main__":
    raise SystemExit(main())
