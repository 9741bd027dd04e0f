"""How numbers and untrusted text are put on a page."""

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from stages.report import wording


def test_numbers_in_words() -> None:
    assert wording.percent(0.97916) == "97.9 %"
    assert wording.points(-0.0417) == "−4.2 points"
    assert wording.points(0.5) == "+50.0 points"
    assert wording.points(-0.0) == wording.points(0.00004).removeprefix("+") == "0.0 points"
    assert wording.p_value(0.0004) == "p < 0.001"
    assert wording.size(999) == "999 bytes"
    assert wording.size(269_060_552) == "269.1 MB"
    assert wording.size(5e12) == "5000.0 GB"
    assert wording.signed(0.0312) == "+0.0312"
    assert wording.signed(-3.5) == "−3.5"
    assert wording.rough(2628) == "2,600"
    assert wording.rough(188) == "190"
    assert wording.rough(7) == "7"
    assert wording.plural(1, "row") == "1 row"
    assert wording.plural(1200, "row") == "1,200 rows"


def test_long_text_is_cut_and_says_so() -> None:
    assert wording.excerpt("x" * 20, 10) == "x" * 10 + " … (the first 10 of 20 characters)"
    assert wording.excerpt("x" * 10, 10) == "x" * 10


@given(st.text())
def test_invisible_characters_are_made_visible(text: str) -> None:
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", wording.visible(text)
    )


@given(st.text(alphabet="`|\\a \n<*", max_size=30))
def test_a_code_span_stays_in_its_cell(text: str) -> None:
    span = wording.markdown_code(text)
    assert "\n" not in span
    fence = re.match("`*", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])] if fence[0] else span
    assert span.endswith(fence[0])
    assert fence[0] not in inner or "`" not in text
    assert not re.search(r"(?<!\\)\|", span)


@given(st.text(alphabet="`|\\a \n<*[_&", max_size=30))
def test_markdown_text_holds_no_markup(text: str) -> None:
    said = wording.markdown_text(text)
    assert "\n" not in said
    assert "<" not in said
    assert not re.search(r"(?<!\\)[`|*\[_]", said.replace("\\\\", ""))
    assert html.unescape(re.sub(r"\\(.)", r"\1", said)) == " ".join(text.split())
