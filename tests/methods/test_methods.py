"""One contract for every method of the dict, and DATM's own start."""

import itertools
from dataclasses import replace

import pytest
import torch

from potstill import seeds
from potstill.adjoint.derivatives import plain
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.data import augment
from potstill.methods import METHODS, bptt, trajectory
from potstill.networks import flat
from potstill.runs import loop
from potstill.runs.api import exhaust
from potstill.training import experts, trajectories
from potstill.training.problem import prepare
from tests.conftest import tiny


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    config = tiny(ipc=2, distil={"iterations": 12, "inner_steps": 10, "step_size": 0.05, "lr_images": 50.0})
    problem = prepare(config)
    folder = tmp_path_factory.mktemp("experts")
    exhaust(experts.train(config, problem, folder))
    return config, problem, trajectories.open_store(folder)


def run(setting, method, state=None):
    config, problem, store = setting
    config = replace(config, method=method)
    derivatives = plain(flat.label_loss(problem.network))
    state = state or loop.begin(config, problem, store)
    return list(loop.iterate(config, problem, store, derivatives, state))


@pytest.mark.parametrize("method", METHODS)
def test_contract(setting, method):
    """Finite gradients, same seed same result, the loss falls, it resumes."""
    config, problem, store = setting
    states = run(setting, method)
    final = states[-1][0]
    assert all(bool(tensor.isfinite().all()) for tensor in (final.images, final.logits, final.step_size))
    again = run(setting, method)[-1][0]
    assert torch.equal(final.images, again.images)
    assert torch.equal(final.logits, again.logits)
    resumed = run(setting, method, states[4][0])[-1][0]
    assert torch.equal(final.images, resumed.images)
    assert torch.equal(final.step_size, resumed.step_size)
    derivatives = plain(flat.label_loss(problem.network))

    def loss(state):  # over the same segments, before and after
        arguments = (config, problem, store, derivatives, state.images, state.logits, state.step_size)
        return sum(float(METHODS[method].loss(*arguments, k)[0]) for k in range(12))

    assert loss(final) < 0.9 * loss(loop.begin(config, problem, store))


def test_an_iteration_can_be_replayed_alone(setting):
    config, problem, store = setting
    state = loop.begin(config, problem, store)
    derivatives = plain(flat.label_loss(problem.network))
    arguments = (config, problem, store, derivatives, state.images, state.logits, state.step_size)
    first = trajectory.matching_loss(*arguments, 7)
    trajectory.matching_loss(*arguments, 3)
    again = trajectory.matching_loss(*arguments, 7)
    assert float(first[0]) == float(again[0])
    assert first[1] == again[1]


def test_matching_loss_is_the_published_ratio(setting):
    config, problem, store = setting
    state = loop.begin(config, problem, store)
    derivatives = plain(flat.label_loss(problem.network))
    still = torch.zeros(())  # a student that does not move is as far as the expert went: the ratio is 1
    loss, _ = trajectory.matching_loss(config, problem, store, derivatives, state.images, state.logits, still, 0)
    assert float(loss) == pytest.approx(1.0)


def test_batches_go_through_the_whole_set_before_any_image_returns(setting):
    config, problem, _ = setting
    config = replace(config, distil=replace(config.distil, batch_size=7, inner_steps=9))
    steps = trajectory.draw_steps(config, problem, 20, seeds.generator(0, "x"))
    assert len(steps) == 9
    for first in (0, 3, 6):
        rows = torch.cat([step.rows for step in steps[first : first + 3]])
        assert sorted(rows.tolist()) == list(range(20))
    assert all(len(step.drawing.parameters) == len(step.rows) for step in steps)


def test_start_takes_solved_images_and_the_mean_of_those_who_solve_them(setting):
    config, problem, store = setting
    images, logits, labels = trajectory.start(config, problem, store)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    outputs = torch.stack([trajectory.expert_logits(problem, store, e, images) for e in range(2)])
    first_solves = trajectory.expert_logits(problem, store, 0, problem.train.images).argmax(1) == problem.train.labels
    for label in range(10):
        rows = labels == label
        solvable = int((first_solves & (problem.train.labels == label)).sum())
        assert int((outputs[0][rows].argmax(1) == label).sum()) == min(solvable, 2)
    for i, label in enumerate(labels.tolist()):
        right = [o[i] for o in outputs if int(o[i].argmax()) == label] or [o[i] for o in outputs]
        assert torch.allclose(logits[i], torch.stack(right).mean(0), atol=1e-6)


