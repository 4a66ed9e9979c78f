"""A release: one version everywhere, a wheel that holds all it needs, and what the wheel holds is enough to run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import potstill

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_one_version_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", potstill.__version__)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == potstill.__version__
    assert re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == potstill.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_the_tag_of_a_release_is_its_version():
    try:
        command = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
        tags = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout")
    versions = [tag for tag in tags if re.match(r"v\d", tag)]
    if not versions:
        pytest.skip("HEAD is no release: it has no tag v...")
    assert versions == [f"v{potstill.__version__}"]


def test_the_citation_has_what_readers_of_it_need():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["references"][0]["url"] == "https://arxiv.org/abs/2310.05773"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [item["id"] for item in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(item["type"] == "textarea" and item["attributes"]["label"] for item in form["body"])


# --- the wheel -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as `python -m build` makes it, by way of the source distribution; here without asking a registry.

    It is made of a copy: building writes beside the sources, and several tests may build at once.
    """
    for name in ("build", "setuptools"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs the package {name}")
    folder = tmp_path_factory.mktemp("release")
    for name in ("potstill", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    command = [sys.executable, "-m", "build", "--no-isolation", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package_and_the_recipes(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "potstill"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in files}
    wanted |= {f"potstill/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    held = {name for name in names if ".dist-info/" not in name}
    assert {"potstill/py.typed", "potstill/report/pages/base.html.j2", "potstill/methods/published.toml"} <= held
    assert held == wanted
    assert wheel.name.split("-")[1] == potstill.__version__


def test_what_the_wheel_holds_runs_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    code = "import potstill; print(potstill.__file__)"
    run = ["-m", "potstill", "run", "--tiny", "--recipe", "digits-ipc10", "--out", "run"]
    for arguments, words in ((["-c", code], "installed"), (run, "distilled set")):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
