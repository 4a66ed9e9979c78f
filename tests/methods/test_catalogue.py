"""The methods as a table."""

import importlib

import potstill
from potstill.methods import METHODS


def test_a_row_a_method():
    table = potstill.methods()
    assert [row["name"] for row in table] == list(METHODS)
    rows = {row["name"]: row for row in table}
    assert rows["herding"]["needs"] == "experts, features"
    assert rows["dsa"]["needs"] == "–"
    assert rows["datm"]["citation"] == METHODS["datm"].citation
    lines = repr(table).splitlines()
    assert len(lines) == len(METHODS) + 1
    assert lines[0].split() == ["name", "family", "needs", "labels", "title"]
    assert lines[1].split()[:4] == ["datm", "trajectory", "experts", "logits"]
    assert table._repr_html_().count("<tr>") == len(METHODS) + 1


def test_the_package_is_still_a_package():
    assert importlib.import_module("potstill.methods") is potstill.methods
    assert potstill.methods.METHODS is potstill.METHODS
