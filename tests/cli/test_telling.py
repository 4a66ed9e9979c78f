"""What the flags of every command ask for: --quiet, --json; and colours only where they are wanted."""

import json
import os
import subprocess
import sys

import pytest

from potstill.cli import main, runners
from potstill.cli.commands import COMMANDS
from potstill.cli.terminal import mode, out
from tests.cli.test_main import SMALL, call

POTSTILL = [sys.executable, "-m", "potstill"]
SELECTION = "--method random --network.width 4 --evaluation.protocol quick --evaluation.epochs 1".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, with what it told: (folder, code, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("telling") / "run"
    command = [*POTSTILL, "run", "--json", *SELECTION, "--evaluation.full-seeds", "0", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return folder, done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("arguments", "left", "flags"), [
    ("--quiet run --ipc 2", "run --ipc 2", {"--quiet"}),
    ("run --ipc 2 --json --quiet", "run --ipc 2", {"--quiet", "--json"}),
    ("evaluate set --json", "evaluate set", {"--json"}),
    ("evaluate --json set", "evaluate set", {"--json"}),
    ("evaluate set --json r.json --json", "evaluate set --record r.json", {"--json"}),
    ("run --recipe x.json", "run --recipe x.json", set()),
])  # fmt: skip
def test_the_flags_stand_before_or_behind_the_command(arguments, left, flags):
    assert main.split_flags(arguments.split()) == (left.split(), flags)


def test_json_is_the_results_on_stdout_and_all_else_on_stderr(finished):
    folder, code, printed, told = finished
    results = json.loads(printed)
    assert (code, results.pop("folder")) == (0, str(folder))
    assert results == json.loads((folder / "results.json").read_text())
    assert "random real images" in told
    assert "the page" in told


def test_other_commands_tell_their_results_as_json_too(finished, tmp_path, capsys):
    folder = finished[0]
    code, printed, _ = call(capsys, "--json", "show", folder, "--out", tmp_path / "i.png")
    assert (code, json.loads(printed)["shape"]) == (0, [1, 8, 8])
    code, printed, _ = call(capsys, "export", folder, "--out", tmp_path / "s.npz", "--json")
    assert (code, json.loads(printed)) == (0, {"written": str(tmp_path / "s.npz")})
    code, printed, _ = call(capsys, "methods", "--json")
    assert {one["name"] for one in json.loads(printed)} >= {"datm", "random"}
    code, printed, _ = call(capsys, "methods", "datm", "--json")
    assert json.loads(printed)["published"]["cifar10-ipc10"]["lr_images"] > 0
    quick = ["--protocol", "quick", "--epochs", 1, "--seeds", 1, "--full-seeds", 0]
    code, printed, _ = call(capsys, "evaluate", folder, *quick, "--json")
    assert (code, json.loads(printed)["accuracy"].keys() >= {"distilled", "random"}) == (0, True)


def test_an_error_leaves_stdout_empty(capsys):
    code, printed, told = call(capsys, "run", "--ipc", "0", "--json", "--quiet")
    assert (code, printed, told.startswith("error: ipc 0")) == (1, "", True)
    assert (mode.quiet, mode.json, out.stderr) == (False, False, False)  # the next call tells as ever


def test_quiet_leaves_results_and_no_progress(tmp_path, capsys):
    flags = [*SMALL, "--evaluation.full-seeds", "0", "--out", tmp_path / "run"]
    code, printed, told = call(capsys, "run", *flags, "--quiet")
    assert (code, told) == (0, "")
    assert "distilled set" in printed
    assert "train on it in Python" not in printed
    assert f"{tmp_path / 'run'}: digits" not in printed
    code, printed, told = call(capsys, "run", *flags)
    assert f"{tmp_path / 'run'}: digits" in printed
    assert "train on it in Python" in printed


def test_quiet_keeps_warnings(capsys, monkeypatch):
    import logging

    def warn(command):
        logging.getLogger("potstill.x").info("chatter")
        logging.getLogger("potstill.x").warning("beware")

    monkeypatch.setitem(runners.RUNNERS, runners.Cache, warn)
    assert call(capsys, "cache", "--quiet")[2] == "beware\n"
    assert call(capsys, "cache")[2] == "chatter\nbeware\n"


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["nonsense"]], ids=" ".join)
def test_no_color_means_no_colour(arguments):
    wanted = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    colour = {**wanted, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    for environment in (colour, {**colour, "NO_COLOR": "1"}):
        done = subprocess.run([*POTSTILL, *arguments], capture_output=True, text=True, check=False, env=environment)
        coloured = any(f"\x1b[{code}m" in done.stdout + done.stderr for code in ("1;31", "31", "33", "35"))
        assert not (coloured and "NO_COLOR" in environment)
        if arguments == ["nonsense"] and environment is colour:
            assert coloured


def test_every_command_can_be_asked_for_json():
    assert {type(kind) for kind in COMMANDS.values()} == {type}
    assert set(runners.RUNNERS) == set(COMMANDS.values())
