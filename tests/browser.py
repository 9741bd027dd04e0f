"""Headless Chromium for tests of pages. `browser_fixtures` has it as a fixture."""

import shutil
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def start_chromium(profile: Path) -> Chrome:
    """A browser with an empty profile, which opens no connection but those of its page.

    Skips the test where Chromium or its driver is not installed (Debian: chromium and chromium-driver).
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return Chrome(options=options, service=Service(driver))


def look(browser: Chrome, width: int = 1280, height: int = 900, scheme: str = "light", medium: str = "screen") -> None:
    """Set the viewport in CSS pixels, the colour scheme (light or dark) and the medium (screen or print)."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wish = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": wish})


def open_file(browser: Chrome, path: Path) -> None:
    browser.get(path.resolve().as_uri())
