"""The README's Python runs as it stands there, and its commands exist."""

import re
from pathlib import Path

import pytest

from potstill.cli import main
from potstill.cli.commands import COMMANDS
from tests.cli.test_main import SMALL

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder in which `potstill run` has been done, with small settings."""
    folder = tmp_path_factory.mktemp("readme")
    assert main.main(["run", *SMALL, "--out", str(folder / "runs" / "digits-ipc1")]) == 0
    return folder


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_runs(number, here, monkeypatch):
    monkeypatch.chdir(here)
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {})


def test_loading_and_training_take_three_lines_and_a_plain_loop_five():
    load_and_train = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(load_and_train) == 3
    loop = BLOCKS[1][BLOCKS[1].index("for epoch") :]
    assert len([line for line in loop.splitlines() if line.strip()]) <= 5


def test_commands_named_are_commands():
    named = set(re.findall(r"`potstill (\w+)", README)) | set(re.findall(r"^potstill (\w+)", README, re.M))
    assert named <= {name.split()[0] for name in COMMANDS} | {"COMMAND"}
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert f"\n{target}:" in makefile


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
