"""The gallery: what it draws of a set, what it leaves out, and how it is used in a real browser."""

import base64
import io
import re
import shutil
from dataclasses import replace

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

from potstill import files
from potstill.data.distilled import load
from potstill.report import gallery as galleries
from potstill.report import run_page
from potstill.report.gallery import Shown, confusions, fractions, gallery, limits, strip
from potstill.runs import snapshots
from tests.browser import in_browser, needs_chromium
from tests.conftest import KEPT

USED = """(() => {
  const tabs = [...document.querySelectorAll("[role=tab]")], list = document.querySelector("[role=tablist]");
  const panel = document.querySelector("[role=tabpanel]"), slider = document.querySelector(".gallery input");
  const now = () => ({
    chosen: tabs.filter(tab => tab.getAttribute("aria-selected") == "true").map(tab => tab.textContent),
    reachable: tabs.filter(tab => tab.tabIndex == 0).map(tab => tab.textContent),
    of: panel.getAttribute("aria-labelledby"),
    alts: [...panel.querySelectorAll("img")].map(image => image.alt), focused: document.activeElement.textContent,
    slider: document.querySelector(".gallery output").value, drawn: panel.querySelector("img").src,
  });
  const press = key => { list.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true})); return now(); };
  const found = {first: now(), right: press("ArrowRight"), left: press("ArrowLeft"), before: press("ArrowUp"),
                 home: press("Home"), end: press("End")};
  tabs[3].click();
  found.clicked = now();
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  return {...found, slid: now(), kinds: tabs.map(tab => tab.tagName)};
})()"""
LAID_OUT = """({width: innerWidth,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  without: images.filter(image => !image.alt).length, broken: images.filter(image => !image.naturalWidth).length,
  inverted: [...document.querySelectorAll(".gallery img, .pair img, .near img, .sequence img")].filter(
    image => getComputedStyle(image).filter != "none").length,
  charts: [...document.querySelectorAll("figure img")].map(image => getComputedStyle(image).filter)})"""
COUNTS = [[9 if i == j else int(j == (i + 1) % 10) for j in range(10)] for i in range(10)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a finished run of digits, with confusions as an evaluation of today counts them."""
    folder = tmp_path_factory.mktemp("gallery") / "run"
    shutil.copytree(KEPT / "finished", folder)
    results = files.read_json(folder / "results.json")
    files.write_json(folder / "results.json", {**results, "confusion": {"counts": COUNTS, "networks": 2}})
    return run_page.write(folder)


@pytest.fixture(scope="module")
def distilled():
    return load(KEPT / "finished")


def pixels_of(strip):
    """A strip's picture as (C, H, W)."""
    content = base64.b64decode(strip["picture"].removeprefix("data:image/png;base64,"))
    array = np.atleast_3d(np.array(Image.open(io.BytesIO(content))))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def test_a_strip_holds_every_pixel_of_its_images():
    images = torch.randint(256, (3, 3, 4, 5), dtype=torch.uint8)
    made = strip(images)
    assert (made["width"], made["height"]) == (5, 4)
    assert torch.equal(torch.stack(pixels_of(made).split(5, dim=2)), images)
    assert strip(images[:0]) is None


def test_every_class_has_its_images_and_labels_in_order(distilled):
    found = gallery([Shown("", distilled, before=255 - distilled.pixels)])
    assert found["names"] == distilled.classes
    for label, one in enumerate(found["sets"][0]["classes"]):
        rows = distilled.labels == label
        assert torch.equal(torch.stack(pixels_of(one["strip"]).split(8, dim=2)), distilled.pixels[rows])
        assert torch.equal(torch.stack(pixels_of(one["before"]).split(8, dim=2)), 255 - distilled.pixels[rows])
        largest = distilled.soft_labels[rows].max(1)
        assert [labels[0] for labels in one["soft"]] == [
            (k, round(100 * v)) for k, v in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
        ]


@pytest.mark.parametrize(
    ("classes", "values", "expected"),
    [(10, 64, (10, 20)), (10, 2 * 3072, (10, 20)), (100, 2 * 3072, (100, 4)), (1000, 3072, (100, 9)),
     (10, 2 * 150528, (9, 1)), (10, 10**8, (1, 1))],
)  # fmt: skip
def test_large_sets_are_cut_to_the_budget(classes, values, expected):
    shown, images = limits(classes, values)
    assert (shown, images) == expected
    assert (shown, images) == (1, 1) or shown * images * values <= galleries.BUDGET


def test_snapshots_are_thinned_from_the_end(distilled, monkeypatch):
    kept = [
        snapshots.Snapshot(i, distilled.pixels, distilled.soft_labels, distilled.labels) for i in range(5)
    ]  # fmt: skip
    shown = Shown("", distilled, snapshots=kept)
    frames = gallery([shown])["sets"][0]["classes"][0]["frames"]
    assert [frame["iteration"] for frame in frames] == [0, 1, 2, 3, 4]
    monkeypatch.setattr(galleries, "BUDGET", 10 * 64 * 3)  # one image of each class, three times
    frames = gallery([shown])["sets"][0]["classes"][0]["frames"]
    assert [frame["iteration"] for frame in frames] == [0, 2, 4]


def test_fewer_images_and_classes_are_told(distilled, monkeypatch):
    monkeypatch.setattr(galleries, "MOST_CLASSES", 3)
    found = gallery([Shown("", distilled)])
    assert (len(found["names"]), found["left_out"]) == (3, 7)


def test_confusions_by_hand():
    found = confusions({"counts": [[6, 2, 0], [0, 4, 0], [1, 1, 2]], "networks": 1}, ("a", "b", "c"))
    assert [(bar["name"], bar["part"]) for bar in found["bars"]] == [("b", 100), ("a", 75), ("c", 50)]
    assert [row["cells"] for row in found["table"]] == [[75, 25, 0], [0, 100, 0], [25, 25, 50]]
    assert found["pairs"] == []
    assert fractions([[0, 0], [1, 3]]) == [[0, 0], [0.25, 0.75]]


def test_confusions_of_many_classes_are_a_list_of_pairs():
    counts = 99 * torch.eye(120, dtype=torch.int64)
    counts[7, 9], counts[100, 3] = 33, 1
    found = confusions({"counts": counts.tolist(), "networks": 1}, [f"class {k}" for k in range(120)])
    assert found["table"] == []
    assert [(pair["true"], pair["taken"], pair["part"]) for pair in found["pairs"]] == [
        ("class 7", "class 9", 25), ("class 100", "class 3", 1),
    ]  # fmt: skip
    assert (len(found["bars"]), found["bars_left_out"], found["bars"][-1]["part"]) == (100, 20, 75)


def test_the_nearest_training_images_are_those_of_the_image_that_stands_out(distilled):
    number = int((distilled.labels == 4).nonzero()[0])
    entry = {"image": number, "label": 4, "rows": [5, 6], "distances": [0.1, 0.2], "relative": 0.4, "near_copy": True}
    told = {"classes": [{"label": 4, "most_copied": entry}]}
    nearest = {"rows": torch.tensor([5, 6]), "pixels": torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)}
    shown = Shown("", distilled, memorised=told, nearest=nearest)
    classes = gallery([shown])["sets"][0]["classes"]
    found = classes[4]["nearest"]
    assert (found["number"], found["distances"], found["copy"]) == (1, ["10.0%", "20.0%"], True)
    assert torch.equal(torch.stack(pixels_of(found["strip"]).split(8, dim=2)), nearest["pixels"])
    assert torch.equal(pixels_of(found["image"]), distilled.pixels[number])
    assert classes[3]["nearest"] is None
    other = replace(shown, nearest={**nearest, "rows": torch.tensor([5, 7])})
    assert gallery([other])["sets"][0]["classes"][4]["nearest"] is None


