"""The Python door: data, networks and progress as people hold them, in one call each."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import potstill
from potstill import files
from potstill.cli import main
from potstill.errors import PotstillError

RNG = np.random.default_rng(0)
Y = np.arange(90) % 3
X = (RNG.integers(0, 90, (90, 8, 8)) + 60 * Y[:, None, None]).astype(np.uint8)
QUICK = {"evaluations": 1, "evaluation": {"epochs": 1, "seeds": 1}, "transform": "standardise", "device": "cpu"}
DATM = {"iterations": 2, "inner_steps": 2, "start_epochs": (0, 1), "expert_epochs": 1, "threshold": None}
TINY = {**QUICK, "network": {"width": 4}, "expert": {"count": 1, "epochs": 2}, "datm": DATM, "progress": False}

SELECTING = {name: value for name, value in TINY.items() if name != "datm"}


def own(channels, height, width, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * (height - 2) * (width - 2), classes)
    )  # fmt: skip


@pytest.fixture(scope="module")
def distilled():
    return potstill.distill((X, Y), **TINY)


def test_arrays_in_and_a_set_out_that_knows_where_it_came_from(distilled):
    assert len(distilled) == 3
    provenance = distilled.provenance
    assert provenance["dataset"]["name"] == "arrays"
    assert provenance["config"]["dataset"] == f"arrays:{provenance['dataset']['fingerprint']}"


def test_the_same_arrays_continue_and_others_are_refused(distilled, tmp_path):
    out = tmp_path / "run"
    first = potstill.distill((X, Y), out=out, **TINY)
    assert torch.equal(first.images, distilled.images)
    told = files.read_json(out / "config.json")["config"]["dataset"]
    before = (out / "distilled.safetensors").stat().st_mtime_ns
    again = potstill.distill((list(X), torch.from_numpy(Y)), out=out, **TINY)  # the same contents
    assert torch.equal(again.images, first.images)
    assert (out / "distilled.safetensors").stat().st_mtime_ns == before
    with pytest.raises(PotstillError, match=f"holds a run that differs in dataset: '{told}', not 'arrays:"):
        potstill.distill((X + 1, Y), out=out, **TINY)


def test_the_command_line_says_that_the_data_were_given_in_python(tmp_path, capsys):
    potstill.distill((X, Y), out=tmp_path / "run", **TINY)
    assert main.main(["evaluate", str(tmp_path / "run"), "--protocol", "quick"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "these data were given in Python" in error
    assert "by --dataset" in error
    np.savez(tmp_path / "same.npz", images=X, labels=Y)
    quick = ["--epochs", "1", "--seeds", "1", "--full-epochs", "1", "--json", str(tmp_path / "r.json")]
    code = main.main(["evaluate", str(tmp_path / "run"), "--dataset", str(tmp_path / "same.npz"), *quick])
    assert (code, "accuracy" in json.loads((tmp_path / "r.json").read_text())) == (0, True)


def test_without_a_folder_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    potstill.distill((X, Y), **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_own_network_is_distilled_with_trained_and_evaluated(tmp_path, capsys):
    asked = {**TINY, "network": own, "out": tmp_path / "run"}
    found = potstill.distill((X, Y), **asked)
    name = found.recipe["network"]["name"]
    assert name.startswith("own:own#")
    manifest = files.read_json(tmp_path / "run" / "experts" / "manifest.json")
    assert manifest["identity"]["network"]["name"] == name
    assert torch.equal(potstill.distill((X, Y), **asked).images, found.images)
    with pytest.raises(PotstillError, match="differs in network.name"):
        potstill.distill((X, Y), **{**asked, "network": lambda *sizes: nn.Sequential(own(*sizes), nn.Identity())})
    trained = potstill.train(found, own, epochs=2)
    assert isinstance(trained[1], nn.SiLU)
    mine = potstill.train(found, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), mine.parameters(), strict=True))
    accuracy = potstill.evaluate(found, (X, Y), seeds=2, epochs=1, full_epochs=1, progress=False)
    assert set(accuracy) == {"distilled", "random", "full"}
    assert len(accuracy["full"]["per_seed"]) == 2
    _forget_functions_and_evaluate(tmp_path, capsys)


def _forget_functions_and_evaluate(folder: Path, capsys):
    """As another process that was not given the function: one of ours is trained, the own one is refused."""
    from potstill.networks import flat
    from potstill.networks import own as networks

    flat._layout.cache_clear()
    networks.GIVEN.known.clear()
    np.savez(folder / "same.npz", images=X, labels=Y)
    given = ["evaluate", str(folder / "run"), "--dataset", str(folder / "same.npz"), "--epochs", "1", "--seeds", "1"]
    assert main.main([*given, "--full-epochs", "1"]) == 1
    assert "was given as a function in Python" in " ".join(capsys.readouterr().err.split())
    assert main.main([*given, "--full-epochs", "1", "--network", "mlp", "--width", "4"]) == 0


@pytest.mark.parametrize(
    ("method", "network", "message"),
    [
        ("dm", lambda *sizes: nn.Sequential(own(*sizes), nn.Tanh()), "dm: compares features.* does not end in one"),
        ("cafe", own, "cafe: compares what each layer gives"),
        ("dm", lambda *sizes: nn.Sequential(nn.BatchNorm2d(sizes[0]), own(*sizes)), "dm .*give it another norm"),
    ],
)
def test_methods_that_need_more_of_a_network_say_so(method, network, message):
    with pytest.raises(PotstillError, match=message):
        potstill.distill((X, Y), method=method, network=network, progress=False, **QUICK)


@pytest.mark.parametrize(("method", "own_settings"), [("dm", {}), ("frepo", {"pool": 2}), ("dsa", {}), ("herding", {})])
def test_methods_of_every_family_take_an_own_network(method, own_settings):
    settings = {method: {"iterations": 1, **own_settings}} if method != "herding" else {}
    expert = {"expert": {"count": 1, "epochs": 1}}
    found = potstill.distill((X, Y), method=method, network=own, progress=False, **QUICK, **expert, **settings)
    assert bool(found.images.isfinite().all())


def brighter(images, numbers):
    return images + 0.2 * numbers[:, :1, None, None]


def test_an_own_augmentation_is_distilled_and_trained_with(tmp_path):
    asked = {**TINY, "out": tmp_path / "run", "augment": ("flip", brighter)}
    found = potstill.distill((X, Y), **asked)
    flip, name = found.recipe["augment"]
    assert (flip, name.partition("#")[0]) == ("flip", "own:brighter")
    assert torch.equal(potstill.distill((X, Y), **asked).images, found.images)
    with pytest.raises(PotstillError, match="differs in augment"):
        potstill.distill((X, Y), **{**asked, "augment": lambda images, numbers: images * numbers[:, :1, None, None]})
    assert next(iter(found.loader(batch_size=2)))[0].shape == (2, 1, 8, 8)
    first, again = (potstill.train(found, epochs=2, augment=given) for given in (None, ("flip", brighter)))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    figures = [
        potstill.evaluate(found, (X, Y), epochs=3, seeds=1, controls=False, progress=False, augment=given)
        for given in (None, brighter)
    ]
    assert all(0 <= figure["distilled"]["mean"] <= 1 for figure in figures)
    with pytest.raises(PotstillError, match="augment 'blur': choose among colour"):
        potstill.train(found, augment=["blur"])


def test_networks_are_named_or_described(distilled):
    named = potstill.distill((X, Y), **{**TINY, "network": "lenet"})
    assert named.recipe["network"]["name"] == "lenet"
    assert potstill.train(distilled, {"width": 6}, epochs=1)[0].out_channels == 6
    with pytest.raises(PotstillError, match="network 'lenett': choose among"):
        potstill.evaluate(distilled, (X, Y), network="lenett", progress=False)


def test_selecting_gives_rows_and_set():
    chosen = potstill.select((X, Y), "herding", 2, **SELECTING)
    rows, found = chosen
    assert rows.dtype == np.int64
    assert Y[rows].tolist() == found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(found.pixels[:, 0].numpy(), X[rows])
    accuracy = potstill.evaluate(found, (X, Y), seeds=1, epochs=1, controls=False, progress=False)
    assert list(accuracy) == ["distilled"]
    among = potstill.select((X, Y), "random", 24, test=(X[:3], Y[:3]), **SELECTING).rows
    assert len(set(among)) == 72
    with pytest.raises(PotstillError, match="method dm: learns images; give it to potstill.distill"):
        potstill.select((X, Y), "dm", 1)
    with pytest.raises(PotstillError, match="method 'herdin': unknown; did you mean herding"):
        potstill.select((X, Y), "herdin", 1)


def test_the_argument_of_earlier_versions_is_taken(distilled):
    asked = {**TINY, "evaluations": 1}
    assert torch.equal(potstill.distill(dataset=(X, Y), **asked).images, distilled.images)


def test_evaluating_on_other_data_is_refused(distilled):
    with pytest.raises(PotstillError, match="arrays: is not the data this set was distilled from"):
        potstill.evaluate(distilled, (X + 1, Y), progress=False)
    with pytest.raises(PotstillError, match="these data were given in Python"):
        potstill.evaluate(distilled, progress=False)
    with pytest.raises(PotstillError, match=r"evaluation.epochz: no such setting; did you mean epochs"):
        potstill.evaluate(distilled, (X, Y), epochz=3)
    with pytest.raises(PotstillError, match="protocol paper: "):
        potstill.evaluate(distilled, (X, Y), protocol="paper")


def test_numbers_of_numpy_and_devices_of_torch(distilled):
    asked = {**TINY, "device": torch.device("cpu"), "seed": np.int64(0)}
    assert torch.equal(potstill.distill((X, Y), np.int32(1), **asked).images, distilled.images)


@pytest.mark.parametrize(
    "state", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: _float64()]
)
def test_the_callers_state_changes_nothing(distilled, state):
    plain = potstill.distill((X, Y), **{**TINY, "network": own})
    with state():
        images = torch.from_numpy(X) / 255
        found = potstill.distill((images, torch.from_numpy(Y)), **TINY)
        with_own = potstill.distill((images, torch.from_numpy(Y)), **{**TINY, "network": own})
        trained = potstill.train(with_own, own, epochs=1)
    assert torch.equal(found.images, distilled.images)
    assert torch.equal(with_own.images, plain.images)
    assert all(map(torch.equal, trained.parameters(), potstill.train(plain, own, epochs=1).parameters()))


class _float64:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


def test_a_set_in_threads_is_the_same(distilled):
    found = []
    work = lambda: found.append(potstill.distill((X, Y), **{**TINY, "network": own}).images)  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(images, found[0]) for images in found)
