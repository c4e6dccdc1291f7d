"""A headless Chromium that shows the page, and what its tests ask of it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
DEADLINE_S = 150.0
"""How long the page may take to show what it must. It is no measure of speed."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)

AXE = os.environ.get("GWTF_AXE", "")
"""axe-core's file, which looks for what keyboards and screen readers stumble over: `npm install axe-core` in some folder, and
GWTF_AXE=.../node_modules/axe-core/axe.min.js."""

needs_axe = pytest.mark.skipif(not AXE, reason="GWTF_AXE does not name axe-core's axe.min.js")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium and chromedriver (Debian: chromium-driver)")


class Chromium:
    """One browser with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}")

    def count(self, selector: str) -> int:
        return int(self.ask(f"document.querySelectorAll({selector!r}).length"))

    def text(self, selector: str) -> str:
        return str(self.ask(f"document.querySelector({selector!r})?.textContent ?? ''"))

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Fails by name when it does not come about."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"the page does not show: {what}; {self.text('#findings')}; {self.errors()}"
            threading.Event().wait(0.05)

    def show(self, width: int, scheme: str) -> None:
        """As on a screen of that width, in that colour scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def errors(self) -> list[str]:
        """What the console has complained of since it was asked last."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def barriers(self) -> list[str]:
        """What axe-core finds serious or critical on the page as it is shown now."""
        # A page's policy forbids scripts that are not its own, this one too: the debugger is not bound by it.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": Path(AXE).read_text(encoding="utf-8")})
        found = self.driver.execute_async_script("axe.run(document).then(arguments[0])")
        assert len(found["passes"]) > 10, "axe has looked at nothing"
        serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        return [f"{rule['id']}: {json.dumps([node['target'] for node in rule['nodes']][:3])}" for rule in serious]

    def printed(self) -> bytes:
        """The page as a PDF. Chromium prints in a process that it starts for it, and says on a busy machine that printing has
        failed: it is asked again."""
        from selenium.common.exceptions import WebDriverException

        printed: list[str] = []

        def prints() -> bool:
            with suppress(WebDriverException):
                printed.append(self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
            return bool(printed)

        self.until("a print", prints)
        return base64.b64decode(printed[0])

    def screenshot(self, path: Path) -> None:
        """Of the whole page."""
        width, height = self.ask("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))

    def close(self) -> None:
        self.driver.quit()
