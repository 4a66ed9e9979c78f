"""A comparison as tables, sentences and a page."""

import base64
import csv
import io
import itertools
import json
import math
import re
import shutil

import pytest
from PIL import Image

from potstill import store
from potstill.report import comparison_page
from potstill.report.comparison_page import as_csv, as_latex, sentences, table
from potstill.report.figures import COLOURS, SERIES
from potstill.report.gallery import UNKNOWN
from potstill.runs.api import run_to_completion
from potstill.studies import compare
from tests.browser import in_browser, needs_chromium
from tests.studies.test_compare import asked

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    record = run_to_completion(compare.compare(asked(networks=("convnet", "mlp")), out))
    return record, comparison_page.write(record, out, out)


def test_the_table_has_a_row_a_method_and_a_column_a_size(made):
    header, rows = table(made[0], "convnet")
    assert header == ["method", "1 per class", "2 per class"]
    names = [cells[0][0] for cells in rows]
    assert names == ["random", "random, soft labels", "dm:iterations=2,real_batch=20", "all images"]
    assert all("±" in text for cells in rows for text, _ in cells[1:])
    assert any(best for cells in rows for _, best in cells[1:])


def test_what_is_missing_or_failed_is_told(made):
    row = dict(made[0]["rows"][0], accuracy={"convnet": None})
    assert comparison_page.cell_text(row, "convnet") == "…"
    assert comparison_page.cell_text({**row, "failed": "no room"}, "convnet") == "failed"
    whole = made[0]["rows"][0]
    assert comparison_page.cell_text({**whole, "sets": [*whole["sets"], "another"]}, "convnet").endswith("…")
    assert comparison_page.cell_text(whole, "vgg11") == "–"


def test_the_csv_holds_every_figure(made):
    rows = list(csv.DictReader(as_csv(made[0]).splitlines()))
    assert len(rows) == 2 * 3 * 2
    first = made[0]["rows"][0]
    assert float(rows[0]["accuracy"]) == first["accuracy"]["convnet"]["mean"]
    assert (rows[0]["sets"], rows[0]["networks"]) == ("2", "4")


def test_the_latex_table_is_escaped_and_marks_the_best(made):
    text = as_latex(made[0])
    assert r"dm:iterations=2,real\_batch=20" in text
    assert r"\textbf{" in text
    assert r"\multicolumn{3}{l}{mlp}" in text
    assert text.count(r"\\") == 1 + 2 * 5


def test_sentences_say_what_is_larger_than_chance(made):
    found = sentences(made[0])
    assert len(found) == 4, "two networks, two sizes"
    assert all("is best with" in sentence for sentence in found)


def test_of_one_set_a_row_no_sentence_tells_of_chance(made):
    one = json.loads(json.dumps(made[0]))
    for row in one["rows"]:
        for accuracy in row["accuracy"].values():
            accuracy["ci95"] = None
    found = sentences(one)
    assert len(found) == 4
    assert all("is highest with" in sentence and "--set-seeds" in sentence for sentence in found)
    assert not any("beyond chance" in sentence or "significantly" in sentence for sentence in found)


def test_the_page_is_one_file_with_pictures_of_every_row(made):
    _, page = made
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    assert text.count("synthetic images of") == 3
    assert {path.name for path in page.parent.glob("compare.*")} == {
        "compare.html", "compare.png", "compare.csv", "compare.tex", "compare.json"}  # fmt: skip


def test_the_page_browses_the_first_set_of_every_row_and_tells_what_networks_make_of_it(made):
    record, page = made
    text = page.read_text()
    names = [f"{comparison_page.name_of(row)}, {row['ipc']} per class" for row in record["rows"]]
    assert text.count('role="tab"') == 10
    assert [title for title in names if f"<summary>{title}</summary>" in text] == names
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text).group(1))
    assert [shown["title"] for shown in data["sets"]] == names
    for row, shown in zip(record["rows"], data["sets"], strict=True):
        assert [one["count"] for one in shown["classes"]] == [row["ipc"]] * 10
        assert all("Networks recognise" in one["says"] for one in shown["classes"])


def without_confusion(text):
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "confusion"})


def test_methods_have_other_colours_than_the_controls_and_each_other():
    shown = [COLOURS["random"], COLOURS["random_soft"], COLOURS["full"], *SERIES]
    channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in shown]
    assert min(math.dist(a, b) for a, b in itertools.combinations(channels, 2)) > 60


def test_the_pictures_are_of_several_classes_side_by_side(made):
    record, page = made
    first = comparison_page._first_sets(record, page.parent)
    shown = comparison_page._pictures(record, first)
    assert [one["name"] for one in shown] == ["random", "random, soft labels", "dm:iterations=2,real_batch=20"]
    pixels = Image.open(io.BytesIO(base64.b64decode(shown[0]["picture"].partition(",")[2])))
    assert pixels.width == pytest.approx(pixels.height * 5 / 2, rel=0.02), "five of ten classes a line"
    assert "from the first set of each row at 1 image per class" in page.read_text()


def test_records_of_before_confusions_are_drawn_without_them(made, tmp_path):
    record, page = made
    rows = [{name: value for name, value in row.items() if name != "first_figures"} for row in record["rows"]]
    text = comparison_page.write({**record, "rows": rows}, tmp_path, page.parent).read_text()
    assert UNKNOWN in text
    assert "How well each class is recognised" not in text.replace(UNKNOWN, "")


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], without_confusion], ids=["cut", "lacking"])
def test_a_damaged_figure_is_not_there_yet(made, tmp_path, damage):
    record, page = made
    shutil.copytree(page.parent, tmp_path, dirs_exist_ok=True)
    key = record["rows"][0]["first_figures"][0]
    path = store.json_path(tmp_path, "figures", key)
    path.write_text(damage(path.read_text()))
    shown = compare.so_far(tmp_path)
    assert len(shown["rows"][0]["accuracy"]["convnet"]["per_seed"]) == 1, "the other set's"
    text = comparison_page.write(shown, tmp_path).read_text()
    assert f"{comparison_page.short(shown['rows'][0]['accuracy']['convnet'])} …" in text
    again = run_to_completion(compare.compare(asked(networks=("convnet", "mlp")), tmp_path))
    assert again["rows"][0]["accuracy"] == record["rows"][0]["accuracy"]


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_a_screen(made, width, tmp_path):
    assert in_browser(made[1].read_text(), OVERFLOW, tmp_path, width) <= 0
