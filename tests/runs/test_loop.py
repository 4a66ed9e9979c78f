"""The outer loop: its steps, what it skips, its way back from divergence, its checkpoints."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch

from potstill.errors import Diverged, PotstillError
from potstill.methods.method import Begun, Method, Outcome
from potstill.methods.outer import Rule
from potstill.runs import loop, state


@dataclass(frozen=True)
class Settings:
    """Of the test's method."""

    iterations: int = 30


def start(n=4):
    draws = torch.Generator().manual_seed(0)
    images, logits = torch.randn(n, 1, 2, 2, generator=draws), torch.randn(n, 3, generator=draws)
    return Begun({"images": images, "logits": logits, "step_size": torch.tensor(0.01)}, torch.arange(n))


RULES = {
    "images": Rule(10.0, momentum=0.5), "logits": Rule(3.0, momentum=0.9), "step_size": Rule(1e-3, positive=True),
}  # fmt: skip


def method(loss, rules=RULES):
    """A method with a loss of the test's own: (images, logits, step_size, iteration) → a loss or an outcome."""

    def of(ctx, settings, variables, memory, labels, iteration):
        found = loss(variables["images"], variables["logits"], variables["step_size"], iteration)
        unused = 0 * sum(x.sum() for x in variables.values())  # a rule's variable must be in the graph
        if isinstance(found, Outcome):
            return replace(found, loss=found.loss + unused)
        return Outcome(found + unused, memory)

    return Method("test", "Test", "gradient", "", Settings, begin=None, loss=of, learns=lambda settings: rules)


def iterate(loss, begin=None, rules=RULES, iterations=30):
    made, settings = method(loss, rules), Settings(iterations)
    begin = begin or state.begin(made, settings, start())
    return list(loop.iterate(made, None, settings, begin))


def quadratic(images, logits, step_size, iteration):
    return 1e-3 * (images.square().sum() + logits.square().sum()) + (step_size - 0.02) ** 2


def images(of):
    return of.variables["images"]


def test_one_step_is_sgd_with_the_published_momenta():
    states = [s for s, _ in iterate(quadratic, iterations=2)]
    x, z = (start().variables[name].clone().requires_grad_() for name in ("images", "logits"))
    optimiser = torch.optim.SGD(
        [{"params": [x], "lr": 10.0, "momentum": 0.5}, {"params": [z], "lr": 3.0, "momentum": 0.9}]
    )
    for _ in range(2):
        optimiser.zero_grad()
        quadratic(x, z, torch.tensor(0.01), 0).backward()
        optimiser.step()
    assert torch.allclose(images(states[-1]), x.detach(), atol=1e-6)
    assert torch.allclose(states[-1].variables["logits"], z.detach(), atol=1e-6)


def test_a_variable_without_a_rule_stays_and_one_that_the_loss_ignores_is_a_mistake():
    rules = {"images": RULES["images"]}
    last = iterate(quadratic, rules=rules, iterations=3)[-1][0]
    assert torch.equal(last.variables["logits"], start().variables["logits"])
    assert set(last.moments) == {"images"}
    ignoring = replace(method(quadratic), loss=lambda *given: Outcome(given[2]["images"].sum()))
    with pytest.raises(
        PotstillError, match="method test: its loss does not depend on all of images, logits, step_size"
    ):
        list(loop.iterate(ignoring, None, Settings(), state.begin(ignoring, Settings(), start())))


def test_what_is_not_accepted_is_not_stepped_on():
    def loss(x, z, a, k):
        return Outcome(1e-6 * x.sum(), accept=k % 2 == 0)

    states = iterate(loss, iterations=4)
    moved = [not torch.equal(images(a), images(b)) for (a, _), (b, _) in itertools.pairwise(states)]
    assert moved == [False, True, False]
    assert states[-1][0].skipped == states[-1][1]["skipped"] == 2
    assert [metrics["accepted"] for _, metrics in states] == [True, False, True, False]


def test_memory_goes_on_and_falls_back_where_no_step_is_taken():
    def loss(x, z, a, k):
        memory = {"count": torch.tensor(k)}
        return Outcome(1e-6 * x.sum(), memory, accept=k != 2, refused_memory={"count": torch.tensor(-1)})

    assert [int(s.memory["count"]) for s, _ in iterate(loss, iterations=4)] == [0, 1, -1, 3]


