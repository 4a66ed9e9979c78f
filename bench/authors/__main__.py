"""One iteration of each method, ours against its authors' own public code, on a CPU.

    python -m bench.authors --code FOLDER
    python -m bench.authors --code FOLDER --only dm dsa --rounds 3
    python -m bench.authors --code FOLDER --record records/authors-NAME.json

FOLDER holds clones of the authors' repositories from GitHub, each under its own name ("DatasetCondensation"); nothing
of them is copied into this project.  Those that were read, at these commits:

    VICO-UoE/DatasetCondensation            53f63a6    DC, DSA, DM
    GeorgeCazenavette/mtt-distillation      50dccea    MTT
    justincui03/tesla                       488842e    TESLA
    AngusDujw/FTD-distillation              711532a    FTD
    NUS-HPC-AI-Lab/DATM                     97ae510    DATM
    NUS-HPC-AI-Lab/PAD                      2a4bc91    PAD
    gszfwsb/NCFM                            de92fb8    NCFM
    uitrbn/IDM                              fe23bbc    IDM
    kaiwang960112/CAFE                      b718ff5    CAFE
    fengyzpku/Simple_Dataset_Distillation   7915c5a    RaT-BPTT
    aether-hang/at-bptt-plus                aa48f30    AT-BPTT

Their scripts run unmodified, each in a process of its own (``theirs.py``), with the arguments of ``cases.py``.  A turn
is one whole iteration with all that belongs to it: drawing, a fresh network, the step of the set.  Theirs and ours take
turns, both in float32, in as many threads, with the same allocator.  ``--python`` names the interpreter for theirs,
which needs torch and numpy, tqdm for MTT and its kin, PyYAML and matplotlib for NCFM, yacs for DATM and PAD, and higher
for RaT-BPTT and AT-BPTT.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.authors.cases import CASES, WIDTH
from bench.authors.sides import compare, described, take_turns
from potstill import files
from potstill.machine import commit, environment

CHANGED_IN_ALL = (
    "their scripts are run as they are, but for what an iteration does not time: made-up images of CIFAR-10's size and "
    "made-up experts; blanks for wandb and for packages that are not installed; no evaluation; no ZCA, which comes "
    "before the first iteration.  What asks for CUDA is answered by the CPU, and freed memory is kept as ours keeps it"
)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each case, told as it comes; one that fails says why."""
    tell(f"{'case':14} {'theirs':>10} {'ours':>10} {'faster':>8}")
    lines = []
    for name in given.only or CASES:
        try:
            found = compare(name, given.code.resolve(), given.width, given.python, given.rounds)
            tell(f"{name:14} {found['theirs_ms']:7.0f} ms {found['ours_ms']:7.0f} ms {found['ratio']:7.2f}×")
        except RuntimeError as error:
            found = {**described(name, given.code.resolve(), given.width), "failed": str(error)}
            tell(f"{name:14} {error}")
        lines.append(found)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, help="folder of the authors' repositories")
    parser.add_argument("--only", nargs="+", choices=[*CASES], metavar="CASE", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--python", default=sys.executable, help="interpreter for their scripts (default: this one)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side that count (default: %(default)s)")
    parser.add_argument("--width", type=int, default=WIDTH, help="of networks, where their code has it in one place")
    parser.add_argument("--record", type=Path, help="write all that was measured to this JSON file")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        take_turns(CASES[given.ours], given.work, given.width)
        return
    if given.code is None:
        parser.error("--code: give the folder of the authors' repositories, which the text above names")
    told = {"commit": commit(), "environment": environment(torch.device("cpu")), "changed_in_all": CHANGED_IN_ALL}
    told["lines"] = table(given)
    print(json.dumps(told))
    if given.record:
        files.write_json(given.record, told)


if __name__ == "__main__":
    main()
