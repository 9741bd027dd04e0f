"""The browser; a test module asks for it by `pytest_plugins = ["browser_fixtures"]`."""

from collections.abc import Iterator

import pytest
from browser import start_chromium
from selenium.webdriver import Chrome


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for all tests; each sets the size and the colours that it needs (`look`)."""
    browser = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()
