"""What a run would cost: the counts behind the seconds."""

from dataclasses import replace
from pathlib import Path

import pytest

from potstill.networks import flat
from potstill.runs import forecast, run
from tests.conftest import tiny


def test_sets_judged_are_those_of_distilling_by_every_step_size_tried():
    assert forecast.sets_judged(tiny()) == 2 + 1
    assert forecast.sets_judged(tiny(evaluation={"step_size": "chosen"})) == (2 + 1) * 4


@pytest.mark.usefixtures("as_compiled")
@pytest.mark.parametrize("steps", [4, 8])
def test_the_memory_that_steps_keep_is_counted_up_to_what_there_is_room_for(steps, monkeypatch):
    job = run.Run(tiny(compile="yes", distil={"inner_steps": steps}), Path("."), Path("."))
    theta = flat.initial(job.problem.network_config, job.problem.dataset.shape, 10, 0)
    each = 4 * 10 * (2 * 8 * 4 * 4 + 10 + 8 * 2 * 2)  # float32, ten images: y and x of the second block, and the last
    assert forecast._inner_step(job, theta, 10)[1] == steps * each
    monkeypatch.setattr(forecast, "KEEP_BYTES", 6 * each)
    assert forecast._inner_step(job, theta, 10)[1] == min(steps, 6) * each


def test_a_plain_run_keeps_nothing():
    job = run.Run(tiny(compile="no"), Path("."), Path("."))
    theta = flat.initial(job.problem.network_config, job.problem.dataset.shape, 10, 0)
    seconds, kept, how = forecast._inner_step(job, theta, 10)
    assert (kept, how) == (0, "inner steps plain, in float32")
    assert seconds > 0


def test_polishing_costs_its_students_walk_alone_and_their_real_images(monkeypatch):
    monkeypatch.setattr(forecast, "_training_step", lambda job, batch, *_: float(batch))  # a second an image
    monkeypatch.setattr(forecast, "_inner_step", lambda *_: (7.0, 0, ""))
    config = tiny(distil={"iterations": 30, "inner_steps": 10, "horizon": 50})
    without, with_it = (
        forecast.forecast(replace(config, distil=replace(config.distil, polish=polish))) for polish in (0, 20)
    )
    n, weights = 10, 4 * 8 * len(flat.initial(config.network, (1, 8, 8), 10, 0))
    first_ages, later_leads = 8 * (50 - 10) / 2, 20 * 10 / 2 / 5  # steps of all n images without an adjoint
    dearer = with_it["seconds"]["distilling"] - without["seconds"]["distilling"]
    assert dearer == pytest.approx(n * (first_ages + later_leads) + 20 * 500)
    assert with_it["disk_bytes"]["distilling"] - without["disk_bytes"]["distilling"] == weights
