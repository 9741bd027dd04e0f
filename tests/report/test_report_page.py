"""The page for everyone: structure for screen readers, contrast in light, dark and print."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from example_run import make_run
from page_check import Element, Page

from stages.core import paths
from stages.report.__main__ import main

CSS = Path(__file__).parents[2] / "stages/report/report.css"
_ON_PAPER = ("ink", "soft", "link", "pass", "marginal", "fail", "first", "second")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Element:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_run(folder)
        main()
        return Page(paths.REPORT_HTML.read_text("utf-8")).root


def test_language_title_and_landmarks(root: Element) -> None:
    assert root.all("html")[0].attributes["lang"] == "en"
    assert root.all("title")[0].text() == "MARGINAL: Tunetrail report"
    assert [len(root.all(tag)) for tag in ("header", "nav", "main", "h1")] == [1, 1, 1, 1]


def test_headings_skip_no_level(root: Element) -> None:
    levels = [int(heading.tag[1]) for heading in root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_ids_are_unique_and_links_lead_somewhere(root: Element) -> None:
    ids = [one.attributes["id"] for one in _everything(root) if one.attributes.get("id")]
    assert len(ids) == len(set(ids))
    for link in root.all("a"):
        assert (link.attributes["href"] or "")[1:] in ids


def test_every_table_has_a_caption_and_headers_with_scope(root: Element) -> None:
    tables = root.all("table")
    assert len(tables) > 10
    for table in tables:
        assert table.all("caption")[0].text().strip()
        assert all(header.attributes.get("scope") for header in table.all("th"))
        widths = {_width(row) for row in table.all("tr")}
        assert len(widths) == 1, table.all("caption")[0].text()


def test_every_chart_says_what_it_shows(root: Element) -> None:
    charts = [one for one in root.all("svg") if one.attributes.get("role") == "img"]
    assert len(charts) == 2
    assert all(one.attributes.get("aria-hidden") for one in root.all("svg") if one not in charts)
    for chart in charts:
        named = (chart.attributes["aria-labelledby"] or "").split()
        assert [one.attributes["id"] for one in chart.all("title", "desc")] == named
        assert all(one.text().strip() for one in chart.all("title", "desc"))
    assert "adapter: 95.8 %, 85.7 to 99.5 %." in charts[0].all("desc")[0].text()
    labels = {text.text() for text in charts[1].all("text")}
    assert {"training step", "loss (nats per token, logarithmic)"} <= labels


def test_regions_that_scroll_can_be_reached_by_key(root: Element) -> None:
    regions = [one for one in root.all("div") if one.attributes.get("class") == "scroll"]
    assert regions
    assert all(one.attributes.get("tabindex") == "0" and one.attributes.get("aria-label") for one in regions)


def test_no_state_is_told_by_colour_alone(root: Element) -> None:
    states = [one for one in root.all("span") if (one.attributes.get("class") or "").startswith("state")]
    assert states
    assert all(re.fullmatch("✓ PASS|≈ MARGINAL|✕ FAIL", one.text()) for one in states)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_stands_out_from_its_background(scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: at least 4.5 to 1."""
    colours = _colours(scheme)
    for background in ("paper", "panel"):
        for name in _ON_PAPER:
            assert _contrast(colours[name], colours[background]) >= 4.5, f"{name} on {background} in {scheme}"


def _everything(element: Element) -> list[Element]:
    return [element, *(inner for child in element.children for inner in _everything(child))]


def _width(row: Element) -> int:
    return sum(int(cell.attributes.get("colspan") or 1) for cell in row.children)


def _colours(scheme: str) -> dict[str, str]:
    css = CSS.read_text("utf-8")
    start = {"light": 0, "dark": css.index("prefers-color-scheme: dark"), "print": css.index("@media print")}[scheme]
    block = css[css.index(":root", start) :].partition("}")[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]+);", block))


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
