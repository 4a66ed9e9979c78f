"""A comparison as tables and sentences."""

import csv
import json

import pytest

from potstill.report import comparison_tables
from potstill.report.comparison_tables import as_csv, as_latex, sentences, table, tables, titles
from potstill.runs.api import run_to_completion
from potstill.studies import compare
from tests.studies.test_compare import asked


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return run_to_completion(compare.compare(asked(networks=("convnet", "mlp")), out))


def test_the_table_has_a_row_a_method_and_a_column_a_size(made):
    header, rows = table(made, "convnet")
    assert header == ["method", "1 per class", "2 per class"]
    names = [cells[0][0] for cells in rows]
    assert names == ["random", "random with soft labels", "dm", "all images"]
    assert all("±" in text for cells in rows for text, _ in cells[1:])
    assert any(best for cells in rows for _, best in cells[1:])


def test_what_is_missing_or_failed_is_told(made):
    row = dict(made["rows"][0], accuracy={"convnet": None})
    assert comparison_tables.cell_text(row, "convnet") == "…"
    assert comparison_tables.cell_text({**row, "failed": "no room"}, "convnet") == "failed"
    whole = made["rows"][0]
    assert comparison_tables.cell_text({**whole, "sets": [*whole["sets"], "another"]}, "convnet").endswith("…")
    assert comparison_tables.cell_text(whole, "vgg11") == "–"


def test_the_csv_holds_every_figure(made):
    rows = list(csv.DictReader(as_csv(made).splitlines()))
    assert len(rows) == 2 * 3 * 2
    first = made["rows"][0]
    assert float(rows[0]["accuracy"]) == first["accuracy"]["convnet"]["mean"]
    assert (rows[0]["sets"], rows[0]["networks"]) == ("2", "4")


def test_the_latex_table_is_escaped_and_marks_the_best(made):
    text = as_latex(made)
    assert comparison_tables._tex("real_batch=20") == r"real\_batch=20"
    assert "\ndm & " in text
    assert r"\textbf{" in text
    assert r"\multicolumn{3}{l}{mlp}" in text
    assert text.count(r"\\") == 1 + 2 * 5


def test_sentences_say_what_is_larger_than_chance(made):
    found = sentences(made)
    assert len(found) == 4, "two networks, two sizes"
    assert all("is best with" in sentence for sentence in found)


def test_of_one_set_a_row_no_sentence_tells_of_chance(made):
    one = json.loads(json.dumps(made))
    for row in one["rows"]:
        for accuracy in row["accuracy"].values():
            accuracy["ci95"] = None
    found = sentences(one)
    assert len(found) == 2, "one a size"
    assert all("highest is" in sentence and "--set-seeds" in sentence for sentence in found)
    assert all(" on convnet (" in sentence and " on mlp (" in sentence for sentence in found)
    assert not any("beyond chance" in sentence or "significantly" in sentence for sentence in found)


def test_names_leave_out_what_is_changed_unless_another_is_called_the_same(made):
    def titled(*names):
        return list(titles({"rows": [{"name": name} for name in names]}).values())

    assert titled("random", "random:labels=soft", "datm:iterations=3,start_epochs=(8,11)+rat-bptt:lr_images=1e+2") == [
        "random", "random with soft labels", "datm + rat-bptt"
    ]  # fmt: skip
    assert titled("window", "window:labels=soft,beta=0.2") == ["window", "window with soft labels"]
    assert titled("dm:iterations=1", "dm:iterations=2") == ["dm:iterations=1", "dm:iterations=2"]
    many = (
        "datm:start_epochs=(8,16),lr_images=0,iterations=1+dm",
        "datm:start_epochs=(8,16),lr_images=2,iterations=9+dm",
    )
    assert titled(*many, "dm") == ["datm:iterations=1 + dm", "datm:iterations=9 + dm", "dm"]
    assert titled("datm", "datm:start_epochs=(8,16)") == ["datm", "datm:start_epochs=(8,16)"]
    assert titled("dm:iterations=1,flip=True", "dm:iterations=1", "dm:iterations=2") == [
        "dm:iterations=1,flip=True", "dm:iterations=1", "dm:iterations=2"
    ]  # fmt: skip
    assert "dm: dm:iterations=2,real_batch=20" in comparison_tables.notes(made)
    assert not any(note.startswith("random") for note in comparison_tables.notes(made))


def test_several_networks_stand_beside_each_other_with_their_mean(made):
    (caption, header, rows), second = tables(made)
    assert (caption, second[0]) == ("1 image per class", "2 images per class")
    assert header == ["method", "convnet", "mlp", "mean"]
    means = [made["rows"][0]["accuracy"][network]["mean"] for network in header[1:3]]
    assert rows[0][3][0] == f"{100 * sum(means) / 2:.1f}"
    assert [cells[1] for cells in rows] == [cells[1] for cells in table(made, "convnet")[1]]
    lacking = json.loads(json.dumps(made))
    lacking["rows"][0]["accuracy"]["mlp"] = None
    assert tables(lacking)[0][2][0][3][0] == "–"
    of_their_own = json.loads(json.dumps(made))  # as where published cells bring their networks
    for row, network in zip(of_their_own["rows"], ("convnet", "convnet", "mlp") * 2, strict=True):
        row["accuracy"] = {network: row["accuracy"][network]}
    assert tables(of_their_own) == [(network, *table(of_their_own, network)) for network in ("convnet", "mlp")]


def test_what_was_published_stands_beside_the_network_that_distils_only(made):
    record = json.loads(json.dumps(made))
    record["rows"][0]["published"] = {"accuracy": 0.154, "source": "a table"}
    rows = list(csv.DictReader(as_csv(record).splitlines()))
    assert [row["published"] for row in rows[:2]] == ["0.154", ""]
    cells = [comparison_tables.network_table(record, network)["rows"][0]["cells"][0] for network in record["full"]]
    assert [cell["published"] for cell in cells] == ["published 15.4 (a table)", ""]
