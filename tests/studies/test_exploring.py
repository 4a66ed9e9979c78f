"""Stages and ablations: which runs they are, what they leave, and that finished work is kept."""

from dataclasses import replace

import pytest

from potstill import config, files
from potstill.errors import Diverged, PotstillError
from potstill.report import study_page
from potstill.runs import api
from potstill.studies import exploring, lossless
from tests.browser import SLIDE, in_browser, needs_chromium
from tests.conftest import tiny


def given(**changes):
    return tiny(**{"distil": {"iterations": 2, "inner_steps": 2, "snapshots": 1, "lr_images": 3000.0}, **changes})


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    out = tmp_path_factory.mktemp("stages")
    cells = exploring.stage_cells(given(), (1, 2), (0, 2), 1)
    return out, cells, api.exhaust(exploring.explore("stages", cells, out))


def test_stages_default_to_early_middle_and_late():
    cells = exploring.stage_cells(config.default("digits", 1), (1, 10), None, 3)
    assert [(c.labels["ipc"], c.labels["start"], c.labels["stop"]) for c in cells] == [
        (1, 0, 3), (1, 8, 11), (1, 26, 29), (10, 0, 3), (10, 8, 11), (10, 26, 29)]  # fmt: skip
    assert {cell.config.distil.batch_size for cell in cells} == {10, 100}  # each size keeps its own defaults
    assert len({str(cell.config.expert) for cell in cells}) == 1  # and all share their experts


def test_what_was_given_holds_for_every_size():
    base = config.default("digits", 1)
    changed = replace(base, distil=replace(base.distil, lr_images=7.0))
    assert {cell.config.distil.lr_images for cell in exploring.stage_cells(changed, (1, 10), None, 3)} == {7.0}


@pytest.mark.parametrize(("starts", "width", "words"), [
    ((0, 40), 3, "begins between 0 and 26"), (None, 40, "no 40 start epochs")])  # fmt: skip
def test_parts_outside_the_trajectories_are_refused(starts, width, words):
    with pytest.raises(PotstillError, match=words):
        exploring.stage_cells(config.default("digits", 1), (1,), starts, width)


def test_stages_leave_a_record(explored):
    out, cells, record = explored
    assert record == files.read_json(out / "stages.json")
    assert len(record["cells"]) == len(cells) == 4
    for cell in record["cells"]:
        gain = cell["accuracy"]["distilled"]["mean"] - cell["accuracy"]["random"]["mean"]
        assert cell["gain"]["mean"] == pytest.approx(gain)
        assert cell["iterations"]["iteration"] == 2


def test_finished_cells_are_not_run_again(explored):
    out, cells, record = explored
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/distilled.safetensors")}
    again = api.exhaust(exploring.explore("stages", cells, out))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [c["accuracy"] for c in again["cells"]] == [c["accuracy"] for c in record["cells"]]


def test_progress_rises_to_the_end(tmp_path):
    seen = []
    cells = exploring.stage_cells(given(), (1,), (0, 1), 1)
    api.exhaust(exploring.explore("stages", cells, tmp_path), seen.append)
    done = [event["done"] for event in seen if event["stage"] == "stages"]
    assert done == sorted(done)
    assert done[-1] == seen[-1]["total"] == 200


def test_a_cell_that_diverges_is_a_finding(tmp_path, monkeypatch):
    def diverge(*_):
        raise Diverged("distilling diverged 20 times in a row")
        yield

    monkeypatch.setattr(exploring.stages_of.loop, "iterate", diverge)
    cells = exploring.stage_cells(given(), (1,), (0,), 1)
    record = api.exhaust(exploring.explore("stages", cells, tmp_path))
    assert "diverged" in record["cells"][0]["diverged"]
    assert "diverged" in study_page.write(record, tmp_path).read_text()


def test_ablations_change_one_thing_each():
    base = given()
    cells = exploring.ablation_cells(base)
    parts = [cell.labels["part"] for cell in cells]
    assert parts == ["labels", "labels", "window", "start", "experts", "gradient"]
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    for cell in cells:
        first, this = config.as_dict(base), config.as_dict(cell.config)
        assert sum(first[name] != this[name] for name in first) == 1
    assert cells[2].config.window.initial == 1


