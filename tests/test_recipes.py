"""Every recipe runs end to end at a tiny budget, in pieces too, and leaves its record."""

import argparse
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import potstill
from potstill.cli import arguments, main, runners
from potstill.data import dataset as datasets
from potstill.errors import PotstillError
from potstill.evaluation import statistics
from potstill.methods import METHODS, published
from potstill.runs import recipes, run, settings
from potstill.studies import compare

RECIPES = Path(__file__).parents[1] / "recipes"
RECORDS = RECIPES.parent / "records"
ALL = sorted(path.stem for path in RECIPES.glob("*.toml"))
CELLS = {f"{dataset}-ipc{ipc}" for dataset, ipc in published.cells("datm") if dataset != "tiny-imagenet"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in the shape of CIFAR: cifar10 and cifar100, as folders with train.npz and test.npz."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        (folder / name).mkdir()
        for split, count in (("train", 6 * classes), ("test", classes)):
            pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            np.savez(folder / name / f"{split}.npz", images=pixels, labels=np.arange(count) % classes)
    return folder


def ran(recipe, images, out, *flags):
    """Exit code of a recipe at a tiny budget."""
    data = [] if recipe.startswith("digits") else ["--dataset", str(images / recipe.partition("-")[0])]
    where = ["--out", str(out / "run"), "--record", str(out / "record.json")]
    return main.main(["run", "--recipe", recipe, "--tiny", *data, *where, *flags])


def test_there_is_one_for_each_published_cell():
    assert CELLS | {"digits-ipc1", "digits-ipc10", "digits-ipc50"} == {
        name for name in ALL if not name.endswith("-cpu")
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_tiny_form_that_holds(method):
    small = recipes.tiny(settings.configure("digits", None, None, {"method": (method,)}))
    settings.check(small)
    assert all(getattr(stage, "student_epochs", None) is None for stage in small.stages)


@pytest.mark.parametrize("method", ["rat-bptt", "at-bptt"])
def test_a_tiny_form_asks_for_no_snapshot_that_its_experts_lack(method):
    given = settings.configure("digits", None, None, {"method": (method,), method: {"student_epochs": 5}})
    small = recipes.tiny(given)
    run.check_snapshots(run.expert_needs(small), None, small.expert.epochs, "expert")


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_says_what_it_is_and_its_settings_hold(name, monkeypatch):
    recipe = recipes.load_recipe(name)
    assert len(recipe.about) > 40
    given = recipe.settings(dataset="mine")
    settings.check(given)
    for method, stage in zip(given.methods, given.stages, strict=True):
        assert method.open_fields(stage) == []  # a recipe leaves nothing to chance


@pytest.mark.parametrize(
    "name", ["cifar10-ipc10", "cifar10-ipc1-cpu", "cifar10-ipc1-pictures-cpu", "cifar100-ipc1-cpu", "digits-ipc1"]
)
def test_a_recipe_runs_end_to_end(name, images, tmp_path, capsys):
    assert ran(name, images, tmp_path) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["recipe"] == name
    assert {"distilled", "random", "full"} <= record["accuracy"].keys()
    assert {"config", "commit", "environment", "seconds", "peak_memory_bytes"} <= record.keys()
    data = None if name.startswith("digits") else images / name.partition("-")[0]
    compact = potstill.load(tmp_path / "record.safetensors", dataset=data)
    assert (compact.images - potstill.load(tmp_path / "run").images).abs().max() < 0.01


def test_the_values_of_the_cpu_recipe_of_cifar10():
    given = recipes.load_recipe("cifar10-ipc1-cpu").settings(dataset="mine")
    matched, refined = given.stages
    assert (given.expert.count, given.expert.epochs, given.expert.rho) == (26, 2, 0.0)
    assert (matched.iterations, matched.lr_images, matched.threshold) == (1500, 1000.0, 1.1)
    assert (refined.iterations, refined.lr_images, refined.window, refined.pool) == (1800, 300.0, 40, 8)
    assert (given.transform, given.keep, given.evaluation.step_size) == ("zca", "last", "chosen")


def test_flags_change_a_recipe(monkeypatch):
    seen = []
    monkeypatch.setitem(runners.RUNNERS, runners.Run, seen.append)
    flags = "--recipe cifar10-ipc1-cpu --dataset mine --method datm --start a.safetensors --datm.iterations 7".split()
    assert main.main(["run", *flags]) == 0
    given = seen[0].settings
    assert (given.method, given.stages[0].iterations, given.stages[0].inner_steps) == (("datm",), 7, 40)
    assert given.start == "a.safetensors"


def test_a_recipe_works_in_pieces(images, tmp_path, capsys):
    for _ in range(2):
        assert ran("cifar10-ipc1", images, tmp_path, "--minutes", "0") == 130  # each piece ends after its first event
        assert "The same command continues" in capsys.readouterr().err
        assert not (tmp_path / "record.json").exists()
    assert ran("cifar10-ipc1", images, tmp_path) == 0
    assert json.loads((tmp_path / "record.json").read_text())["iterations"]["iteration"] == 2


def test_what_is_wrong_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text("about = ")
    (tmp_path / "mine.toml").write_text('preset = "cifar10-ipc1"\n[datm]\nnonsense = 3\n')
    for flags, words in (
        (["--recipe", "cifar10-ipc2"], "recipe 'cifar10-ipc2': there is none; did you mean"),
        (["--recipe", "cifar10-ipc1"], "data/cifar10: no such folder; name by --dataset"),
        (["--recipe", "own.toml"], "own.toml: not valid TOML"),
        (["--recipe", "mine.toml", "--dataset", "x"], "nonsense: no such setting"),
        (["--recipe", "cifar10-ipc1", "--preset", "none"], "leave --preset out"),
    ):
        assert main.main(["run", *flags]) == 1
        assert words in capsys.readouterr().err


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('about = "x"\ndataset = "digits"\nmethod = ["random"]\nseed = 4\nresize = "none"\n')
    given = recipes.load_recipe(str(path)).settings()
    assert (given.method, given.seed, given.resize) == (("random",), 4, None)
    with pytest.raises(PotstillError, match="there is none"):
        recipes.load_recipe("nothing")


def test_the_page_of_the_records_is_what_they_make_of_it(capsys):
    runpy.run_path(str(RECIPES / "table.py"), run_name="__main__")
    assert capsys.readouterr().out == (RECIPES.parent / "records" / "README.md").read_text()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with a virtual environment, and the commands of a cluster that write down what they are asked."""
    for name, text in {
        ".venv/bin/activate": "VIRTUAL_ENV=here",
        "bin/scontrol": 'printf "%s\\n" one two three',
        "bin/srun": '[[ $* == *hostname* ]] && echo "10.0.0.1 172.17.0.1" && exit; printf "%s\\n" "$@" > asked',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {"NODELIST": "node[1-3]", "NUM_NODES": "3"}.items():
        monkeypatch.setenv(f"SLURM_JOB_{name}", value)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    return tmp_path


def test_the_script_for_slurm_starts_a_comparison_on_every_node(slurm):
    flags = ["--methods", "herding", "dm:iterations=5", "--ipcs", "1"]
    script = ["bash", str(RECIPES / "slurm.sh"), *flags]
    assert subprocess.run(["bash", "-n", script[1]]).returncode == 0
    subprocess.run(script, cwd=slurm, check=True)
    asked = (slurm / "asked").read_text().splitlines()
    ray, command = asked[: asked.index("--")], asked[asked.index("--") + 1 :]
    assert ray[ray.index("ray") :] == [
        "ray", "symmetric-run", "--address", "10.0.0.1:6379", "--min-nodes", "3", "--num-cpus=8", "--num-gpus=0",
    ]  # fmt: skip
    assert {"--nodes=3", "--ntasks=3"} == set(ray[: ray.index("ray")])
    assert command == ["potstill", "compare", "--ray", "auto", *flags]
    assert arguments.parse("compare", command[2:]).ray == "auto"


def test_the_script_for_slurm_asks_for_the_gpus_of_a_node(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("PORT", "7000")
    subprocess.run(["bash", str(RECIPES / "slurm.sh")], cwd=slurm, check=True)
    asked = (slurm / "asked").read_text().splitlines()
    assert {"--num-gpus=4", "10.0.0.1:7000"} <= set(asked)


# --- comparisons ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparisons():
    return runpy.run_path(str(RECIPES / "comparisons.py"))


@pytest.mark.parametrize("name", ["digits", "digits-30", "cifar10-narrow", "cifar10-narrow-many"])
def test_a_comparison_is_a_command_whose_settings_hold(name, comparisons, tmp_path):
    command, *flags = comparisons["arguments"](name, tmp_path / "cifar10", tmp_path)
    asked = arguments.parse(command, flags)
    rows = [compare.row_settings(runners._asked(asked), method, asked.ipcs[0]) for method in asked.methods]
    assert len(rows) == len(asked.methods)
    for one in rows:
        settings.check(one)


def test_the_digits_comparison_holds_every_method(comparisons):
    assert set(METHODS) - {"random"} <= set(comparisons["COMPARISONS"]["digits"].split())


# --- foreign evaluations -------------------------------------------------------------------------------------------

FOREIGN = {
    "torchvision/__init__.py": "from types import SimpleNamespace\ndatasets = SimpleNamespace(CIFAR10=None)\n",
    "datm/utils/utils_baseline.py": """
def get_eval_pool(*_):
    return ["ConvNet"]

def evaluate_synset(number, network, images, labels, loader, args, train_criterion=None):
    right = (labels.sort().values == labels).float().mean()  # in the order of their classes
    return network, [], float(right) * args.epoch_eval_train / 10 - float(args.lr_net)
""",
    "datm/distill/evaluation.py": """
import argparse, sys
from types import SimpleNamespace
sys.path.append("../")
import torch, torchvision
from utils.utils_baseline import evaluate_synset, get_eval_pool

parser = argparse.ArgumentParser()
parser.add_argument("--zca", action="store_true", required=True)
parser.add_argument("--parall_eva", type=bool, required=True)
parser.add_argument("--epoch_eval_train", type=int)
for name in ("dataset", "data_path", "data_dir", "label_dir", "lr_dir"):
    parser.add_argument("--" + name, required=True)
args = parser.parse_args()
tests = torchvision.datasets.CIFAR10(args.data_path, train=False, download=True, transform=torch.from_numpy)
whitened = torch.stack([tests[row][0] for row in range(len(tests))]).permute(0, 3, 1, 2) / 255
images, labels, args.lr_net = (torch.load(path) for path in (args.data_dir, args.label_dir, args.lr_dir))
for seed, name in enumerate(get_eval_pool("S", "ConvNet", "ConvNet")):
    torch.random.manual_seed(seed + 3)
    evaluate_synset(0, name, images, labels, SimpleNamespace(dataset=SimpleNamespace(images=whitened)), args)
""",
}
"""In place of DATM's code: the same files and functions, and as accuracy what was handed to them."""


@pytest.fixture(scope="module")
def foreign():
    return runpy.run_path(str(RECIPES / "foreign.py"))


def test_foreign_code_is_given_the_export_and_is_evaluated_as_often_as_asked(foreign, tmp_path, monkeypatch):
    for name, text in FOREIGN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    given = argparse.Namespace(
        set="digits-ipc1", data="digits", work=tmp_path / "work", networks=2, epochs=9, python=sys.executable
    )  # fmt: skip
    told = foreign["evaluate"](given, {"datm": tmp_path / "datm"}, "abc")["datm"]
    distilled = potstill.load(RECORDS / "digits-ipc1.safetensors", dataset="digits")
    assert told["accuracy"]["per_seed"] == pytest.approx([0.9 - distilled.step_size] * 2)
    assert (told["seeds"], told["epochs"], told["commit"], told["their_commit"]) == ([3, 4], 10, "abc", None)
    data = datasets.load("digits")
    own = distilled.transform(data.test.images[:500])
    apart = (data.test.images[:500] / 255 - own).square().mean().sqrt()
    assert told["whitening"] == pytest.approx({"difference": float(apart), "of": float(own.square().mean().sqrt())})
    with np.load(tmp_path / "work" / "train.npz") as held:
        assert held["images"].shape == (len(data.train.labels) + len(data.val.labels), 8, 8, 1)
        assert held["classes"].tolist() == list(data.classes)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    (tmp_path / "datm" / "distill" / "evaluation.py").write_text("import nothing_of_that_name")
    with pytest.raises(PotstillError, match="datm: ended with code 1 .*nothing_of_that_name.*datm.log"):
        foreign["evaluate"](given, {"datm": tmp_path / "datm"}, None)


def test_a_foreign_figure_stands_beside_ours(foreign):
    ours = statistics.interval([0.47, 0.48, 0.49])
    low, high = ours["ci95"]
    inside = foreign["beside"]({"accuracies": [0.47, 0.485], "seeds": [1, 2]}, ours)
    assert inside["within_our_interval"]
    assert low < 0.4775 < high
    assert inside["accuracy"]["mean"] == pytest.approx(0.4775)
    assert inside["difference"]["mean"] == pytest.approx(-0.0025)
    assert "accuracies" not in inside
    assert not foreign["beside"]({"accuracies": [0.6, 0.61]}, ours)["within_our_interval"]
    assert not foreign["beside"]({"accuracies": [0.4, 0.41]}, ours)["within_our_interval"]


def test_the_record_of_the_foreign_evaluations_is_of_the_set_beside_it(foreign):
    record = json.loads((RECORDS / "cifar10-ipc1-foreign.json").read_text())
    ours = json.loads((RECORDS / f"{record['set']}.json").read_text())["accuracy"]["distilled"]
    assert record["ours"]["accuracy"] == ours
    assert set(record["evaluations"]) == set(foreign["NAMES"])
    for told in record["evaluations"].values():
        again = foreign["beside"]({"accuracies": told["accuracy"]["per_seed"]}, ours)
        assert again.items() <= told.items()
        assert len(set(told["seeds"])) == len(told["accuracy"]["per_seed"]) == 5
