"""Reading and showing the HTML pages of reports in tests."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from conftest import PATIENCE_SECONDS

from dr2pipe.core import images


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, key):
        return [
            attributes[key] for name, attributes in self.tags if name == tag and key in attributes
        ]


def decode(uri):
    return images.decode_image(base64.b64decode(uri.partition(",")[2])).pixels


LISTEN = """<script>
window.problems = [];
window.onerror = message => { problems.push(String(message)); };
document.addEventListener("securitypolicyviolation", e => problems.push("blocked " + e.blockedURI));
</script>"""
PROBE = """<script>
window.onload = () => setTimeout(() => {
  const found = {problems, width: innerWidth, images: document.images.length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth};
  const slider = document.querySelector(".slider");
  if (slider) {
    const input = slider.querySelector("input"), right = slider.querySelector(".right");
    found.before = getComputedStyle(right).clipPath;
    input.value = 20;
    input.dispatchEvent(new Event("input"));
    found.after = getComputedStyle(right).clipPath;
    const select = document.getElementById("left");
    found.first = slider.querySelector(".left").alt;
    if (select instanceof HTMLSelectElement) {
      select.value = "original";
      select.dispatchEvent(new Event("change"));
      found.second = slider.querySelector(".left").alt;
      const original = slider.parentElement.querySelector("[data-version=original]").src;
      found.same = slider.querySelector(".left").src === original;
    }
    input.focus();
    found.focused = document.activeElement === input;
    found.side = slider.clientWidth;
  }
  parent.postMessage(JSON.stringify(found), "*");
}, 50);
</script>"""


# A window is never narrower than 500 pixels, a frame may be.
FRAME = """<body style="margin: 0"><iframe src="{source}" width="{width}" height="900"
  style="border: 0"></iframe><script>
window.onmessage = event => {{
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = event.data;
  document.body.append(result);
}};
</script></body>"""


def browse(path, tmp_path, width=1280):
    """What a browser finds on a page of a width in pixels, from a script put into a copy of it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome")
    probed, frame = tmp_path / "probed.html", tmp_path / "frame.html"
    text = path.read_text().replace("<head>", "<head>" + LISTEN, 1)
    probed.write_text(text.replace("</body>", PROBE + "</body>"))
    frame.write_text(FRAME.format(source=probed.name, width=width))
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"),
        *("--virtual-time-budget=5000", "--dump-dom"),
    ]
    done = subprocess.run(
        [browser, *options, frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    found = json.loads(html.unescape(found[1]))
    assert found["width"] == width
    return found
