"""Remedies in the words of a comparison."""

import ast
import contextlib
import re
from pathlib import Path

import pytest
import torch

import potstill
from potstill.cli.arguments import parse
from potstill.errors import Diverged, PotstillError
from potstill.methods import METHODS, bptt
from potstill.runs import loop, settings
from potstill.runs.state import State
from potstill.studies.remedies import in_comparison

ROOT = Path(potstill.__file__).parent
PACKAGES = ("adjoint", "data", "evaluation", "methods", "networks", "runs", "studies", "training")
OF_OTHER_COMMANDS = {
    "data/export.py", "data/foreign.py", "data/pictures.py", "data/distilled.py", "runs/given.py", "runs/recipes.py",
    "runs/imported.py", "training/buffers.py", "studies/ablations.py", "studies/cells.py", "studies/lossless.py",
    "studies/search.py", "studies/start_epochs.py", "studies/execute.py",
}  # fmt: skip
NEVER = (  # sets have one process each, are of no older version, and begin at none on disk
    "give another --experts", "along by --experts", "begins sets of its own size",
)  # fmt: skip
FLAG = re.compile(r"--[a-z][a-z.-]*[a-z]")


def told_of(call, *arguments):
    with pytest.raises(PotstillError) as found:
        call(*arguments)
    return str(found.value)


def test_settings_of_methods_stand_behind_their_names():
    told = told_of(bptt.check, bptt.RatBptt(pool=2, inner="adam"), "rat-bptt", ())
    assert told.endswith("take --rat-bptt.inner sgd, or --rat-bptt.pool 0.")
    assert in_comparison(told).endswith("take rat-bptt:inner=sgd, or rat-bptt:pool=0.")
    told = told_of(settings.check_pictures, "idm", 1, 2, "dm")
    assert "set idm:pictures=1, where it has that setting" in in_comparison(told)


def test_what_diverges_needs_no_other_folder():
    state = State({}, torch.arange(1), {}, {}, in_a_row=loop.PATIENCE)
    with pytest.raises(Diverged) as found:
        loop._check_progress(METHODS["dm"], METHODS["dm"].settings(iterations=1000), state)
    assert str(found.value).endswith("(--dm.lr-images) in another --out; --experts takes the experts along.")
    assert in_comparison(found.value).endswith("lower its outer rates (dm:lr-images).")


def test_no_remedy_names_a_flag_that_a_comparison_lacks(capsys):
    with contextlib.suppress(SystemExit):
        parse("compare", ["--help"])
    known = set(FLAG.findall(capsys.readouterr().out))
    assert {"--ipcs", "--expert.epochs", "--network.norm"} <= known
    wrong = {
        (path, flag)
        for path, told in sentences()
        for flag in FLAG.findall(in_comparison(told))
        if flag not in known and "dm" not in flag and not any(words in in_comparison(told) for words in NEVER)
    }
    assert wrong == set()


def sentences():
    """The errors of all modules that a comparison comes to, as they read for the method dm."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).glob("*.py")):
            name = f"{package}/{path.name}"
            if name in OF_OTHER_COMMANDS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("PotstillError", "Diverged"):
                    yield name, "".join(map(words_of, node.args))


def words_of(node):
    """A literal as it reads, with "dm" for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(words_of, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "dm"
