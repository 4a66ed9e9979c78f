"""Whether what potstill forecasts comes true at Tiny ImageNet's shape: its presets, cut short, from end to end.

    python recipes/tiny_shape.py --data data/cifar100        all of them, alone on the machine
    python recipes/tiny_shape.py --ipcs 1                    one of the presets

Twenty classes of CIFAR-100, enlarged to 64 by 64 pixels, five hundred images each as there.  Network, whitening and
matching are the preset's; experts, iterations and evaluation are cut as CUT and SHORTER say, for the forecast and the
run alike.  These are commands of their own, so that the memory of one is not that of the other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from potstill import files
from potstill.data.dataset import load
from potstill.machine import commit

RECORD = Path(__file__).parents[1] / "records" / "tiny-shape-2-cores.json"
CLASSES = 20
CUT = (
    "--expert.count 1 --expert.epochs 2 --datm.start-epochs 0 1 --datm.opening None --datm.expert-epochs 1 "
    "--evaluations 0 --evaluation.protocol quick --evaluation.seeds 1 --evaluation.full-epochs 1 "
    "--evaluation.full-seeds 1"
)
SHORTER = {  # and the unrolls, where one of the preset's takes minutes
    1: "--datm.iterations 20 --evaluation.epochs 101",
    10: "--datm.iterations 4 --datm.inner-steps 20 --evaluation.epochs 31",
    50: "--datm.iterations 2 --datm.inner-steps 5 --evaluation.epochs 11",
}


def flags(data: Path, ipc: int) -> list[str]:
    """What the forecast and the run are told."""
    names = load(str(data)).classes[:CLASSES]
    told = f"--preset tiny-imagenet-ipc{ipc} --resize 64 {CUT} {SHORTER[ipc]} --classes"
    return ["--dataset", str(data), *told.split(), *names]


def potstill(*arguments: str) -> str:
    """What a command of potstill prints on standard output; its progress is shown."""
    return subprocess.run(
        [sys.executable, "-m", "potstill", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout  # fmt: skip


def compared(data: Path, ipc: int, out: Path) -> dict[str, Any]:
    """A preset: seconds and bytes as they were forecast and as they came."""
    told = flags(data, ipc)
    forecast = json.loads(potstill("--json", "forecast", *told))
    potstill("run", *told, "--out", str(out))
    made = files.read_json(out / "results.json")
    seconds = {**made["seconds"], "distilling": made["seconds"]["distill"], "evaluation": made["seconds"]["evaluate"]}
    return {
        "commit": commit(),
        "command": " ".join(["potstill", "run", *told]),
        "seconds": {
            name: {"forecast": expected, "measured": seconds[name]} for name, expected in forecast["seconds"].items()
        },
        "memory_bytes": {"forecast": forecast["memory_bytes"], "measured": made["peak_memory_bytes"]},
        "accuracy": made["accuracy"],
        "environment": made["environment"],
    }


def main() -> None:
    """Forecast and run the presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cifar100"))
    parser.add_argument("--ipcs", type=int, nargs="+", choices=SHORTER, default=[*SHORTER])
    parser.add_argument("--record", type=Path, default=RECORD, help="what it holds of other presets is kept")
    given = parser.parse_args()
    before = files.read_json(given.record)["presets"] if given.record.exists() else {}
    found: dict[str, Any] = {"classes": CLASSES, "presets": before}
    for ipc in given.ipcs:
        with tempfile.TemporaryDirectory() as folder:
            found["presets"][f"tiny-imagenet-ipc{ipc}"] = one = compared(given.data, ipc, Path(folder) / "run")
        files.write_json(given.record, found)
        print(json.dumps({key: one[key] for key in ("seconds", "memory_bytes")}, indent=2), flush=True)


if __name__ == "__main__":
    main()
