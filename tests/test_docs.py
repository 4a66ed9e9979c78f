"""The documentation builds without a warning, has a page for every method, and what it shows can be typed."""

import ast
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import potstill
from potstill.cli import arguments
from potstill.cli.commands import COMMANDS
from potstill.methods import METHODS

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
TOLD = runpy.run_path(str(ROOT / "docs" / "generate.py"))
MADE = TOLD["pages"]()
WRITTEN = {str(path.relative_to(ROOT / "docs")): path.read_text() for path in (ROOT / "docs").rglob("*.md")}
PAGES = {**WRITTEN, **MADE}


def fenced(text, language):
    return [block for found, block in FENCED.findall(text) if found == language]


def lines(text):
    """Of shell blocks."""
    return "\n".join(fenced(text, "sh")).replace("\\\n", " ").splitlines()


def spans(text):
    """Of code inside sentences."""
    return re.findall(r"`(potstill [^`]+)`", FENCED.sub("", text))


def commands(shown):
    """Names of potstill's commands, of one word or two, and their arguments; --help, which ends all, left out."""
    for line in shown:
        words = shlex.split(line, comments=True)
        if words[:1] in (["potstill"], ["torchrun"]):
            own = [word for word in words[words.index("potstill") + 1 :] if word != "--help"]
            length = 2 if own[0] == "explore" else 1
            yield " ".join(own[:length]), *own[length:]


SHOWN = {
    *(command for text in PAGES.values() for command in commands(lines(text))),
    *(command for text in WRITTEN.values() for command in commands(spans(text))),
}


def test_commands_are_found():
    assert ("run",) in SHOWN
    assert ("run", "--dataset", "data/cifar10", "--ipc", "10", "--datm.segments", "2") in SHOWN  # of torchrun
    assert any(name == "compare" and "--ray" in rest for name, *rest in SHOWN)
    assert any(name == "import" for name, *_ in SHOWN)  # broken over two lines


def test_commands_shown_can_be_typed(tmp_path, monkeypatch):
    for name in ("cifar10", "cifar100"):
        (tmp_path / "data" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, *rest in sorted(SHOWN):
        assert name in COMMANDS, f"potstill {name}"
        if rest or name == "run":  # else only named: its arguments are told elsewhere
            assert isinstance(arguments.parse(name, rest), COMMANDS[name])


def test_commands_named_in_docstrings_are_commands():
    assert {name for text in MADE.values() for name, *_ in commands(spans(text))} <= set(COMMANDS)


def test_python_shown_calls_what_there_is():
    called = 0
    for page, text in PAGES.items():
        for block in fenced(text, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("potstill."):
                    function = getattr(potstill, node.func.attr)
                    keywords = {one.arg: one.value for one in node.keywords}
                    assert inspect.signature(function).bind(*node.args, **keywords), page
                    called += 1
    assert called > len(METHODS)


def test_every_method_has_a_page_with_all_its_settings():
    for name, method in METHODS.items():
        page = MADE[f"methods/{name}.md"]
        assert f"]({name}.md)" in MADE["methods/index.md"]
        assert method.citation in page
        for setting, _, text in TOLD["fields_of"](method.settings):
            assert f"`--{name}.{setting.replace('_', '-')}`" in page
            assert text, f"{name}.{setting} has no text"
        for dataset, ipc in method.published:
            assert f"`{dataset}-ipc{ipc}`" in page


def test_a_page_tells_the_equation_the_defaults_and_what_is_published():
    page = MADE["methods/datm.md"]
    assert "    L = ‖θ_N − θ*ₜ₊ₘ‖² / ‖θ*ₜ − θ*ₜ₊ₘ‖²" in page  # indented: a block of its own
    assert "| `--datm.start-epochs` | measured |" in page
    assert "| cifar10 | 46.9 | 66.8 | 76.1 | – | 83.5 | 85.5 |" in page
    assert "In all cells: `iterations` 10000" in page
    assert "Args:" not in "".join(MADE[f"methods/{name}.md"] for name in METHODS)
    assert "| `--dm.initial` | random | Begin with random real images, or with noise. |" in MADE["methods/dm.md"]


def test_every_part_and_family_of_the_methods_is_known_to_the_pages():
    assert set(TOLD["FAMILIES"]) == {method.family for method in METHODS.values()}
    assert set(TOLD["PARTS"]) <= set(METHODS)
    assert {part for parts in TOLD["PARTS"].values() for part in parts} == set(TOLD["TITLES"])


def test_every_command_and_every_public_name_is_told():
    for name in COMMANDS:
        assert f"## potstill {name}\n" in MADE["reference/commands.md"]
    told = re.findall(r"^::: potstill\.([\w.]+)", WRITTEN["reference/index.md"], re.M)
    public = set(potstill.__all__) - {"METHODS", "__version__"}
    assert {name.rpartition(".")[2] for name in told} == public


def test_the_records_are_those_of_the_repository():
    assert MADE["records/index.md"] + "\n" == (ROOT / "records" / "README.md").read_text()


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the documentation's packages; `make docs` installs them")
    pytest.importorskip("mkdocstrings", reason="needs the documentation's packages; `make docs` installs them")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        assert (tmp_path / "site" / page).with_suffix(".html").exists()
    assert "potstill.distill" in (tmp_path / "site" / "reference" / "index.html").read_text()
    assert list(tmp_path.glob("site/**/*.py")) == []
