"""A comparison as tables, sentences and a page."""

import base64
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
from potstill.report.comparison_tables import short, titles
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
    names = [f"{titles(record)[row['name']]}, {row['ipc']} per class" for row in record["rows"]]
    assert text.count('role="tab"') == 10
    assert [title for title in names if f"<summary>{title}</summary>" in text] == names
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text).group(1))
    assert [shown["title"] for shown in data["sets"]] == names
    for row, shown in zip(record["rows"], data["sets"], strict=True):
        assert [one["count"] for one in shown["classes"]] == [row["ipc"]] * 10
        assert all("Networks recognise" in one["says"] for one in shown["classes"])


def without_confusion(text):
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "confusion"})


def test_of_one_size_and_network_the_methods_are_ranked_by_names_in_lines(made):
    record, _ = made
    rows = [
        {**row, "accuracy": {"convnet": row["accuracy"]["convnet"]}} for row in record["rows"] if row["ipc"] == 1
    ]  # fmt: skip
    better = {"convnet": {**rows[-1]["accuracy"]["convnet"], "mean": 0.9}}
    rows.append({**rows[-1], "name": f"dm:{'a_long_name_' * 6}=1", "accuracy": better})
    one = {**record, "rows": rows, "full": {"convnet": record["full"]["convnet"]}}
    draw = comparison_page._figures(one)[0][0]
    assert draw is comparison_page.ranked_figure
    (plot,) = draw(one).axes
    ranked = sorted((row["accuracy"]["convnet"]["mean"], titles(one)[row["name"]]) for row in rows)
    labels = [label.get_text() for label in plot.get_yticklabels()]
    assert ["".join(label.split()) for label in labels] == ["".join(name.split()) for _, name in ranked]
    assert max(map(len, labels[-1].split("\n"))) <= comparison_page.NAME_WIDTH < len(ranked[-1][1])
    found = [float(drawn[0].get_xdata()[0]) for drawn in plot.containers]
    assert found == pytest.approx([100 * mean for mean, _ in ranked])


def test_methods_have_other_colours_than_the_controls_and_each_other():
    shown = [COLOURS["random"], COLOURS["random_soft"], COLOURS["full"], *SERIES]
    channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in shown]
    assert min(math.dist(a, b) for a, b in itertools.combinations(channels, 2)) > 60


def test_the_pictures_are_of_several_classes_side_by_side(made):
    record, page = made
    first = comparison_page._first_sets(record, page.parent)
    shown = comparison_page._pictures(record, first)
    assert [one["name"] for one in shown] == ["random", "random with soft labels", "dm"]
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
    assert f"{short(shown['rows'][0]['accuracy']['convnet'])} …" in text
    again = run_to_completion(compare.compare(asked(networks=("convnet", "mlp")), tmp_path))
    assert again["rows"][0]["accuracy"] == record["rows"][0]["accuracy"]


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_a_screen(made, width, tmp_path):
    assert in_browser(made[1].read_text(), OVERFLOW, tmp_path, width) <= 0
