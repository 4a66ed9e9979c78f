"""Trajectory matching: its loss, its initial set, and what flipping means."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill import seeds
from potstill.adjoint.unroll import InnerStep, unroll
from potstill.data import augment
from potstill.data.distilled import decode
from potstill.errors import PotstillError
from potstill.methods import METHODS, initial, scores, soft_labels, trajectory
from potstill.methods.trajectory import SelMatch
from potstill.networks import flat
from potstill.networks.losses import label_loss
from potstill.runs import loop, run, settings, state
from potstill.runs.api import run_to_completion
from tests.conftest import tiny


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A context with trained experts, DATM's settings, and its first state."""
    asked = tiny(ipc=2, datm={"iterations": 12, "inner_steps": 10, "step_size": 0.05, "lr_images": 50.0})
    job = run.open_run(asked, tmp_path_factory.mktemp("run"))
    run_to_completion(run.train_experts(job))
    ctx, own = job.context(0), asked.stages[0]
    return ctx, own, state.begin(METHODS["datm"], own, trajectory.begin(ctx, own, None))


def losses(ctx, own, variables, labels, iterations=range(8)):
    return [float(trajectory.matching_loss(ctx, own, variables, {}, labels, k).loss) for k in iterations]


def test_an_iteration_can_be_replayed_alone(setting):
    ctx, own, first = setting
    one, _, again = (trajectory.matching_loss(ctx, own, first.variables, {}, first.labels, k) for k in (7, 3, 7))
    assert float(one.loss) == float(again.loss)
    assert one.metrics == again.metrics


def test_matching_loss_is_the_published_ratio(setting):
    ctx, own, first = setting
    still = {
        **first.variables,
        "step_size": torch.zeros(()),
    }  # a student that does not move is as far as the expert went
    assert losses(ctx, own, still, first.labels, [0]) == pytest.approx([1.0])


def test_a_loss_above_the_threshold_is_not_accepted(setting):
    ctx, own, first = setting
    found = trajectory.matching_loss(ctx, own, first.variables, {}, first.labels, 0)
    assert found.accept
    strict = replace(own, threshold=float(found.loss) / 2)
    assert not trajectory.matching_loss(ctx, strict, first.variables, {}, first.labels, 0).accept


def test_several_segments_are_followed_by_their_mean(setting):
    ctx, own, first = setting
    alone = [trajectory.draw_segment(ctx, own, 3, number) for number in range(3)]
    each = [trajectory.segment_loss(ctx, own, first.variables, {}, first.labels, segment) for segment in alone]
    assert len({float(loss) for loss in each}) == 3
    found = trajectory.matching_loss(ctx, replace(own, segments=3), first.variables, {}, first.labels, 3)
    assert float(found.loss) == pytest.approx(sum(map(float, each)) / 3, rel=1e-6)
    assert float(each[0]) == losses(ctx, own, first.variables, first.labels, [3])[0]
    assert found.metrics == {"expert": alone[0].expert, "start_epoch": alone[0].start}


def test_processes_without_a_segment_are_named_with_the_remedy(setting, caplog):
    ctx, own, _ = setting
    trajectory.begin(replace(ctx, world=4), own, None)
    assert "datm: of 4 processes only 1 will distil" in caplog.text
    assert "--datm.segments 4" in caplog.text


def test_batches_go_through_the_whole_set_before_any_image_returns(setting):
    ctx, _, _ = setting
    steps = trajectory.draw_steps(ctx, 7, 9, 20, seeds.generator(0, "x"))
    assert len(steps) == 9
    for first in (0, 3, 6):
        rows = torch.cat([step.rows for step in steps[first : first + 3]])
        assert sorted(rows.tolist()) == list(range(20))
    assert all(len(step.drawing.parameters) == len(step.rows) for step in steps)


