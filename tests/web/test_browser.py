"""The page in a real browser: headless Chromium, driven by selenium (pip install selenium)."""

import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import start_command, wait_until
from PIL import Image
from test_visits import bomb
from worn import worn_photo

from dr2pipe import cli

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
NOT_YET = pytest.importorskip("selenium.common.exceptions").WebDriverException
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with chromedriver"),
]
SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    log = (folder / "log").open("w")
    environment = {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    process = start_command(
        "-m", "dr2pipe", "web", "--port", "0", stdout=log, stderr=log, env=os.environ | environment
    )
    wait_until(lambda: "the page is at" in (folder / "log").read_text(), process)
    url = (folder / "log").read_text().partition("the page is at ")[2].split()[0]
    yield url, folder
    process.terminate()
    process.wait(60)
    assert not list(folder.glob("dr2pipe_web_*"))  # nothing is left of the visitors


class Browser:
    """A window of Chromium with the page in it."""

    def __init__(self, url, downloads, width=1280, height=900):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{flag}")
        options.add_argument("--disable-background-networking")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        service = webdriver.ChromeService(DRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.downloads = downloads
        self.driver.get(url)
        self.wait(lambda: self.all("#restore"))

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def wait(self, happened):
        deadline = time.monotonic() + SECONDS
        while not (found := self._try(happened)):
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)
        return found

    def _try(self, happened):
        try:
            return happened()
        except (NOT_YET, IndexError):
            return None

    def text(self):
        return self.all("body")[0].text

    def click(self, element):
        self.driver.execute_script("arguments[0].click()", element)

    def upload(self, *paths):
        self.all("#photos input[type=file]")[0].send_keys("\n".join(map(str, paths)))

    def restore(self, path):
        self.upload(path)
        self.wait(lambda: self.all("#restore")[0].is_enabled())
        self.click(self.all("#restore")[0])
        self.wait(lambda: self.all("#slider img"))
        self.wait(lambda: "Faces restored" in self.text() or "No face" in self.text())

    def close(self):
        self.driver.quit()


@pytest.fixture
def browser(server, tmp_path):
    (tmp_path / "down").mkdir()
    opened = Browser(server[0], tmp_path / "down")
    yield opened
    opened.close()


def downloaded(browser, name):
    path = Path(browser.downloads) / name
    browser.wait(path.exists)
    return path


def test_upload_restore_slide_download(browser, tmp_path):
    photo = worn_photo(tmp_path / "worn.png")
    browser.restore(photo)
    assert "1 of 1" in browser.text()
    # The slider follows the mouse.
    before = browser.driver.get_screenshot_as_png()
    slider = browser.all("#slider")[0]
    handle = webdriver.ActionChains(browser.driver)
    handle.move_to_element(slider).click_and_hold().move_by_offset(-150, 0).release().perform()
    time.sleep(0.5)
    assert browser.driver.get_screenshot_as_png() != before
    # It follows the keyboard too.
    script = "return document.querySelector('#slider .slider-wrap').innerHTML"
    before = browser.driver.execute_script(script)
    browser.all("#compare input[type=range]")[0].send_keys("\ue014" * 20)  # the right arrow
    browser.wait(lambda: browser.driver.execute_script(script) != before)
    # The download is the file of the command line.
    browser.click(browser.all("#download")[0])
    got = downloaded(browser, "worn.png").read_bytes()
    assert cli.main(["restore", str(photo), str(tmp_path / "out")]) == 0
    assert got == (tmp_path / "out" / "restored" / "worn.png").read_bytes()
    link = browser.all("#files a[href]")[0].get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(httpx.get(link).content)) as archive:
        assert "manifest.jsonl" in archive.namelist()
    # The whole page works by keyboard: the first stops of the tabulator are controls.
    browser.all("body")[0].send_keys("\ue004")  # the tabulator
    assert browser.driver.switch_to.active_element.tag_name in ("button", "input", "a")


def test_uploads_that_lie_and_large_photos(browser, tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    browser.upload(tmp_path / "notes.png")
    browser.wait(lambda: "not an image file, whatever its name says" in browser.text())
    bomb(tmp_path / "bomb.png")
    browser.upload(tmp_path / "bomb.png")
    browser.wait(lambda: "bomb.png has more than 64 million pixels" in browser.text())
    assert not browser.all("#photos table")  # a refused upload does not come again with the next
    large = Image.fromarray(np.zeros((5000, 8000), np.uint8))  # 40 million pixels
    large.paste(
        Image.open(worn_photo(tmp_path / "w.png")).convert("L").resize((840, 760)), (900, 900)
    )
    large.save(tmp_path / "large.png")
    browser.restore(tmp_path / "large.png")
    assert "Faces restored" in browser.text()


def test_two_visitors_and_one_who_leaves(browser, server, tmp_path):
    url, folder = server
    other = Browser(url, tmp_path)
    third = Browser(url, tmp_path)
    a, b = worn_photo(tmp_path / "a.png"), worn_photo(tmp_path / "b.png", faces=2)
    for window, path in ((browser, a), (other, b), (third, a)):
        window.upload(path)
    for window in (browser, other, third):
        window.wait(lambda window=window: window.all("#restore")[0].is_enabled())
        window.click(window.all("#restore")[0])
    third.close()  # amid its work
    for window, faces in ((browser, "1 of 1"), (other, "2 of 2")):
        window.wait(lambda window=window: "Faces restored" in window.text())
        assert f"Faces restored: {faces}" in window.text()
    other.close()
    root = next(folder.glob("dr2pipe_web_*"))
    browser.wait(lambda: len(list(root.glob("*/photos*/uploads"))) == 1)


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(server, tmp_path, width):
    browser = Browser(server[0], tmp_path, width=width, height=900)
    try:
        browser.restore(worn_photo(tmp_path / "worn.png"))
        script = "return document.documentElement.scrollWidth"
        assert browser.driver.execute_script(script) <= width
        paint = "return performance.getEntriesByType('paint')[0].startTime"
        assert browser.driver.execute_script(paint) < 10_000
        asked = "return performance.getEntriesByType('resource').map(e => e.name)"
        elsewhere = [u for u in browser.driver.execute_script(asked) if "127.0.0.1" not in u]
        assert [u for u in elsewhere if not u.startswith(("data:", "blob:"))] == []
    finally:
        browser.close()
