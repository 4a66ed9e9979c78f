"""The page: complete, self-contained, and opened in a real browser where there is one."""

import re
import shutil

import pytest

from potstill import files
from potstill.data.distilled import load
from potstill.errors import PotstillError
from potstill.evaluation import memorisation
from potstill.report import run_page
from potstill.runs import record, run, stage
from potstill.runs.api import run_to_completion
from tests.browser import SLIDE, in_browser, needs_chromium
from tests.conftest import tiny


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small = {"iterations": 2, "window": 3, "unroll": 6, "pool": 2, "real_batch": 100}
    asked = tiny(("datm", "rat-bptt"), ipc=2, datm={"iterations": 4, "lr_images": 100.0}, **{"rat-bptt": small})
    job = run.open_run(asked, folder)
    run_to_completion(run.train_experts(job))
    run_to_completion(record.evaluate(job, run_to_completion(stage.distil(job))))
    return run_page.write(folder)


def test_page_needs_nothing_from_elsewhere(page):
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "@import" not in text
    assert "url(" not in text


def test_page_says_what_was_done(page):
    text = page.read_text()
    for words in ("20 synthetic images stand in for digits", "random real images", "random, soft labels",
                  "full training set", "95 % interval", "potstill.load", "stages.datm.lr_images",
                  "difficulty-aligned trajectory matching, then random truncated", "Start epoch by iteration",
                  "Steps the student has taken by iteration"):  # fmt: skip
        assert words in text
    assert text.count("<figcaption>") == 10
    assert text.count('alt="before"') == text.count('alt="after"') == 20


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(PotstillError, match="holds no finished run"):
        run_page.write(tmp_path)


def test_a_run_without_snapshots_has_no_slider(page, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(page.parent, folder)
    shutil.rmtree(folder / "snapshots")
    text = run_page.write(folder).read_text()
    assert 'type="range"' not in text
    assert 'type="range"' in page.read_text()


def test_page_shows_what_sharing_the_set_gives_away(page):
    text, told = page.read_text(), files.read_json(page.parent / "results.json")["memorisation"]
    assert memorisation.sentence(told) in text
    assert text.count('alt="most copied image"') == 10
    assert text.count('alt="training image"') == 30
    mine = load(page.parent).pixels.float()
    real = files.read_tensors(page.parent / record.NEAREST, record.NEAREST_KIND)[0]["pixels"].float()
    entries = [one["most_copied"] for one in told["classes"]]
    copies = sum(entry["near_copy"] for entry in entries)
    assert [text.count(f"> {caption}</div>") for caption in ("near copy", "of the set")] == [copies, 10 - copies]
    for number, entry in enumerate(entries):
        apart = (mine[entry["image"]] - real[3 * number : 3 * number + 3]).square().mean((1, 2, 3)).sqrt() / 255
        assert apart.tolist() == pytest.approx(entry["distances"], abs=1e-6)
        assert all(f"{distance:.1%}" in text for distance in entry["distances"])


def test_results_of_before_have_no_such_section(page, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(page.parent, folder)
    results = files.read_json(folder / "results.json")
    del results["memorisation"]
    files.write_json(folder / "results.json", results)
    assert "What sharing it gives away" not in run_page.write(folder).read_text()


@pytest.mark.parametrize("other", [None, 1])
def test_pictures_that_are_gone_or_of_other_images_are_not_drawn(page, tmp_path, other):
    folder = tmp_path / "run"
    shutil.copytree(page.parent, folder)
    tensors, _ = files.read_tensors(folder / record.NEAREST, record.NEAREST_KIND)
    (folder / record.NEAREST).unlink()
    if other:
        moved = {**tensors, "rows": tensors["rows"] + other}
        files.write_tensors(folder / record.NEAREST, record.NEAREST_KIND, moved, {})
    text = run_page.write(folder).read_text()
    assert "What sharing it gives away" in text
    assert 'alt="training image"' not in text


@needs_chromium
def test_page_opens_in_a_browser(page, tmp_path):
    """The browser lays the page out, decodes every picture, and reports no error."""
    found = in_browser(
        page.read_text(),
        """{images: images.length, decoded: images.filter(i => i.naturalWidth > 0).length,
        wide: document.documentElement.scrollWidth > innerWidth, rows: document.querySelectorAll("tr").length}""",
        tmp_path,
    )
    assert (
        found["images"] == found["decoded"] == 91 + 8
    )  # those of the first class in the gallery: two pairs, one beside three
    assert not found["wide"]
    assert found["rows"] > 30


@needs_chromium
def test_the_slider_moves_through_the_snapshots(page, tmp_path):
    found = in_browser(page.read_text(), SLIDE, tmp_path)
    assert found["says"] == ["iteration 6", "iteration 0"]
    assert found["pictures"][0] != found["pictures"][1]
