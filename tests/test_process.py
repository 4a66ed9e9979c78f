"""A call gives what it gives in a fresh process, whatever state the caller's is in, and leaves that as it was."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import potstill
from potstill.process import own_state

TINY = {
    "network": {"width": 4}, "expert": {"count": 1, "epochs": 3}, "evaluations": 1, "snapshots": 0,
    "evaluation": {"epochs": 2, "seeds": 1}, "transform": "zca",
    "datm": {"iterations": 3, "inner_steps": 3, "start_epochs": (0, 2), "expert_epochs": 1, "labels": "learned"},
    "rat_bptt": {"iterations": 2, "unroll": 4, "window": 2, "pool": 2, "real_batch": 20},
}  # fmt: skip


def all_of_it(folder, seed=0):
    """What the public functions give, from data to a network's answers."""
    method = ("datm", "rat-bptt")
    distilled = potstill.distill("digits", 1, out=folder, method=method, seed=seed, **TINY)
    loaded = potstill.load(folder)
    network = potstill.train(loaded, epochs=3)
    pixels = torch.arange(2 * 64, dtype=torch.uint8, device="cpu").reshape(2, 1, 8, 8)
    seen = loaded.transform(pixels)
    inside = [distilled.images, distilled.soft_labels, *loaded.tensors(), seen, loaded.transform.invert(seen)]
    return [x.detach().clone() for x in [*inside, *network.parameters()]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return all_of_it(tmp_path_factory.mktemp("plain") / "run")


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64, "the caller's is given back"
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("state", [
    torch.no_grad, torch.inference_mode, default_dtype, default_device,
    lambda: torch.autocast("cpu", dtype=torch.bfloat16), lambda: torch.random.fork_rng([]),
], ids=["no_grad", "inference_mode", "float64", "meta device", "autocast", "another seed"])  # fmt: skip
def test_the_callers_state_reaches_no_result(plain, state, tmp_path):
    with state():
        torch.rand(3, device="cpu")  # so that the global random state is another one, too
        found = all_of_it(tmp_path / "run")
    assert len(found) == len(plain)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, plain, strict=True))
    assert torch.is_grad_enabled()


def test_three_that_distil_at_once_get_what_each_gets_alone(plain, tmp_path):
    runs = {"first": 0, "second": 1, "third": 0}
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda name: all_of_it(tmp_path / name, runs[name]), runs))
    other = all_of_it(tmp_path / "alone", 1)
    assert not torch.equal(other[0], plain[0])
    for together, alone in zip(found, [plain, other, plain], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_the_default_type_is_given_back_when_the_last_call_ends():
    torch.set_default_dtype(torch.float64)
    try:
        first, second = own_state(), own_state()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() is torch.float32
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
