"""The pictures of the web page in docs, taken in headless Chromium: ``make web-pictures``.

Usage: ``python scripts/web_pictures.py [DOCS] [--width PX] [--dark]``, by default ``docs`` at 1100 px,
light. It needs ``dr2pipe[demo,web]``, ``pip install selenium``, chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from demo import PHOTO_NOISE, PRINTS, SEED, compose_photo, damage_photo, fade
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from dr2pipe.cli import report_errors
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core import images
from dr2pipe.web import ServerConfig, serve

_SECONDS = 180
_FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars")
_HIDE_TOASTS = "document.querySelectorAll('.toast-wrap').forEach(e => e.remove())"


class Window:
    """A window of Chromium with the page in it.

    Args:
        url: of the page.
        width: of the window in pixels.
        is_dark: show it in dark colours.
    """

    def __init__(self, url: str, width: int, is_dark: bool):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*_FLAGS, "disable-background-networking"):
            options.add_argument(f"--{flag}")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.width = width
        self._resize(900)
        self.driver.get(f"{url}?__theme={'dark' if is_dark else 'light'}")
        self.wait_for("#restore")

    def run(self, script: str, *values: object) -> Any:
        """What a script of the page returns."""
        return self.driver.execute_script(script, *values)

    def wait_for(self, css: str) -> None:
        """Wait until the page shows something."""
        WebDriverWait(self.driver, _SECONDS).until(
            lambda driver: any(e.is_displayed() for e in driver.find_elements("css selector", css))
        )

    def click(self, css: str) -> None:
        """Press a button."""
        self.wait_for(css)
        self.run("document.querySelector(arguments[0]).click()", css)

    def show_tab(self, name: str) -> None:
        """Turn to a tab, which may stand in the menu of a narrow window."""
        find = "[...document.querySelectorAll('button[role=tab]')].find(e => e.innerText.trim() == "
        self.run(f"{find}arguments[0]).click()", name)

    def picture(self, path: Path, most_height: int = 3000) -> None:
        """Write the whole page as a PNG, at most so high in pixels."""
        self.run(_HIDE_TOASTS)
        height = self.run("return document.querySelector('.gradio-container').scrollHeight")
        self._resize(min(height, most_height))
        self.run("window.scrollTo(0, 0)")
        self.driver.execute_async_script("setTimeout(arguments[0], 1500)")  # pictures fade in
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.driver.get_screenshot_as_png())
        self._resize(900)

    def _resize(self, height: int) -> None:
        size = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def take_pictures(docs: Path, width: int, is_dark: bool) -> None:
    """Serve the page, restore the photo of the demo, and write each tab as a picture."""
    page = serve(ServerConfig(port=0))
    window = Window(page.local_url, width, is_dark)
    try:
        with tempfile.TemporaryDirectory() as folder:
            photo = Path(folder) / "table.png"
            damaged = damage_photo(fade(compose_photo(PRINTS)[0]), PHOTO_NOISE, _rng())
            images.write_png(photo, damaged)
            upload = window.driver.find_element("css selector", "#photos input[type=file]")
            upload.send_keys(str(photo))
            window.click("#restore:not([disabled])")
            window.wait_for("#slider img")
            window.picture(docs / "web.png", 1150)
        window.show_tab("Tune")
        window.click("#tune")
        window.wait_for("#grid img")
        window.picture(docs / "web_tune.png")
        window.show_tab("About")
        window.picture(docs / "web_about.png", 1150)
    finally:
        window.driver.quit()
        page.close()


def _rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("docs", nargs="?", type=Path, default=Path("docs"))
    parser.add_argument("--width", type=int, default=1100, help="of the window in pixels (1100)")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    options = parser.parse_args()
    quiet_libraries()
    take_pictures(options.docs, options.width, options.dark)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(_main))
