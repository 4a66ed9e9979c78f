"""The page: complete, self-contained, and opened in a real browser where there is one."""

import re
import shutil

import pytest

from potstill.errors import PotstillError
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
    assert text.count("<figcaption>") == 9
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


@needs_chromium
def test_page_opens_in_a_browser(page, tmp_path):
    """The browser lays the page out, decodes every picture, and reports no error."""
    found = in_browser(
        page.read_text(),
        """{images: images.length, decoded: images.filter(i => i.naturalWidth > 0).length,
        wide: document.documentElement.scrollWidth > innerWidth, rows: document.querySelectorAll("tr").length}""",
        tmp_path,
    )
    assert found["images"] == found["decoded"] == 50
    assert not found["wide"]
    assert found["rows"] > 30


@needs_chromium
def test_the_slider_moves_through_the_snapshots(page, tmp_path):
    found = in_browser(page.read_text(), SLIDE, tmp_path)
    assert found["says"] == ["iteration 6", "iteration 0"]
    assert found["pictures"][0] != found["pictures"][1]
