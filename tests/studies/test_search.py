"""What measuring finds, against start epochs chosen by hand."""

from potstill.methods import METHODS
from potstill.report import study_page
from potstill.runs.api import run_to_completion
from potstill.studies import search
from potstill.studies.cells import explore
from tests.studies.conftest import given


def test_the_found_ones_and_some_by_hand(tmp_path):
    base = given(expert={"epochs": 6}, datm={"iterations": 4})
    cells = search.cells(base, 2)
    assert [cell.labels["window"] for cell in cells] == ["auto", "0–1", "3–4"]
    measured = METHODS["datm"].open_fields(cells[0].settings.stages[0])
    assert "start_epochs" in measured
    assert "lr_images" not in measured  # it was given
    record = run_to_completion(explore("windows", cells, tmp_path))
    assert record["cells"][0]["settings"]["datm"]["start_epochs"] is not None
    assert "Found: epochs" in study_page.write(search.STUDY, record, tmp_path).read_text()
