"""Every study's record of every version is still told and drawn."""

from pathlib import Path

import pytest

from potstill import files
from potstill.studies import STUDIES

RECORDS = [
    path for path in sorted((Path(__file__).parents[2] / "records").glob("*.json"))
    if files.read_json(path).get("kind") in STUDIES
]  # fmt: skip


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_drawn(path):
    record = files.read_json(path)
    study = STUDIES[record["kind"]]
    header, rows = study.table(record)
    assert len(rows) == len(record["cells"])
    assert all(len(row["cells"]) == len(header) for row in rows)
    assert study.summary(record)
    assert study.title(record).endswith(record["dataset"])
    assert study.figure(record).axes