def test_a_diverging_step_is_undone_and_counted():
    def loss(x, z, a, k):
        return quadratic(x, z, a, k) * (float("nan") if k == 3 else 1.0)

    states = [s for s, _ in iterate(loss, iterations=6)]
    assert torch.equal(images(states[3]), images(states[1]))  # where the third step began
    assert states[-1].rolled_back == 1
    assert float(states[3].moments["images"]["velocity"].abs().sum()) == 0
    assert bool(images(states[-1]).isfinite().all())
    assert not torch.equal(images(states[-1]), images(states[3]))


def test_an_infinite_gradient_of_a_finite_loss_is_undone():
    states = [s for s, _ in iterate(lambda x, z, a, k: (x * 0).abs().sqrt().sum() * 0.5 + 0.1, iterations=3)]
    assert states[-1].rolled_back == 3
    assert torch.equal(images(states[-1]), start().variables["images"])


@pytest.mark.parametrize(("loss", "words"), [
    (lambda x, z, a, k: x.sum() * float("nan"), "diverged 20 times in a row at iteration 20.* lower its outer rates"),
    (lambda x, z, a, k: x.sum() * (float("nan") if k % 2 else 1e-9), "diverged in 20 iterations"),  # steps in turn
    (lambda x, z, a, k: Outcome(x.sum(), accept=False), "took no step in 20 of 20 iterations"),
    (lambda x, z, a, k: Outcome(1e-9 * x.sum(), accept=k % 2 == 0), "took no step in 20 of 40 iterations"),
])  # fmt: skip
def test_iterations_in_vain_end_with_a_remedy(loss, words):
    with pytest.raises(Diverged, match=words):
        iterate(loss, iterations=100)


def test_start_epochs_that_cannot_be_followed_are_named():
    @dataclass(frozen=True)
    class Following(Settings):
        start_epochs: tuple[int, int] = (3, 8)
        threshold: float = 1.0

    made = method(lambda x, z, a, k: Outcome(x.sum(), accept=False))
    words = r"above --test.threshold 1.0: .* Take earlier --test.start-epochs than 3 8, .* per class in another --out"
    with pytest.raises(Diverged, match=words):
        list(loop.iterate(made, None, Following(), state.begin(made, Following(), start())))


def test_a_checkpoint_continues_bit_for_bit(tmp_path):
    states = [s for s, _ in iterate(quadratic)]
    states[11].save(tmp_path / "c.safetensors", {"more": [1]})
    again, header = state.load_state(tmp_path / "c.safetensors", torch.device("cpu"))
    assert header["more"] == [1]
    assert again.iteration == 12
    resumed = [s for s, _ in iterate(quadratic, again)]
    for name in RULES:
        assert torch.equal(resumed[-1].variables[name], states[-1].variables[name])
    assert len(resumed) == 18


def test_an_undone_step_after_resuming_is_that_without(tmp_path):
    def loss(x, z, a, k):
        return quadratic(x, z, a, k) * (float("nan") if k == 5 else 1.0)

    states = [s for s, _ in iterate(loss)]
    states[4].save(tmp_path / "c.safetensors", {})
    again, _ = state.load_state(tmp_path / "c.safetensors", torch.device("cpu"))
    assert torch.equal(images([s for s, _ in iterate(loss, again)][-1]), images(states[-1]))


def test_the_first_state_and_one_after_an_undone_step_can_be_saved(tmp_path):
    """Both share their tensors with the state before, which safetensors refuses to write."""
    made, settings = method(quadratic), Settings()
    first = state.begin(made, settings, start())
    for saved in (first, loop._undo(made, settings, first, Outcome(torch.zeros(())))):
        saved.save(tmp_path / "checkpoint.safetensors", {})
        read, _ = state.load_state(tmp_path / "checkpoint.safetensors", torch.device("cpu"))
        assert images(read).equal(images(first))


def test_memory_rows_and_averages_survive_a_checkpoint(tmp_path):
    rules = {"images": Rule(1.0, average=0.9, clip=2.0)}
    made, settings = method(quadratic, rules), Settings()
    begun = replace(start(), memory={"student.0": torch.ones(3), "steps": torch.tensor([4])}, rows=torch.arange(4))
    first = state.begin(made, settings, begun)
    last = [s for s, _ in itertools.islice(loop.iterate(made, None, settings, first), 3)][-1]
    last.save(tmp_path / "c.safetensors", {})
    read, _ = state.load_state(tmp_path / "c.safetensors", torch.device("cpu"))
    assert read.memory.keys() == last.memory.keys()
    assert torch.equal(read.rows, torch.arange(4))
    assert torch.equal(read.result(rules)["images"], last.result(rules)["images"])
    assert not torch.equal(read.result(rules)["images"], images(read))