def test_what_changes_nothing_is_no_ablation():
    base = given(expert={"count": 1}, distil={"labels": "hard", "adjoint": "frozen", "start": "random"})
    assert [cell.labels["part"] for cell in exploring.ablation_cells(base)] == ["labels", "window"]


def test_ablations_of_one_part_change_that_alone():
    assert [cell.labels["part"] for cell in exploring.ablation_cells(given(), ["gradient"])] == ["gradient"]


def test_ablations_of_a_growing_window_open_it():
    cells = exploring.ablation_cells(given(window={"initial": 1}))
    assert cells[2].labels["variant"] == "open from the start"
    assert cells[2].config.window.initial is None


def test_ablations_run_and_make_a_page(tmp_path):
    record = api.exhaust(exploring.explore("ablations", exploring.ablation_base(given()), tmp_path))
    assert len(record["cells"]) == 7
    assert record["cells"][0]["over_base"]["mean"] == 0
    text = study_page.write(record, tmp_path).read_text()
    assert "labels: hard" in text
    assert "over the run as given" in text


def test_ablations_of_a_window_that_is_found_all_take_what_was_found(tmp_path):
    base = given(window={"mode": "auto"}, expert={"epochs": 6, "count": 1}, distil={"iterations": 4, "inner_steps": 2})
    record = api.exhaust(exploring.explore("ablations", exploring.ablation_base(base), tmp_path))
    first, *others = record["cells"]
    assert first["settings"]["window"]["mode"] == "given"
    assert {cell["settings"]["distil"]["lr_images"] for cell in others} == {first["settings"]["distil"]["lr_images"]}
    windows = [cell["settings"]["window"] for cell in others if cell["part"] != "window"]
    assert all(window == first["settings"]["window"] for window in windows)


def test_sets_chosen_on_test_images_are_not_compared_on_them(tmp_path):
    paper = replace(given(), evaluation=replace(given().evaluation, protocol="paper"))
    for events in (
        exploring.explore("stages", exploring.stage_cells(paper, (1,), (0,), 1), tmp_path),
        lossless.search(paper, tmp_path, 2, 0.0),
    ):
        with pytest.raises(PotstillError, match="take --evaluation.protocol standard"):
            api.exhaust(events)
    assert not list(tmp_path.iterdir())


def test_a_size_the_data_cannot_fill_is_refused_before_any_work(tmp_path):
    cells = exploring.stage_cells(given(), (1, 500), (0,), 1)
    with pytest.raises(PotstillError, match="ipc 500: class"):
        api.exhaust(exploring.explore("stages", cells, tmp_path))
    assert not list(tmp_path.glob("ipc1*"))


def test_windows_are_the_found_one_and_some_by_hand(tmp_path):
    base = given(expert={"epochs": 6}, distil={"iterations": 4, "inner_steps": 2, "snapshots": 1})
    cells = exploring.window_cells(base, 2)
    assert [cell.labels["window"] for cell in cells] == ["auto", "0–1", "3–4"]
    assert cells[0].config.window.mode == "auto"
    record = api.exhaust(exploring.explore("windows", cells, tmp_path))
    assert record["cells"][0]["settings"]["window"]["mode"] == "given"
    assert "Found: epochs" in study_page.write(record, tmp_path).read_text()


def test_the_page_of_stages_says_what_was_found(explored):
    out, _, record = explored
    text = study_page.write(record, out).read_text()
    assert "Which part of the path to match: digits" in text
    assert "Best matched: epochs" in text
    assert text.count('type="range"') == 2  # a slider a size
    assert text.count('class="film"') == 4  # early and late
    assert (out / "stages.png").read_bytes().startswith(b"\x89PNG")


@needs_chromium
def test_the_slider_of_the_page_moves(explored, tmp_path):
    out, _, record = explored
    found = in_browser(study_page.write(record, out).read_text(), SLIDE, tmp_path)
    assert found["says"] == ["iteration 2", "iteration 0"]
    assert found["pictures"][0] != found["pictures"][1]
