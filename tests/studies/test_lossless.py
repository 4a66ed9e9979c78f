"""The search for the smallest set without loss."""

import pytest

from potstill import files
from potstill.errors import PotstillError
from potstill.report import study_page
from potstill.runs.api import run_to_completion
from potstill.studies import lossless
from tests.conftest import tiny

SIZES = {4: 0.026, 7: 0.012, 8: 0.008}  # images per class, and what the full set has over them


def searched(smallest, least, most):
    asked = []

    def loses(ipc):
        asked.append(ipc)
        yield {}
        return ipc < smallest

    return run_to_completion(lossless.bisect(loses, least, most)), asked


def test_doubles_then_bisects():
    assert searched(11, 1, 100) == (11, [1, 2, 4, 8, 16, 11, 9])
    assert searched(1, 1, 100) == (1, [1])
    assert searched(3, 1, 100) == (3, [1, 2, 4, 3])


def test_none_is_found_where_all_lose():
    assert searched(200, 1, 100)[0] is None


@pytest.mark.parametrize("smallest", range(1, 64))
def test_what_is_found_does_not_lose_and_is_close_to_the_smallest(smallest):
    found, asked = searched(smallest, 1, 64)
    assert smallest <= found <= max(smallest, smallest * lossless.CLOSE + 1)
    assert len(asked) == len(set(asked)) <= lossless.MOST_RUNS


def test_lossless_is_what_is_shown_to_lose_no_more_than_the_margin():
    assert lossless.is_lossless({"mean": 0.004, "ci95": [-0.002, 0.009]}, 0.01)
    assert not lossless.is_lossless({"mean": 0.004, "ci95": [-0.02, 0.03]}, 0.01), "too few networks to tell"
    assert not lossless.is_lossless({"mean": 0.004, "ci95": [-0.002, 0.009]}, 0.0)
    assert not lossless.is_lossless({"mean": -0.1, "ci95": None}, 0.01)


@pytest.mark.parametrize("name", ["seeds", "full_seeds"])
def test_one_network_shows_nothing(tmp_path, name):
    with pytest.raises(PotstillError, match=f"evaluation.{name} 1: .* give 2 or more"):
        run_to_completion(lossless.search(tiny(evaluation={name: 1}), tmp_path, 2, 0.01))


def test_a_search_over_sizes_begins_at_no_set_on_disk(tmp_path):
    with pytest.raises(PotstillError, match="--start runs/mine: .* not of 1 and of 2 images .* leave it out"):
        run_to_completion(lossless.search(tiny(start="runs/mine"), tmp_path, 2, 0.01))
    assert not list(tmp_path.iterdir()), "refused before any work"


def test_a_search_leaves_its_runs_a_record_and_a_page(tmp_path):
    given = tiny(datm={"iterations": 1, "inner_steps": 1}, evaluation={"epochs": 1})
    record = run_to_completion(lossless.search(given, tmp_path, 2, margin=0.01))
    assert files.plain(record) == files.read_json(tmp_path / "lossless.json")
    sizes = [cell["ipc"] for cell in record["cells"]]
    assert sizes[0] == 1
    for cell in record["cells"]:
        assert {"distilled", "random", "random_soft", "full"} <= cell["accuracy"].keys()
        assert (tmp_path / f"ipc{cell['ipc']}" / "distilled.safetensors").exists()
    text = study_page.write(lossless.STUDY, record, tmp_path).read_text()
    assert "How many images lose nothing: digits" in text


def test_the_summary_tells_the_size_its_loss_and_the_next_smaller_one():
    cells = [{"ipc": ipc, "lost": {"mean": lost, "ci95": [lost - 0.01, lost + 0.01]}} for ipc, lost in SIZES.items()]
    record = {"kind": "lossless", "ipc": 8, "full_per_class": 115.2, "margin": 0.02, "cells": cells}
    assert lossless.summary(record) == (
        "8 images per class of about 115 train as well as the full set, which is +0.8 (-0.2 to +1.8) points above "
        "them: within the margin of 2.0; 7 lose 1.2 (0.2 to 2.2) points"
    )
    assert lossless.summary({**record, "ipc": None}) == "None up to 8 images per class: every set loses"


def test_the_full_control_cannot_be_left_out():
    assert lossless.with_full_control(tiny(evaluation={"full_seeds": 0})).evaluation.full_seeds is None