def test_start_when_no_expert_solves_anything(setting):
    """Trap 5 of the public code: labels of 0/0, and a loop that never ends."""
    config, problem, store = setting

    class Wrong:
        def last(self, number):
            theta, buffers = store.last(number)
            return torch.zeros_like(theta), buffers  # always class 0, by a tie

    images, logits, labels = trajectory.start(config, problem, Wrong())
    assert bool(logits.isfinite().all())
    assert len(images) == 20
    assert labels.bincount().tolist() == [2] * 10


def test_random_start_ignores_the_experts_judgement(setting):
    config, problem, store = setting
    config = replace(config, distil=replace(config.distil, start="random"))
    images, _, labels = trajectory.start(config, problem, store)
    order = torch.randperm(len(problem.train.labels), generator=seeds.generator(config.seed, "start"))
    for label in range(10):
        rows = [r for r in order.tolist() if int(problem.train.labels[r]) == label][:2]
        assert torch.equal(images[labels == label], problem.train.images[rows])


def test_a_mirrored_set_is_matched_to_the_experts_mirror_image(setting):
    """Steps on mirrored images from θ end where the mirror of θ ends on the images themselves, in the mirror."""
    _, problem, _ = setting
    network = flat.flat_network(problem.network_config, problem.dataset.shape, 10)
    network.module.double()
    draws = seeds.generator(0, "mirror")
    images = torch.randn(6, *problem.dataset.shape, generator=draws).double()
    logits = torch.randn(6, 10, generator=draws).double()
    theta = flat.initial(problem.network_config, problem.dataset.shape, 10, 1).double()
    steps = [InnerStep(torch.arange(6), augment.draw((), 6, problem.dataset.shape[1:], draws)) for _ in range(5)]

    def mirrored(theta):
        turned = {4: lambda kernel: kernel.flip(3), 2: lambda last: last.unflatten(1, (-1, 2, 2)).flip(3).flatten(1)}
        parts = network.unflatten(theta)
        return network.flatten({name: turned.get(part.ndim, torch.clone)(part) for name, part in parts.items()})

    def ended(theta, images):
        return unroll(theta, images, logits, torch.tensor(0.3).double(), steps, flat.label_loss(network))

    there, here = ended(theta, images.flip(3)), mirrored(ended(mirrored(theta), images))
    assert float((there - here).norm() / (there - theta).norm()) < 1e-12


def test_mirror_turns_the_set_in_some_iterations_and_changes_nothing_else(setting):
    config, problem, store = setting
    state = loop.begin(config, problem, store)
    derivatives = plain(flat.label_loss(problem.network))

    def losses(images, mirror):
        changed = replace(config, distil=replace(config.distil, mirror=mirror))
        arguments = (changed, problem, store, derivatives, images, state.logits, state.step_size)
        return [float(trajectory.matching_loss(*arguments, k)[0]) for k in range(8)]

    as_is, turned = losses(state.images, False), losses(state.images.flip(3), False)
    found = losses(state.images, True)
    choices = [(f == a, f == t) for f, a, t in zip(found, as_is, turned, strict=True)]
    assert set(choices) == {(True, False), (False, True)}


def polishing(setting, **distil):
    """The setting, of whose iterations all polish, and what a loss takes."""
    config, problem, store = setting
    config = replace(config, distil=replace(config.distil, polish=config.distil.iterations, horizon=40, **distil))
    state = loop.begin(config, problem, store)
    derivatives = plain(flat.label_loss(problem.network))
    return config, (problem, derivatives, state.images, state.logits, state.step_size)


def test_a_student_that_does_not_move_explains_as_much_as_guessing(setting):
    config, (problem, derivatives, images, logits, _) = polishing(setting)
    still, students = torch.zeros(()), bptt.enrol(config, problem)
    for k in range(4):
        loss, _, after = bptt.real_loss(config, problem, derivatives, images, logits, still, k, students)
        assert float(loss) == pytest.approx(1.0, abs=0.05)
        seed = seeds.derive(config.seed, "student network", k)
        assert torch.equal(after.thetas[k], flat.initial(problem.network_config, problem.dataset.shape, 10, seed))


@pytest.mark.parametrize("horizon", [10, 11, 15, 19, 40, 67])
@pytest.mark.parametrize("seed", range(3))
def test_students_go_on_grow_to_the_horizon_and_are_followed_by_fresh_ones(setting, horizon, seed, monkeypatch):
    config, given = polishing(setting)
    config = replace(config, seed=seed, distil=replace(config.distil, horizon=horizon))
    window = config.distil.inner_steps
    walked = []

    def counted(theta, images, logits, step_size, steps, *_, **__):
        walked.append(len(steps))
        return theta + 0 * images.sum()

    monkeypatch.setattr(bptt, "unroll", counted)
    students, ages, begun = bptt.enrol(config, given[0]), [], [0] * bptt.STUDENTS
    for k in range(8 * bptt.STUDENTS):
        number, before = k % bptt.STUDENTS, students
        walked.clear()
        _, drawn, students = bptt.real_loss(config, *given, k, before)
        ages.append(drawn["age"])
        assert drawn["age"] == before.ages[number] + sum(walked)
        assert all(a is b for i, (a, b) in enumerate(zip(students.thetas, before.thetas, strict=True)) if i != number)
        if before.ages[number] == 0:
            begun[number] += 1
            assert max(walked) <= window  # what is walked at once is what memory holds
        else:
            assert walked == [window]
    assert window <= min(ages)
    assert horizon - window < max(ages) <= horizon
    assert min(begun) > 1
    first = ages[: bptt.STUDENTS]
    assert max(first) - min(first) >= (horizon - window) // 2  # spread from the start


def test_a_student_is_the_network_that_plain_training_gives(setting):
    config, given = polishing(setting)
    problem, _, images, logits, step_size = given
    k = 2
    _, drawn, after = bptt.real_loss(config, *given, k, bptt.enrol(config, problem))
    window, lead = config.distil.inner_steps, drawn["age"] - config.distil.inner_steps
    assert lead > 0
    draws = seeds.generator(config.seed, "student", k)
    torch.randint(window, (), generator=draws)
    steps = [
        step
        for count in (*[window] * (lead // window), lead % window, window) if count
        for step in trajectory.draw_steps(config, problem, len(images), draws, count)
    ]  # fmt: skip
    seed = seeds.derive(config.seed, "student network", k)
    theta = flat.initial(problem.network_config, problem.dataset.shape, 10, seed)
    loss = flat.label_loss(problem.network)
    expected = unroll(theta, images, logits, step_size, steps, loss, adjoint="direct").detach()
    assert drawn["age"] == len(steps)
    assert torch.allclose(after.thetas[k], expected, atol=1e-5)


@pytest.mark.parametrize(("limits", "counted"), [({"threshold": 0.1}, "skipped"), ({}, "rolled_back")])
def test_a_student_that_led_astray_makes_room_for_a_fresh_one(setting, limits, counted, monkeypatch):
    """The one loss in which student 2 takes part is above the threshold, or no number."""
    config, (problem, derivatives, *_) = polishing(setting, **limits)
    real_loss = bptt.real_loss

    def wild(*given):
        loss, drawn, students = real_loss(*given)
        value = 0.01 if given[6] != 2 else 0.5 if limits else float("nan")
        return loss * value, drawn, students

    monkeypatch.setattr(bptt, "real_loss", wild)
    begin = loop.begin(config, problem, setting[2])
    going = loop.iterate(config, problem, setting[2], derivatives, begin)
    states = [state for state, _ in itertools.islice(going, 4)]
    assert [getattr(state, counted) for state in states] == [0, 0, 1, 1]
    assert [int(state.students.ages[2]) > 0 for state in states] == [False] * 4
    assert all(int(states[-1].students.ages[number]) > 0 for number in (0, 1, 3))
    stays = states[1] if limits else states[0]  # nothing is stepped on, or the step before is undone
    assert torch.equal(states[2].images, stays.images)


def doubled(problem):
    """The same in float64."""
    double = replace(
        problem,
        network=flat.flat_network(problem.network_config, problem.dataset.shape, 10, precision=torch.float64),
    )
    double.__dict__["train"] = replace(problem.train, images=problem.train.images.double())
    return double


def test_polishing_differentiates_through_the_steps_of_a_window(setting, monkeypatch):
    """Float64, against the graph of all steps of the window and of all real images."""
    config, (problem, _, *learned) = polishing(setting)
    problem, students = doubled(problem), bptt.enrol(config, problem)
    derivatives = plain(flat.label_loss(problem.network))

    def gradients(k, students):
        leaves = [tensor.detach().double().requires_grad_() for tensor in learned]
        loss, _, after = bptt.real_loss(config, problem, derivatives, *leaves, k, students)
        return torch.autograd.grad(loss, leaves), after

    _, students = gradients(3, students)  # student 3 has begun
    swept, _ = gradients(3, students)
    monkeypatch.setattr(bptt, "unroll", lambda *given, **_: unroll(*given, adjoint="direct"))
    monkeypatch.setattr(
        bptt, "mean_loss",
        lambda network, theta, x, t: flat.soft_cross_entropy(network(theta, x), t) / len(x),
    )  # fmt: skip
    for ours, oracle in zip(swept, gradients(3, students)[0], strict=True):
        assert torch.allclose(ours, oracle, rtol=1e-8, atol=1e-12)


def test_the_mean_loss_in_parts_is_that_of_all_images(setting):
    problem = doubled(setting[1])
    theta = flat.initial(problem.network_config, problem.dataset.shape, 10, 1).double().requires_grad_()
    images, targets = problem.train.images[:23], torch.eye(10).double()[problem.train.labels[:23]]
    whole = flat.soft_cross_entropy(problem.network(theta, images), targets) / 23
    parts = bptt.mean_loss(problem.network, theta, images, targets, part=5)
    assert float(parts.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    (ours,), (oracle,) = (torch.autograd.grad(3 * loss, theta) for loss in (parts, whole))
    assert torch.allclose(ours, oracle, rtol=1e-10, atol=1e-14)


def test_polishing_lowers_the_loss_of_real_images(setting):
    config, (problem, derivatives, *_) = polishing(setting, polish_rates=20.0, threshold=1.1)
    store = setting[2]
    begin = loop.begin(config, problem, store)
    states = list(loop.iterate(config, problem, store, derivatives, begin))
    assert all("age" in metrics for _, metrics in states)

    def loss(state):  # of the same fresh students, before and after
        arguments = (problem, derivatives, state.images, state.logits, state.step_size)
        students = bptt.enrol(config, problem)
        return sum(float(bptt.real_loss(config, *arguments, k, students)[0]) for k in range(12))

    assert loss(states[-1][0]) < 0.98 * loss(begin)


def test_polishing_follows_matching_and_forgets_its_momentum(setting):
    config, problem, store = setting
    config = replace(config, distil=replace(config.distil, iterations=5, polish=2, polish_rates=0.0))
    derivatives = plain(flat.label_loss(problem.network))
    states = list(loop.iterate(config, problem, store, derivatives, loop.begin(config, problem, store)))
    assert ["age" in metrics for _, metrics in states] == [False, False, False, True, True]
    assert torch.equal(states[2][0].images, states[4][0].images)  # rates of nothing
    assert not torch.equal(states[1][0].images, states[2][0].images)
    *_, matched, first, _ = (state for state, _ in states)
    _, gradients, *_ = loop.differentiate(config, problem, store, derivatives, matched)
    assert all(torch.equal(momentum, gradient) for momentum, gradient in zip(first.momenta, gradients, strict=True))


def test_polishing_resumes_with_its_students(setting, tmp_path):
    config, (problem, derivatives, *_) = polishing(setting)
    store = setting[2]
    begin = loop.begin(config, problem, store)
    states = [state for state, _ in loop.iterate(config, problem, store, derivatives, begin)]
    states[4].save(tmp_path / "checkpoint.safetensors", {})  # some of the students have not begun
    state, _ = loop.load_state(tmp_path / "checkpoint.safetensors", problem.device)
    resumed = [state for state, _ in loop.iterate(config, problem, store, derivatives, state)]
    assert torch.equal(states[-1].images, resumed[-1].images)
    for ours, theirs in zip(states[-1].students.thetas, resumed[-1].students.thetas, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(states[-1].students.ages, resumed[-1].students.ages)
    assert torch.equal(states[-1].students.leads, resumed[-1].students.leads)


def test_with_batch_norm_the_real_images_are_not_taken_apart(setting):
    _, problem, _ = setting
    config = replace(problem.network_config, norm="batch")
    network = flat.flat_network(config, problem.dataset.shape, 10)
    theta = flat.initial(config, problem.dataset.shape, 10, 1)
    images, targets = problem.train.images[:23], torch.eye(10)[problem.train.labels[:23]]
    whole = flat.soft_cross_entropy(network(theta, images), targets) / 23
    assert float(bptt.mean_loss(network, theta, images, targets, part=5)) == pytest.approx(float(whole), rel=1e-5)
