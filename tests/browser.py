"""Opens a page in headless Chromium and brings back what a script finds there."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

SLIDE = """(() => {
  const slider = document.querySelector(".slider input"), shown = document.querySelector(".slider output");
  const pictures = [document.querySelector(".sequence img").src], says = [shown.value];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  pictures.push(document.querySelector(".sequence img").src);
  says.push(shown.value);
  return {pictures, says};
})()"""


def in_browser(text, expression, folder, width=1000):
    """The value of a JavaScript expression once the page is laid out; ``images`` are the page's pictures.

    The page stands in a frame of the width asked for: Chromium makes no window narrower than 500 pixels.
    """
    probe = f"""<script>window.addEventListener("load", () => {{
      const images = [...document.images];
      parent.postMessage(JSON.stringify({expression}), "*");
    }});</script></body>"""
    frame = f"""<!doctype html><title></title><script>
      addEventListener("message", event => {{ document.title = event.data; }});
    </script><iframe src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe>"""
    (folder / "page.html").write_text(text.replace("</body>", probe))
    (folder / "probe.html").write_text(frame)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=4000 --dump-dom"
    command = [
        CHROMIUM,
        *flags.split(),
        f"--window-size={width + 100},900",
        f"--user-data-dir={folder}/profile",
        f"file://{folder}/probe.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom).group(1)))
