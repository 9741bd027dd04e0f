"""axe-core over the page that headless Chromium shows: its rules for WCAG 2.2 A and AA, and its best practices."""

import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

_HERE = Path(__file__).parent
_AXE = _HERE / "node_modules/axe-core/axe.min.js"
_RUN = "axe.run({resultTypes: ['violations']}).then(arguments[0], error => arguments[0]({error: String(error)}))"


def violations(browser: Chrome) -> list[str]:
    """What axe finds wrong with the page as it is now, a line for each element.

    Skips the test where axe-core is not installed: tests/package.json names the version, `make test` installs it.
    """
    if not _AXE.exists():
        pytest.skip("axe-core is not installed: npm install --prefix tests --no-package-lock")
    browser.execute_script(_AXE.read_text("utf-8"))
    found: dict[str, Any] = browser.execute_async_script(_RUN)
    wanted = json.loads((_HERE / "package.json").read_text("utf-8"))["dependencies"]["axe-core"]
    assert found.get("testEngine", {}).get("version") == wanted, found.get("error", "another version is installed")
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {' '.join(map(str, node['target']))}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
