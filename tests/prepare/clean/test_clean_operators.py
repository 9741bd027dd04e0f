"""The text operators: what each changes, what it leaves, and that twice is once."""

import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.prepare.clean.operators import Operator, apply, fix_mojibake, normalise_whitespace, strip_html
from stages.text.normal_form import Unsettled, settle
from stages.text.personal_data import TYPES, masker

mask = masker(TYPES[:6], "US", "")
OPERATORS: dict[str, Operator] = {
    "mojibake": fix_mojibake,
    "html": strip_html,
    "whitespace": normalise_whitespace,
    "personal_data": mask,
}
# Pieces that meet each other badly: markup in code, references that decode to markup, halves of everything.
MARKUP = "<b> </b> <p> </p> <br> <i <a href='x'> </a> &lt; &gt; &amp; &ltb> &#96; ` ``` <!-- --> <td> < > & lt; b>"
NUMBERS = "555-0132 415- +1 (212) 4111 1111 DE89 3704 0044 0532 0130 00 192.0 .2.1 :: 2001:db8 sk- AKIA [EMAIL] x@y.co"
UNSEEN = ["\xa0", "\u200b", "\u200d", "\xad", "\r", "\n", "\r\n", "\u2028", "\x85", "\x00", "\u0301", " "]
LETTERS = "Ã© â€™ Ã Â e\u0301 \u226e \u2126 <script> </script> <title> </title> a 1 - . @ : 🍕"
PIECES = st.sampled_from([*MARKUP.split(), *NUMBERS.split(), *LETTERS.split(), *UNSEEN])
MESSY = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join) | st.text()


@pytest.mark.parametrize("name", OPERATORS)
@given(text=MESSY)
@example(text="<b>&#96;</b> `<i>x</i>`")
@example(text="<<b>b>x</b>")
@example(text="<p>&lt;b&gt;bold&lt;/b&gt;</p>")
@example(text="e\u200b\u0301")
def test_each_operator_twice_is_once(name: str, text: str) -> None:
    once = OPERATORS[name](text)
    assert OPERATORS[name](once) == once


@settings(max_examples=200)
@given(text=MESSY)
@example(text="<\u200bb>x<\u200b/b>")
@example(text="415-\u200b555-0132")
@example(text="jane@<b></b>example.com")
def test_all_operators_twice_are_once(text: str) -> None:
    once = apply(OPERATORS, text)[0]
    assert apply(OPERATORS, once) == (once, ())
    once.encode()  # whatever goes in, what comes out can be written


@given(text=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_plain_words_are_left_alone(text: str) -> None:
    words = "".join(c for c in text if c.isalpha() or c == " ").strip()
    assert apply(OPERATORS, words) == (words, ())


def test_a_text_that_never_rests_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(Unsettled, match="still changes after 100 rounds"):
        settle(lambda text: text + "x", "")


@pytest.mark.parametrize(
    "piece", ["a.", "1 ", "a:", "<b", "<!--", "`a", "&amp;", "a@", "+1", "sk-", "DE89 ", " \n", "Ã©"]
)
@pytest.mark.parametrize("around", ["{}", "<b>{}</b>", "-----BEGIN PRIVATE KEY-----{}@"])
def test_no_text_keeps_the_operators_busy(piece: str, around: str) -> None:
    text = around.format(piece * (8000 // len(piece)))
    start = time.process_time()
    with contextlib.suppress(Unsettled):
        apply(OPERATORS, text)
    assert time.process_time() - start < 2


def test_each_change_is_observed_by_name() -> None:
    text, seen = apply(OPERATORS, "<p>CafÃ© </p>")
    assert text == "Café"
    assert [name for name, _, _ in seen] == ["mojibake", "html", "whitespace"]
    assert seen[0] == ("mojibake", "<p>CafÃ© </p>", "<p>Café </p>")


@pytest.mark.parametrize(
    ("garbled", "meant"),
    [
        ("CafÃ© NoÃ«l", "Café Noël"),
        ("itâ€™s", "it’s"),
        ("price â‚¬5", "price €5"),
        ("schÃƒÂ¶n", "schön"),  # garbled twice
        ("both: é and Ã©", "both: é and é"),
    ],
)
def test_mojibake_is_repaired(garbled: str, meant: str) -> None:
    assert fix_mojibake(garbled) == meant


@pytest.mark.parametrize(
    "text", ["“curly” ‘quotes’", "ＦＵＬＬ width", "ﬁ ligature", "Ａ½", "São Paulo", "&eacute;", "Ã", "5 €"]
)
def test_what_is_no_mojibake_stays_as_typed(text: str) -> None:
    assert fix_mojibake(text) == text


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("<p>Hi <b>you</b></p><p>there</p>", "Hi you\nthere"),
        ("a<br/>b<BR>\nc", "a\nb\nc"),
        ('<a href="https://example.com?a=1&b=2">link</a> text', "link text"),
        ("<p>fish &amp; chips &euro;5</p>", "fish & chips €5"),
        ("<!-- hidden --> shown", " shown"),
        ("<style>p {color: red}</style><p>text</p><script>if (a < b) {}</script>", "text"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("<p>1 < 2 and 3 > 2</p>", "1 < 2 and 3 > 2"),
        ("<p>use `<b>` for bold</p>", "use `<b>` for bold"),
        ("<div>```\n<p>&amp;</p>\n```</div>", "```\n<p>&amp;</p>\n```"),
        ("<p>write &lt;br&gt; here</p>", "write &lt;br> here"),
        ("<i>one</i>", "one"),
        ("<title>Mail</title>text", "Mail\ntext"),
    ],
)
def test_tags_go_and_text_stays(markup: str, plain: str) -> None:
    assert strip_html(markup) == plain


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "I <3 this",
        "Vec<String> and Map<K, V>",
        "x<y>z",
        "dear <name>, your <title> is <address>",
        "if a<b and b>c",
        "fish &amp; chips &lt;3",
        "`<p>code</p>`",
        "```\n<div>\n</div>\n```",
        "use <script> to load it",
        "an arrow <- and <= and <>",
        "#include <vector>",
        "a <!-- that never ends",
    ],
)
def test_what_only_looks_like_a_tag_stays(text: str) -> None:
    assert strip_html(text) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\rc\u2028d\u2029e\x0bf\x85g", "a\nb\nc\nd\ne\nf\ng"),
        ("  two  spaces \t\n end \n\n", "two  spaces\n end"),
        ("Cafe\u0301", "Café"),
        ("zero\u200bwidth\ufeff\u2060 soft\xadhyphen", "zerowidth softhyphen"),
        ("bell\x07 nul\x00 del\x7f escape\x1b", "bell nul del escape"),
        ("no\xa0break\u202fthin\u2009", "no break thin"),
        ("over\u202eride\u202c", "override"),
        ("stray\u200d joiner\u200c", "stray joiner"),
        ("👩\u200d👧 می\u200cخواهم", "👩\u200d👧 می\u200cخواهم"),
        ("tab\tstays, “quotes” stay", "tab\tstays, “quotes” stay"),
    ],
)
def test_whitespace_and_unseen_characters(before: str, after: str) -> None:
    assert normalise_whitespace(before) == after
