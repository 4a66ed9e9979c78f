"""The example of every public name runs as it stands there, and every argument is typed."""

import doctest
import inspect

import numpy as np
import pytest

import potstill

NAMES = [name for name in potstill.__all__ if name not in ("METHODS", "__version__")]
PARSER = doctest.DocTestParser()


def documented(name):
    """What carries a public name's text: itself, or the function that a package is when it is called."""
    found = getattr(potstill, name)
    return getattr(found, name) if inspect.ismodule(found) else found


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder in which a small run has been done."""
    folder = tmp_path_factory.mktemp("examples")
    potstill.distill(
        "digits", out=folder / "runs" / "digits-ipc1", progress=False, network={"width": 8}, evaluations=1,
        expert={"count": 1, "epochs": 2}, evaluation={"epochs": 1},
        datm={"iterations": 1, "inner_steps": 2, "start_epochs": (0, 1), "expert_epochs": 1},
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, here, monkeypatch):
    monkeypatch.chdir(here)
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = (rng.integers(0, 90, (90, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    given = {"potstill": potstill, "images": images, "labels": labels, "uint8_images": images[:4, None]}
    example = PARSER.get_doctest(documented(name).__doc__, given, name, None, None)
    assert example.examples, f"{name} has no example"
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isfunction(documented(name))])
def test_every_argument_is_typed(name):
    signature = inspect.signature(documented(name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())
