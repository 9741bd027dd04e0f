"""How numbers and untrusted text are put on a page."""

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from stages.report import formats


def test_numbers_in_words() -> None:
    assert formats.percent(0.97916) == "97.9 %"
    assert formats.points(-0.0417) == "−4.2 points"
    assert formats.points(0.5) == "+50.0 points"
    assert formats.points(-0.0) == formats.points(0.00004).removeprefix("+") == "0.0 points"
    assert formats.p_value(0.0004) == "p < 0.001"
    assert formats.size(999) == "999 bytes"
    assert formats.size(269_060_552) == "269.1 MB"
    assert formats.size(5e12) == "5000.0 GB"
    assert formats.signed(0.0312) == "+0.0312"
    assert formats.signed(-3.5) == "−3.5"
    assert formats.rough(2628) == "2,600"
    assert formats.rough(188) == "190"
    assert formats.rough(7) == "7"
    assert formats.plural(1, "row") == "1 row"
    assert formats.plural(1200, "row") == "1,200 rows"


def test_long_text_is_cut_and_says_so() -> None:
    assert formats.excerpt("x" * 20, 10) == "x" * 10 + " … (the first 10 of 20 characters)"
    assert formats.excerpt("x" * 10, 10) == "x" * 10


@given(st.text())
def test_invisible_characters_are_made_visible(text: str) -> None:
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", formats.visible(text)
    )


@given(st.text(alphabet="`|\\a \n<*", max_size=30))
def test_a_code_span_stays_in_its_cell(text: str) -> None:
    span = formats.markdown_code(text)
    assert "\n" not in span
    fence = re.match("`*", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])] if fence[0] else span
    assert span.endswith(fence[0])
    assert fence[0] not in inner or "`" not in text
    assert not re.search(r"(?<!\\)\|", span)


@given(st.text(alphabet="`|\\a \n<*[_&", max_size=30))
def test_markdown_text_holds_no_markup(text: str) -> None:
    said = formats.markdown_text(text)
    assert "\n" not in said
    assert "<" not in said
    assert not re.search(r"(?<!\\)[`|*\[_]", said.replace("\\\\", ""))
    assert html.unescape(re.sub(r"\\(.)", r"\1", said)) == " ".join(text.split())


@given(
    st.lists(
        st.sampled_from(
            ["@team", "https://a.example/x", "www.a.example", "#12", "GH-3", "a@b.example", "<!--", "a", " "]
        )
    )
)
def test_nothing_in_markdown_text_becomes_a_mention_or_a_link(parts: list[str]) -> None:
    text = "".join(parts)
    said = formats.markdown_text(text)
    assert not re.search(r"@\w|://|www\.|#\d|GH-\d", said, re.IGNORECASE)
    shown = MarkdownIt("gfm-like", {"linkify": False}).renderInline(said.replace("\u2060", ""))
    assert html.unescape(re.sub("<[^>]*>", "", shown)).strip() == " ".join(text.split())