def test_the_initial_set_is_solved_images_with_the_mean_logits_of_those_who_solve_them(setting):
    ctx, _, first = setting
    problem, images, labels = ctx.problem, first.variables["images"], first.labels
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    outputs = torch.stack([soft_labels.expert_logits(problem, ctx.experts, e, images) for e in range(2)])
    everything = soft_labels.expert_logits(problem, ctx.experts, 0, problem.train.images)
    solves = everything.argmax(1) == problem.train.labels
    for label in range(10):
        rows = labels == label
        solvable = int((solves & (problem.train.labels == label)).sum())
        assert int((outputs[0][rows].argmax(1) == label).sum()) == min(solvable, 2)
    for i, label in enumerate(labels.tolist()):
        right = [o[i] for o in outputs if int(o[i].argmax()) == label] or [o[i] for o in outputs]
        assert torch.allclose(first.variables["logits"][i], torch.stack(right).mean(0), atol=1e-6)


def test_the_initial_set_when_no_expert_solves_anything(setting):
    """Trap 5 of the public code: labels of 0/0, and a loop that never ends."""
    ctx, own, _ = setting

    class Wrong:
        def last(self, number):
            theta, buffers = ctx.experts.last(number)
            return torch.zeros_like(theta), buffers  # always class 0, by a tie

    begun = trajectory.begin(replace(ctx, experts=Wrong()), own, None)
    assert bool(begun.variables["logits"].isfinite().all())
    assert begun.labels.bincount().tolist() == [2] * 10


def test_a_random_initial_set_does_not_ask_the_experts(setting):
    ctx, own, _ = setting
    begun = trajectory.begin(ctx, replace(own, initial="random"), None)
    train, labels = ctx.problem.train, begun.labels
    order = torch.randperm(len(train.labels), generator=seeds.generator(ctx.seed, "start"))
    for label in range(10):
        rows = [r for r in order.tolist() if int(train.labels[r]) == label][:2]
        assert torch.equal(begun.variables["images"][labels == label], train.images[rows])
    assert torch.equal(train.images[initial.random_rows(ctx)], begun.variables["images"])


def test_hard_labels_are_no_variable(setting):
    ctx, own, _ = setting
    hard = replace(own, labels="hard")
    begun = trajectory.begin(ctx, hard, None)
    assert set(begun.variables) == {"images", "step_size"} == set(trajectory.learns(hard))
    assert trajectory.kind(hard) == "hard"
    assert set(trajectory.learns(replace(own, labels="soft"))) == {"images", "step_size"}
    assert trajectory.kind(replace(own, labels="soft")) == "logits"


def test_several_pictures_a_slot_begin_as_solved_images_with_the_mean_of_their_labels(setting):
    ctx, own, _ = setting
    begun, rows = trajectory.begin(ctx, replace(own, pictures=2), None), initial.correct_rows(ctx, 2)
    assert torch.equal(rows[:2], initial.correct_rows(ctx)[:2]), "the first ones are those of one picture a slot"
    small = F.interpolate(ctx.problem.train.images[rows[:4]], size=(4, 4), mode="area")
    slot = begun.variables["images"][0]
    places = [slot[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
    assert all(torch.equal(place, one) for place, one in zip(places, small, strict=True))
    assert begun.labels.tolist() == sorted(2 * [*range(10)])
    images, truth = decode(begun.variables["images"][3:4], 2), begun.labels[3:4].repeat(4)
    spoken = soft_labels.mean_logits(ctx.problem, ctx.experts, 2, images, truth)
    assert torch.allclose(begun.variables["logits"][3], spoken.mean(0), atol=1e-5)


def test_a_selection_that_stays_real_has_one_picture_a_slot():
    with pytest.raises(PotstillError, match="keeps real images whole; take --selmatch.pictures 1"):
        METHODS["selmatch"].check(SelMatch(pictures=2), "selmatch", ())


def test_a_flipped_set_is_matched_to_the_experts_mirror_image(setting):
    """Steps on mirrored images from θ end where the mirror of θ ends on the images themselves, in the mirror."""
    problem = setting[0].problem
    network = flat.flat_network(problem.network_config, problem.dataset.shape, 10, precision=torch.float64)
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
        return unroll(theta, images, logits, torch.tensor(0.3).double(), steps, label_loss(network))

    there, here = ended(theta, images.flip(3)), mirrored(ended(mirrored(theta), images))
    assert float((there - here).norm() / (there - theta).norm()) < 1e-12


def test_flip_turns_the_set_in_some_iterations_and_changes_nothing_else(setting):
    ctx, own, first = setting
    turned = {**first.variables, "images": first.variables["images"].flip(3)}
    as_is, flipped = (losses(ctx, own, variables, first.labels) for variables in (first.variables, turned))
    found = losses(ctx, replace(own, flip=True), first.variables, first.labels)
    choices = [(f == a, f == t) for f, a, t in zip(found, as_is, flipped, strict=True)]
    assert set(choices) == {(True, False), (False, True)}


def test_flipped_experts_are_refused_where_nothing_is_flipped():
    with pytest.raises(PotstillError, match="flip: the experts see no mirrored images"):
        settings.check(tiny(datm={"flip": True}))  # digits are not flipped
    settings.check(tiny(datm={"flip": True}, augment=("flip",)))


def test_mtt_tesla_and_ftd_are_settings():
    mtt, tesla, ftd = (METHODS[name].settings() for name in ("mtt", "tesla", "ftd"))
    assert [method.labels for method in (mtt, tesla, ftd)] == ["hard"] * 3
    assert (mtt.adjoint, tesla.adjoint) == ("exact", "frozen")
    assert trajectory.learns(mtt)["images"].average is None
    assert trajectory.learns(ftd)["images"].average == 0.9995
    assert trajectory.learns(replace(ftd, iterations=100))["images"].average == 0.975, "or it would be the beginning"
    assert [trajectory.needs(method).rho for method in (mtt, ftd)] == [0.0, 0.01]


def test_start_epochs_out_of_order_are_refused():
    for start, opening in (((3, 3), None), ((2, 5), (1, 9)), ((0, 5), (6, 9))):
        with pytest.raises(PotstillError, match="0 <= first < opening <= stop.*--datm.start-epochs"):
            settings.check(tiny(datm={"start_epochs": start, "opening": opening}))
    with pytest.raises(PotstillError, match="expert_epochs 0"):
        settings.check(tiny(datm={"expert_epochs": 0}))
    with pytest.raises(PotstillError, match="needs the start epochs it grows to"):
        settings.check(tiny(datm={"start_epochs": None, "opening": (1, 9)}))


def test_selmatch_learns_the_easier_part_and_leaves_the_rest_real(tmp_path):
    asked = {
        "iterations": 2, "inner_steps": 2, "start_epochs": (0, 2), "expert_epochs": 1, "lr_images": 1e3,
        "distilled": 0.5, "skip": 1.0, "lr_step_size": 0.0, "step_size": 0.05,
    }  # fmt: skip
    job = run.open_run(tiny("selmatch", ipc=4, selmatch=asked), tmp_path)
    run_to_completion(run.train_experts(job))
    ctx, own = job.context(0), job.settings.stages[0]
    begun = METHODS["selmatch"].begin(ctx, own, None)
    hardness, split = scores.hardness(ctx, "el2n", None), ctx.problem.train
    order = [row for row in hardness.argsort(descending=True, stable=True).tolist() if split.labels[row] == 3][4:8]
    assert torch.equal(begun.variables["images"][12:16], split.images[order])
    assert begun.memory["frozen"][12:16].tolist() == [True, True, False, False]
    first = state.begin(METHODS["selmatch"], own, begun)
    last = [s for s, _ in loop.iterate(METHODS["selmatch"], ctx, own, first)][-1]
    moved = (last.variables["images"] != begun.variables["images"]).flatten(1).any(1)
    assert torch.equal(moved, ~begun.memory["frozen"])


def test_selmatch_leaves_out_the_harder_half_of_a_class_where_nothing_says_how_many(tmp_path):
    """The hardest of thousands, which a skip of 0.3 an image leaves at one image per class, train below chance."""
    asked = {"iterations": 1, "inner_steps": 1, "start_epochs": (0, 2), "expert_epochs": 1}
    job = run.open_run(tiny("selmatch", selmatch=asked), tmp_path)
    run_to_completion(run.train_experts(job))
    ctx, split = job.context(0), job.problem.train
    begun = METHODS["selmatch"].begin(ctx, job.settings.stages[0], None)
    order = scores.hardness(ctx, "el2n", None).argsort(descending=True, stable=True).tolist()
    own = [row for row in order if split.labels[row] == 3]
    assert torch.equal(begun.variables["images"][3], split.images[own[len(own) // 2]])
