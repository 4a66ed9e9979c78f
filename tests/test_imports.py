"""Imports point one way, and the core stands without the heavier libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import potstill

PACKAGE = Path(potstill.__file__).parent
# Upstream first: a module imports from its own room and from rooms above its own in this list, never from one below.
ROOMS = (
    "ground",
    "data",
    "networks",
    "adjoint",
    "training",
    "methods",
    "evaluation",
    "runs",
    "report",
    "studies",
    "cli",
)
GROUND = {"version", "errors", "bounds", "process", "seeds", "files", "machine", "ranks", "store"}
FACES = {"", "__main__"}  # what users import and run: hands names on
HEAVY = {
    "datasets", "huggingface_hub", "jinja2", "matplotlib", "onnx", "onnxscript", "pandas", "PIL", "pyarrow", "rich",
    "scipy", "sklearn", "tensorboard", "tyro",
}  # fmt: skip


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported(path):
    """Our own modules that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "potstill":
            module = (node.module or "").removeprefix("potstill").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                at = PACKAGE / inner.replace(".", "/")
                yield inner if at.with_suffix(".py").exists() or (at / "__init__.py").exists() else module


def room_of(module):
    return "ground" if module in GROUND else module.split(".")[0]


def test_rooms_import_only_from_rooms_above_them():
    for path in PACKAGE.rglob("*.py"):
        module = name_of(path)
        if module in FACES:
            continue
        assert room_of(module) in ROOMS, f"{module} stands in no room"
        for other in imported(path):
            arrow = f"{module} imports {other}, against the stream"
            assert other not in FACES, arrow
            assert ROOMS.index(room_of(other)) <= ROOMS.index(room_of(module)), arrow
    for module in GROUND:
        assert {room_of(other) for other in imported(PACKAGE / f"{module}.py")} <= {"ground"}


def test_no_modules_import_each_other_in_a_circle():
    arrows = {name_of(path): set(imported(path)) for path in PACKAGE.rglob("*.py")}
    while leaves := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows, f"a circle among {sorted(arrows)}"


def test_importing_potstill_pulls_in_torch_numpy_and_safetensors_only():
    code = f"import sys, potstill; print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_core_runs_where_the_heavier_libraries_are_missing(tmp_path):
    """As on a machine with torch, numpy and safetensors alone: arrays in, a distilled set out."""
    code = f"""
import sys
for name in {sorted(HEAVY)!r}: sys.modules[name] = None
import numpy as np, potstill
rng = np.random.default_rng(0)
np.savez("d.npz", images=rng.integers(0, 256, (120, 8, 8), dtype=np.uint8), labels=np.arange(120) % 3)
distilled = potstill.distill(
    "d.npz", 1, out="run", network={{"width": 4}}, expert={{"count": 1, "epochs": 2}}, evaluations=1,
    datm={{"iterations": 2, "inner_steps": 2, "start_epochs": (0, 1), "expert_epochs": 1}})
print(len(distilled))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "3", done.stderr


def test_every_function_fits_a_screen():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 64, f"{path.name}: {node.name}"
