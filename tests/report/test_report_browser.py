"""The page in headless Chromium: axe, a phone, and what is there without a mouse."""

from pathlib import Path

import pytest
from axe import violations
from browser import look, open_file
from example_run import make_run
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from stages.core import paths
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


def test_the_first_key_leads_to_the_skip_link_and_it_to_the_content(chromium: Chrome, page: Path) -> None:
    look(chromium)
    open_file(chromium, page)
    link = _next(chromium)
    assert link.text == "Skip to the content"
    assert link.rect["x"] >= 0
    link.send_keys(Keys.ENTER)
    assert chromium.switch_to.active_element.get_attribute("id") == "main"


def test_every_place_that_takes_the_focus_shows_it(chromium: Chrome, page: Path) -> None:
    look(chromium)
    open_file(chromium, page)
    seen = set()
    while (one := _next(chromium)).tag_name != "body":
        seen.add(one.tag_name)
        assert one.value_of_css_property("outline-width") != "0px", one.text
        assert one.value_of_css_property("outline-style") != "none", one.text
    assert seen == {"a", "div", "summary"}


def _next(chromium: Chrome) -> WebElement:
    ActionChains(chromium).send_keys(Keys.TAB).perform()
    return chromium.switch_to.active_element


def test_paper_shows_what_is_folded_away_and_no_links(chromium: Chrome, page: Path) -> None:
    folded = "document.querySelector('details:not([open]) > :nth-child(2)')"
    shown = f"return {folded}.checkVisibility({{contentVisibilityAuto: true}})"
    look(chromium)
    open_file(chromium, page)
    assert chromium.execute_script(shown) is False
    look(chromium, medium="print")
    # Chromium says so once it has drawn the page anew.
    WebDriverWait(chromium, 20).until(lambda browser: browser.execute_script(shown) is True)
    assert not chromium.find_element("css selector", "nav").is_displayed()


def test_nothing_is_asked_of_the_network(chromium: Chrome, page: Path) -> None:
    look(chromium)
    open_file(chromium, page)
    assert chromium.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_only_tables_scroll_sideways(chromium: Chrome, page: Path, width: int) -> None:
    look(chromium, width)
    open_file(chromium, page)
    chromium.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
