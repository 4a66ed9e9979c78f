"""Completion in the shell, as a shell asks for it."""

import ast
import re
import shutil
import subprocess
import sys

import pytest

from potstill.cli import completion
from potstill.cli.commands import COMMANDS
from potstill.methods import METHODS
from tests.cli.test_main import call

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_tyro_potstill
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "potstill.bash"
    completion.write("--tyro-write-completion", "bash", str(path))
    return path


@pytest.fixture
def complete(script):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")

    def ask(*words):
        done = subprocess.run(
            ["bash", "-c", ASK, "bash", str(script), "potstill", *words], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return ask


def test_commands_flags_and_names_are_completed(complete):
    assert set(complete("")) >= {name.split()[0] for name in COMMANDS} | {"--quiet", "--json"}
    assert complete("explore", "wi") == ["windows"]
    assert complete("run", "--rat-bptt.wi") == ["--rat-bptt.window"]
    assert complete("run", "--method", "datm", "rat") == ["rat-bptt"]
    assert complete("run", "--preset", "cifar10-ipc50") == ["cifar10-ipc50", "cifar10-ipc500"]
    assert complete("run", "--recipe", "digits-ipc5") == ["digits-ipc50"]
    assert complete("evaluate", "set", "--protocol", "st") == ["standard"]


def test_nothing_but_words_is_offered(complete):
    """A description of several lines would be taken for several words."""
    assert all(re.fullmatch(r"-h|--[\w.-]+", word) for word in complete("run", "--"))


def test_the_script_knows_every_flag_of_every_method_and_imports_nothing_of_ours(script):
    text = script.read_text()
    line = next(line for line in text.splitlines() if line.startswith(completion.SPEC))
    run = ast.literal_eval(line.removeprefix(completion.SPEC))["subcommands"]["run"]
    flags = {flag for option in run["options"] for flag in option["flags"]}
    for name, method in METHODS.items():
        for field in method.settings.__dataclass_fields__:
            stem = f"--{name}.{field.replace('_', '-')}"
            assert stem in flags or f"--{name}.no-{field.replace('_', '-')}" in flags, stem
    assert "import potstill" not in text
    assert "import torch" not in text


def test_each_shell_gets_its_script(script, monkeypatch, capsys):
    form = completion.everything()
    monkeypatch.setattr(completion, "everything", lambda: form)
    bash = next(line for line in script.read_text().splitlines() if line.startswith(completion.SPEC))
    for shell in ("zsh", "fish"):
        code, printed, _ = call(capsys, "--tyro-print-completion", shell)
        found = next(line for line in printed.splitlines() if line.startswith(completion.SPEC))
        unquoted = re.sub(r"\\(.)", r"\1", found) if shell == "fish" else found
        assert (code, len(ast.literal_eval(unquoted.removeprefix(completion.SPEC)))) == (0, 4)
        assert sorted(unquoted) == sorted(bash)  # but for the order of sets
    assert '\\"' in found or '"' not in unquoted  # fish's is between double quotes


def test_what_is_wrong_is_a_sentence(capsys):
    assert "choose among bash, zsh, fish" in call(capsys, "--tyro-print-completion", "csh")[2]
    assert "name the file" in call(capsys, "--tyro-write-completion", "bash")[2]
    assert call(capsys, "--tyro-print-completion")[0] == 1


def test_the_completer_is_python_alone(script, tmp_path):
    """It runs without a site: what the shell waits for is Python itself and nothing installed."""
    program = script.read_text().split("<< 'PYTHON_EOF' || true\n")[1].split("PYTHON_EOF")[0]
    (tmp_path / "c.py").write_text(program)
    command = [sys.executable, "-I", "-S", str(tmp_path / "c.py"), "potstill", "run", "--ip", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("--ipc\t")
