"""The page: complete, self-contained, and opened in a real browser where there is one."""

import re
import shutil
import subprocess

import pytest

from potstill import api, report
from potstill import run as stages
from potstill.errors import PotstillError
from tests.conftest import tiny

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = stages.open_run(tiny(ipc=2), folder)
    for stage in (stages.train_experts, stages.distil, stages.evaluate):
        api.exhaust(stage(run))
    return report.write(folder)


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
                  "full training set", "95 % interval", "potstill.load", "distil.lr_images",
                  "Matching loss"):  # fmt: skip
        assert words in text
    assert text.count("<figcaption>") == 4
    assert text.count('alt="before"') == text.count('alt="after"') == 20


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(PotstillError, match="holds no finished run"):
        report.write(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_opens_in_a_browser(page, tmp_path):
    """The browser lays the page out, decodes every picture, and reports no error."""
    probe = """<script>window.addEventListener("load", () => {
      const images = [...document.images];
      document.title = JSON.stringify({images: images.length, decoded: images.filter(i => i.naturalWidth > 0).length,
        wide: document.documentElement.scrollWidth > window.innerWidth, rows: document.querySelectorAll("tr").length});
    });</script></body>"""
    (tmp_path / "probe.html").write_text(page.read_text().replace("</body>", probe))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --window-size=1000,800 --virtual-time-budget=4000 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/probe.html"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    import html
    import json

    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom).group(1)))
    assert found["images"] == found["decoded"] == 44
    assert not found["wide"]
    assert found["rows"] > 30