def test_the_page_shows_confusions_or_says_why_not(page, tmp_path):
    text = page.read_text()
    assert "How well each class is recognised" in text
    assert text.count('<td class="right strong"') == 10
    assert text.count('<td class="wrong"') == 90
    assert galleries.UNKNOWN not in text
    shutil.copytree(KEPT / "finished", tmp_path / "run")
    older = run_page.write(tmp_path / "run").read_text()
    assert galleries.UNKNOWN in older
    assert "How well each class is recognised</h2>" not in older


def test_names_cannot_leave_the_script_they_are_written_in(distilled):
    odd = replace(distilled, classes=("</script><b>", *distilled.classes[1:]))
    loader = jinja2.PackageLoader("potstill.report", "pages")
    template = jinja2.Environment(autoescape=True, loader=loader).from_string(
        '{% from "gallery.html.j2" import gallery %}{{ gallery(shown) }}'
    )
    text = template.render(shown=gallery([Shown("", odd)]))
    assert "</script><b>" not in text
    assert "\\u003c/script\\u003e\\u003cb\\u003e" in text


@needs_chromium
def test_a_class_is_chosen_by_keyboard_and_by_click_and_the_slider_goes_back(page, distilled, tmp_path):
    found = in_browser(page.read_text(), USED, tmp_path)
    names = list(distilled.classes)
    for step, number in (
        ("first", 0), ("right", 1), ("left", 0), ("before", 9), ("home", 0), ("end", 9), ("clicked", 3), ("slid", 3),
    ):  # fmt: skip
        now = found[step]
        assert now["chosen"] == now["reachable"] == [names[number]]
        assert now["of"] == f"class-{number}"
        assert now["alts"]
        assert all(names[number] in alt for alt in now["alts"])
    assert [found[step]["focused"] for step in ("right", "before", "end")] == [names[1], names[9], names[9]]
    assert set(found["kinds"]) == {"BUTTON"}
    assert len({found[step]["drawn"] for step in ("first", "right", "before")}) == 3
    assert found["clicked"]["slider"] == "the set"
    assert re.fullmatch(r"iteration \d+", found["slid"]["slider"])


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_it_fits_a_screen_and_no_picture_of_data_is_inverted(page, tmp_path, width, dark):
    text = page.read_text()
    if dark:
        text = text.replace("(prefers-color-scheme: dark)", "all")
    found = in_browser(text, LAID_OUT, tmp_path, width)
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert (found["without"], found["broken"], found["inverted"]) == (0, 0, 0)
    assert all(("invert" in chart) == dark for chart in found["charts"])
