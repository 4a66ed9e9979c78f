"""Which start epochs to match: which runs they are, what they leave, and the page."""

import pytest

from potstill import files
from potstill.errors import Diverged, PotstillError
from potstill.report import study_page
from potstill.runs import loop
from potstill.runs.api import run_to_completion
from potstill.runs.settings import configure
from potstill.studies import start_epochs
from potstill.studies.cells import explore
from tests.browser import SLIDE, in_browser, needs_chromium
from tests.studies.conftest import given

DIGITS = configure("digits", 1)


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    out = tmp_path_factory.mktemp("stages")
    cells = start_epochs.cells(given(), (1, 2), (0, 2), 1)
    return out, cells, run_to_completion(explore("stages", cells, out))


def test_they_default_to_early_middle_and_late():
    cells = start_epochs.cells(DIGITS, (1, 10), None, 3)
    assert [(c.labels["ipc"], c.labels["start"], c.labels["stop"]) for c in cells] == [
        (1, 0, 3), (1, 8, 11), (1, 26, 29), (10, 0, 3), (10, 8, 11), (10, 26, 29)]  # fmt: skip
    assert [cell.settings.stages[0].start_epochs for cell in cells[:2]] == [(0, 3), (8, 11)]
    assert {cell.settings.stages[0].batch_size for cell in cells} == {10, 100}  # each size keeps its own defaults
    assert len({str(cell.settings.expert) for cell in cells}) == 1  # and all share their experts


def test_what_was_given_holds_for_every_size():
    changed = configure("digits", 1, changes={"datm": {"lr_images": 7.0}})
    cells = start_epochs.cells(changed, (1, 10), None, 3)
    assert {cell.settings.stages[0].lr_images for cell in cells} == {7.0}


@pytest.mark.parametrize(("starts", "width", "words"), [
    ((0, 40), 3, "begins between 0 and 26"), (None, 40, "no 40 start epochs")])  # fmt: skip
def test_ranges_outside_the_trajectories_are_refused(starts, width, words):
    with pytest.raises(PotstillError, match=words):
        start_epochs.cells(DIGITS, (1,), starts, width)


def test_a_method_without_trajectories_is_refused():
    with pytest.raises(PotstillError, match="method random: matches no trajectories"):
        start_epochs.cells(configure("digits", 1, changes={"method": "random"}), (1,), None, 3)


def test_they_leave_a_record(explored):
    out, cells, record = explored
    assert files.plain(record) == files.read_json(out / "stages.json")
    assert len(record["cells"]) == len(cells) == 4
    for cell in record["cells"]:
        gain = cell["accuracy"]["distilled"]["mean"] - cell["accuracy"]["random"]["mean"]
        assert cell["gain"]["mean"] == pytest.approx(gain)
        assert cell["iterations"]["iteration"] == 2


def test_finished_cells_are_not_run_again(explored):
    out, cells, record = explored
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/distilled.safetensors")}
    again = run_to_completion(explore("stages", cells, out))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [c["accuracy"] for c in again["cells"]] == [c["accuracy"] for c in record["cells"]]


def test_progress_rises_to_the_end(tmp_path):
    seen = []
    cells = start_epochs.cells(given(), (1,), (0, 1), 1)
    run_to_completion(explore("stages", cells, tmp_path), seen.append)
    done = [event["done"] for event in seen if event["stage"] == "stages"]
    assert done == sorted(done)
    assert done[-1] == seen[-1]["total"] == 200


def test_a_cell_that_diverges_is_a_finding(tmp_path, monkeypatch):
    def diverge(*_):
        raise Diverged("datm: diverged 20 times in a row.")
        yield

    monkeypatch.setattr(loop, "iterate", diverge)
    cells = start_epochs.cells(given(), (1,), (0,), 1)
    record = run_to_completion(explore("stages", cells, tmp_path))
    assert "diverged" in record["cells"][0]["diverged"]
    assert "diverged" in study_page.write(start_epochs.STUDY, record, tmp_path).read_text()


def test_a_size_the_data_cannot_fill_is_refused_before_any_work(tmp_path):
    cells = start_epochs.cells(given(), (1, 500), (0,), 1)
    with pytest.raises(PotstillError, match="ipc 500: class"):
        run_to_completion(explore("stages", cells, tmp_path))
    assert not list(tmp_path.glob("ipc1*"))


def test_the_page_says_what_was_found(explored):
    out, _, record = explored
    text = study_page.write(start_epochs.STUDY, record, out).read_text()
    assert "Which part of the path to match: digits" in text
    assert "Best matched, by validation images: epochs" in text
    assert text.count('type="range"') == 2  # a slider a size
    assert text.count('class="sequence"') == 4  # early and late
    assert (out / "stages.png").read_bytes().startswith(b"\x89PNG")


@needs_chromium
def test_the_slider_of_the_page_moves(explored, tmp_path):
    out, _, record = explored
    found = in_browser(study_page.write(start_epochs.STUDY, record, out).read_text(), SLIDE, tmp_path)
    assert found["says"] == ["iteration 2", "iteration 0"]
    assert found["pictures"][0] != found["pictures"][1]
