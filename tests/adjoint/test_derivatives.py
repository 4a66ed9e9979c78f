"""The compiled derivatives against the plain ones, through an unroll."""

import warnings
from dataclasses import replace
from functools import partial

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from potstill.adjoint.derivatives import compiled, eager
from potstill.networks.losses import label_loss
from tests.adjoint.test_unroll import Setting, relative
from tests.conftest import needs_compiler


@needs_compiler
def test_compiled_equals_plain_and_logs_that_it_compiles(caplog):
    warnings.filterwarnings(
        "error", message="compiling failed"
    )  # a compile that fails and runs plainly would prove nothing
    setting = Setting(batch=2, steps=3)
    obvious, fast = eager(setting.loss), compiled(setting.loss)
    with caplog.at_level("INFO", "potstill"):
        found = setting.gradients(derivatives=fast)
    assert max(relative(found, setting.gradients(derivatives=obvious))) < 1e-10
    logged = [line.partition(" for ")[0] for line in caplog.messages if line.startswith("compiling")]
    assert logged == ["compiling the gradient", "compiling the derivative of the gradient"]  # once, not every step


@needs_compiler
def test_compiled_in_low_precision_stays_near_float32():
    reference, found = (Setting(dtype=torch.float32, batch=2, steps=3) for _ in range(2))
    found.network = replace(found.network, precision=torch.bfloat16)
    found.loss = label_loss(found.network)
    pairs = zip(found.gradients(derivatives=compiled(found.loss)), reference.gradients(), strict=True)
    for low, full in pairs:
        assert torch.nn.functional.cosine_similarity(low.flatten(), full.flatten(), 0) > 0.99


def test_one_derivative_serves_more_sizes_than_the_compiler_allows_by_itself(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the limit is the tracer's
    setting = Setting(dtype=torch.float32)
    fast, obvious = compiled(setting.loss), eager(setting.loss)
    for size in range(1, 12):
        images, logits = torch.randn(size, *setting.images.shape[1:]), torch.randn(size, setting.logits.shape[1])
        expected, _ = obvious.gradient(setting.theta, images, logits)
        assert torch.allclose(fast.gradient(setting.theta, images, logits)[0], expected, atol=1e-4)


def test_what_replayed_graphs_overwrite_has_been_copied(as_compiled, monkeypatch):
    """As CUDA graphs do: every call of a function gives its results in the memory of the first one's."""

    def replayed(function, **_):
        kept = []

        def call(*given):
            found, form = tree_flatten(function(*given))
            if not kept:
                kept.extend(tensor.clone() for tensor in found)
            for place, tensor in zip(kept, found, strict=True):
                place.copy_(tensor)
            return tree_unflatten(kept, form)

        return call

    monkeypatch.setattr(torch, "compile", replayed)
    setting = Setting(batch=2, steps=3)
    expected = setting.gradients(derivatives=eager(setting.loss))
    assert max(relative(setting.gradients(derivatives=compiled(setting.loss, graphs=True)), expected)) < 1e-10
    assert max(relative(setting.gradients(derivatives=compiled(setting.loss)), expected)) > 1e-3
