"""One thing changed at a time."""

from dataclasses import replace

import pytest

from potstill.errors import PotstillError
from potstill.report import study_page
from potstill.runs.api import run_to_completion
from potstill.runs.settings import as_dict
from potstill.studies import ablations, lossless
from potstill.studies.cells import explore
from tests.studies.conftest import given


def explored(base, out, parts=("labels", "start-epochs", "initial", "experts", "gradient")):
    cells = [ablations.base(base)]
    return run_to_completion(explore("ablations", cells, out, lambda settled: ablations.cells(settled, parts)))


def test_each_changes_one_thing():
    base = given()
    cells = ablations.cells(base)
    assert [c.labels["part"] for c in cells] == ["labels", "labels", "start-epochs", "initial", "experts", "gradient"]
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        first, this = as_dict(base), as_dict(cell.settings)
        assert sum(first[name] != this[name] for name in first) == 1
    assert cells[2].settings.stages[0].opening == (1, 1)


def test_what_changes_nothing_is_left_out():
    base = given(expert={"count": 1}, datm={"labels": "hard", "adjoint": "frozen", "initial": "random"})
    found = [cell.labels for cell in ablations.cells(base)]
    assert [label["part"] for label in found] == ["labels", "labels", "start-epochs"]
    assert found[1]["variant"] == "learned"


def test_one_part_alone():
    assert [cell.labels["part"] for cell in ablations.cells(given(), ["gradient"])] == ["gradient"]


def test_start_epochs_that_grow_are_opened():
    cells = ablations.cells(given(datm={"opening": (1, 1)}))
    assert cells[2].labels["variant"] == "open from the start"
    assert cells[2].settings.stages[0].opening is None


def test_they_run_and_make_a_page(tmp_path):
    record = explored(given(), tmp_path)
    assert len(record["cells"]) == 7
    assert record["cells"][0]["over_base"]["mean"] == 0
    text = study_page.write(ablations.STUDY, record, tmp_path).read_text()
    assert "labels: hard" in text
    assert "over the run as given" in text


def test_all_take_what_the_first_has_measured(tmp_path):
    base = given(expert={"epochs": 6, "count": 1}, datm={"iterations": 4, "start_epochs": None, "lr_images": None})
    record = explored(base, tmp_path, ["labels", "initial"])
    first, *others = (cell["settings"]["datm"] for cell in record["cells"])
    assert first["start_epochs"] is not None
    assert {found["lr_images"] for found in others} == {first["lr_images"]}
    assert all(found["start_epochs"] == first["start_epochs"] for found in others)


def test_sets_chosen_on_test_images_are_not_compared_on_them(tmp_path):
    paper = replace(given(), evaluation=replace(given().evaluation, protocol="paper"))
    for events in (
        explore("ablations", [ablations.base(paper)], tmp_path),
        lossless.search(paper, tmp_path, 2, 0.0),
    ):
        with pytest.raises(PotstillError, match="take --evaluation.protocol standard"):
            run_to_completion(events)
    assert not list(tmp_path.iterdir())
