"""Text that others wrote stays text on a page of Markdown."""

import html
import re

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from stages.core.errors import visible
from stages.text import markdown


@given(st.text(alphabet="`|\\a \n<*", max_size=30))
def test_a_code_span_stays_in_its_cell(text: str) -> None:
    span = markdown.markdown_code(text)
    assert "\n" not in span
    fence = re.match("`*", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])] if fence[0] else span
    assert span.endswith(fence[0])
    assert fence[0] not in inner or "`" not in text
    assert not re.search(r"(?<!\\)\|", span)


@given(st.text(alphabet="`|\\a \n<*[_&", max_size=30))
def test_markdown_text_holds_no_markup(text: str) -> None:
    said = markdown.markdown_text(text)
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
    said = markdown.markdown_text(text)
    assert not re.search(r"@\w|://|www\.|#\d|GH-\d", said, re.IGNORECASE)
    shown = MarkdownIt("gfm-like", {"linkify": False}).renderInline(said.replace("\u2060", ""))
    assert html.unescape(re.sub("<[^>]*>", "", shown)).strip() == " ".join(text.split())


_HOSTILE = st.text(alphabet="`~#-+=*_>|<&1.) \\n\\ta[]()!\\\\", max_size=20) | st.text(max_size=20)


@given(_HOSTILE)
@example("---")
@example("===")
@example("12. a")
@example("- a")
def test_markdown_text_opens_no_block(text: str) -> None:
    """A list, a rule, a heading, a table, a quotation, code: at the start of a line and below another."""
    for before in ("", "a\n", "- a\n", "a\n\n"):
        assert _blocks(before + (markdown.markdown_text(text) or "x")) == _blocks(f"{before}x")


def _blocks(page: str) -> list[str]:
    return [token.type for token in MarkdownIt("gfm-like", {"linkify": False}).parse(page)]


@given(_HOSTILE)
@example("```\n# a")
def test_a_block_holds_the_text_and_ends(text: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(f"a\n\n{markdown.markdown_block(text)}\n\nb")
    assert [token.type for token in tokens if token.type != "inline"] == [
        *("paragraph_open", "paragraph_close", "fence", "paragraph_open", "paragraph_close")
    ]
    assert tokens[3].content == visible(text).rstrip("\n") + "\n" * (len(text) - len(text.rstrip("\n")) + 1)


@given(_HOSTILE)
@example("")
def test_a_code_span_is_one(text: str) -> None:
    inline = MarkdownIt("gfm-like", {"linkify": False}).parse(f"a {markdown.markdown_code(text)} `b`")[1].children or []
    assert [token.type for token in inline] == ["text", "code_inline", "text", "code_inline"]
