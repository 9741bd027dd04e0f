"""The page in headless Chromium: keys, saving, going on where one left, and texts that stay texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import violations
from browser import look
from review_project import make_review_project, reviewing
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from stages.measure.review.server import Server

pytest_plugins = ["browser_fixtures"]

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script></textarea> \u202e {"a": 1}'
PAIRS = [(HOSTILE, "right"), ("", "x" * 900), ("wrong\n\n  indented", "right"), ("same", "same")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_review_project(tmp_path, PAIRS)


@pytest.fixture
def server(project: Path) -> Iterator[Server]:
    with reviewing(project, "anna") as server:
        yield server


@pytest.fixture
def page(chromium: Chrome, server: Server) -> Chrome:
    look(chromium)
    return opened(chromium, server)


def opened(chromium: Chrome, server: Server) -> Chrome:
    chromium.get(server.address)
    WebDriverWait(chromium, 10).until(lambda browser: browser.find_element(By.ID, "row").text)
    return chromium


def press(page: Chrome, *keys: str) -> None:
    for key in keys:
        ActionChains(page).send_keys(key).perform()


def text(page: Chrome, name: str) -> str:
    return str(page.find_element(By.ID, name).text)


def settled(page: Chrome, words: str = "Saved") -> str:
    WebDriverWait(page, 10).until(lambda _: text(page, "status").startswith(words))
    return text(page, "status")


def cards(page: Chrome) -> list[str]:
    return [str(card.text) for card in page.find_elements(By.CSS_SELECTOR, ".card .text")]


def chosen(page: Chrome) -> list[bool]:
    return [box.is_selected() for box in page.find_elements(By.CSS_SELECTOR, ".card input")]


def answers(project: Path, reviewer: str = "anna") -> list[dict[str, Any]]:
    file = project / "reviews" / f"{reviewer}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_review_by_keyboard_alone(page: Chrome, project: Path) -> None:
    assert text(page, "count") == "0 of 3 rows answered"
    press(page, "1")
    settled(page)
    (first,) = answers(project)
    assert first["best"] == [first["shown"][0]]
    press(page, "2")
    WebDriverWait(page, 10).until(lambda _: len(answers(project)[0]["best"]) == 2)
    assert page.find_element(By.ID, "tie").get_attribute("aria-pressed") == "true"
    press(page, "1", Keys.ENTER)
    WebDriverWait(page, 10).until(lambda _: answers(project)[0]["best"] == [first["shown"][1]])
    assert text(page, "row") == "Row 2 of 3"
    press(page, "b", Keys.ARROW_RIGHT, "t")
    WebDriverWait(page, 10).until(lambda _: len(answers(project)) == 3)
    settled(page)
    assert sorted(len(answer["best"]) for answer in answers(project)) == [0, 1, 2]
    assert text(page, "count") == "All 3 rows answered, thank you"
    press(page, "t")
    WebDriverWait(page, 10).until(lambda _: len(answers(project)) == 2)
    press(page, Keys.ARROW_LEFT, "u")
    assert text(page, "row") == "Row 3 of 3"


def test_a_review_with_the_mouse_and_a_comment(page: Chrome, project: Path) -> None:
    page.find_element(By.CSS_SELECTOR, ".card").click()
    page.find_element(By.ID, "comment").send_keys("1 is 2b, t")
    page.find_element(By.ID, "next").click()
    WebDriverWait(page, 10).until(lambda _: answers(project)[0]["comment"] == "1 is 2b, t")
    (answer,) = answers(project)
    assert answer["best"] == [answer["shown"][0]]
    assert (text(page, "row"), chosen(page)) == ("Row 2 of 3", [False, False])
    page.find_element(By.ID, "previous").click()
    assert chosen(page) == [True, False]
    assert page.find_element(By.ID, "comment").get_property("value") == "1 is 2b, t"


def test_ratings_are_saved_with_the_choice_and_there_again(page: Chrome, project: Path) -> None:
    boxes = page.find_elements(By.CSS_SELECTOR, "select")
    assert [box.get_attribute("aria-label") for box in boxes][3:5] == [
        "style of answer 1, 1 to 5",
        "relevance of answer 2, 1 to 5",
    ]
    boxes[1].send_keys("4")  # a key that chooses no card
    assert settled(page, "Ratings") == "Ratings are saved together with a choice"
    page.find_element(By.ID, "tie").click()
    boxes[4].send_keys("2")
    WebDriverWait(page, 10).until(lambda _: [len(one.get("scales", ())) for one in answers(project)] == [2])
    settled(page)
    (answer,) = answers(project)
    first, second = answer["shown"]
    assert (len(answer["best"]), answer["scales"]) == (2, {first: {"accuracy": 4}, second: {"relevance": 2}})
    page.find_element(By.ID, "next").click()
    page.find_element(By.ID, "previous").click()
    shown = [box.get_property("value") for box in page.find_elements(By.CSS_SELECTOR, "select")]
    assert shown == ["", "4", "", "", "2", "", "", ""]
    page.find_elements(By.CSS_SELECTOR, "select")[4].send_keys("–")
    WebDriverWait(page, 10).until(lambda _: len(answers(project)[0]["scales"]) == 1)
    settled(page)
    assert violations(page) == []


def test_a_comment_alone_waits_for_a_choice(page: Chrome, project: Path) -> None:
    press(page, "c", "both are odd", Keys.ESCAPE)
    assert settled(page, "A comment") == "A comment is saved together with a choice"
    assert answers(project) == []
    press(page, "b")
    settled(page)
    assert [(answer["best"], answer["comment"]) for answer in answers(project)] == [([], "both are odd")]


def test_it_goes_on_where_the_reviewer_left(page: Chrome, project: Path) -> None:
    press(page, "1", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "b")
    WebDriverWait(page, 10).until(lambda _: len(answers(project)) == 2)
    with reviewing(project, "anna") as later:
        opened(page, later)
        assert (text(page, "row"), text(page, "count")) == ("Row 2 of 3", "2 of 3 rows answered")
        press(page, Keys.ARROW_LEFT)
        assert chosen(page) == [True, False]
    with reviewing(project, "ben") as other:
        opened(page, other)
        assert text(page, "count") == "0 of 3 rows answered"
        press(page, "t")
        settled(page)
    assert (len(answers(project)), len(answers(project, "ben"))) == (2, 1)


def test_no_text_is_more_than_text(page: Chrome) -> None:
    seen = []
    for _ in range(3):
        seen += cards(page)
        press(page, Keys.ARROW_RIGHT)
    assert sorted(seen) == sorted([HOSTILE, "right", "(empty)", "x" * 900, "wrong\n\n  indented", "right"])
    assert page.title == "Tunetrail review: anna"
    assert page.find_elements(By.CSS_SELECTOR, "img, .card script, iframe") == []


def test_nothing_on_the_page_names_a_model(page: Chrome) -> None:
    for _ in range(3):
        source = page.execute_script("return document.documentElement.outerHTML").lower()
        assert not [word for word in ("tuned", '"base', ">base", "previous release", "adapter") if word in source]
        press(page, Keys.ARROW_RIGHT)


def test_an_answer_that_cannot_be_saved_is_said_and_kept(chromium: Chrome, project: Path) -> None:
    with reviewing(project, "anna") as server:
        page = opened(chromium, server)
    server.server_close()
    press(page, "1")
    assert settled(page, "Not saved") == "Not saved: is tunetrail review still running?"
    assert page.find_element(By.ID, "again").is_displayed()
    assert violations(page) == []
    assert chosen(page) == [True, False]
    page.execute_script("unsaved.clear()")  # or the browser asks whether to leave


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_axe_finds_nothing_wrong(page: Chrome, width: int, scheme: str) -> None:
    look(page, width=width, scheme=scheme)
    assert violations(page) == []
    press(page, "1", "b", "c", Keys.ESCAPE)
    settled(page)
    assert violations(page) == []
    press(page, Keys.ARROW_RIGHT)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == []
