"""The page in headless Chromium: axe, a phone, and what is there without a mouse."""

from pathlib import Path

import pytest
from axe import violations
from browser import look, open_file
from example_run import make_run
from selenium.webdriver import Chrome

from stages import paths
from stages.report.__main__ import main

pytest_plugins = ["browser_fixtures"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_run(folder, previous=True, tasks=True)
        main()
    return folder / paths.REPORT_HTML


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_violation(chromium: Chrome, page: Path, width: int, scheme: str) -> None:
    look(chromium, width, scheme=scheme)
    open_file(chromium, page)
    chromium.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert violations(chromium) == []


def test_axe_sees_what_is_wrong(chromium: Chrome, tmp_path: Path) -> None:
    """The check itself can fail."""
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><html><title>x</title><body><main><h1>x</h1><svg role=img></svg><img src=x>")
    open_file(chromium, broken)
    assert {line.partition(" ")[0] for line in violations(chromium)} >= {"html-has-lang", "image-alt", "svg-img-alt"}


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_only_tables_scroll_sideways(chromium: Chrome, page: Path, width: int) -> None:
    look(chromium, width)
    open_file(chromium, page)
    chromium.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
