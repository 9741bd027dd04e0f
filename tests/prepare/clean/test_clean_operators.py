"""The text operators: what each changes, what it leaves, and that twice is once."""

import contextlib
import sys
import time
import unicodedata

import pytest
from hypothesis import assume, example, given, settings
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
        ('<p><a href="https://example.com?a=1&b=2">link</a> text</p>', "link text"),
        ("<p>fish &amp; chips &euro;5</p>", "fish & chips €5"),
        ("<!-- hidden --><p>shown</p>", "shown"),
        ("<style>p {color: red}</style><p>text</p><script>if (a < b) {}</script>", "text"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("<p>1 < 2 and 3 > 2</p>", "1 < 2 and 3 > 2"),
        ("<p>use `<b>` for bold</p>", "use `<b>` for bold"),
        ("<div>```\n<p>&amp;</p>\n```</div>", "```\n<p>&amp;</p>\n```"),
        ("<p>write &lt;br&gt; here</p>", "write <br> here"),
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
        "<p>&lt;b&gt;bold&lt;/b&gt;</p>",
        "a <!-- comment --> is written like this",
        "What does <p>Hello</p> show?",
        "Use <br> or <hr>, not <p>.",
        "使用<br>换行，<b>标签</b>加粗",
        "HTML: (<b>x</b>)",
        'I <b>never</b> said "<i>yes</i>"',
        "<p>see <tool>x</tool></p>",
        "<p>half",
        "half</p>",
        "<b><i>crossed</b></i>",
        "<think>two steps</think><answer>4</answer>",
        "<p>mail <jane@example.com></p>",
    ],
)
def test_what_only_looks_like_a_tag_stays(text: str) -> None:
    assert strip_html(text) == text


CODE = {
    "python": "    def f(a, b: dict[str, int] | None = None):\n        return a @ b.sum() if a < b else a[1::2]\n",
    "c++": "#include <vector>\nstd::vector<std::pair<int, b>> v; v.push_back({1 << 2, a->b}); // x<y>z\n",
    "java": "List<A> a = new ArrayList<>(); Map<A, B> m; if (a < b && b > c) { f(a::b); }",
    "typescript": "const f = <T,>(x: T): Array<T> => [x]; // &amp; &lt;\ntype A = Promise<Record<s, u>>;",
    "jsx": "function App() {\n  return (\n    <div className='a'>\n      <p>Hello, {name}</p>\n    </div>\n  );\n}",
    "rust": "fn f<'a>(x: &'a str) -> Result<Vec<u8>, Box<dyn Error>> { x.parse::<i64>()?; Ok(vec![0xff]) }",
    "go": "ch <- v\nfor i := 0; i < 10; i++ {\n\tfmt.Println(i, a&b)\n}",
    "php": '<?php if ($a < $b) { echo "<b>$a</b>"; } ?>\n<p><?= $b ?></p>',
    "sql": "SELECT a FROM t WHERE a <> 'x' AND b <= 3 AND c LIKE '%<b>%' -- <p>",
    "bash": "cat <<EOF > a.txt\nhost 127.0.0.1\nEOF\nsort < a.txt 2>&1; git clone git@github.com:owner/name.git",
    "haskell": "f :: (a -> b) -> [a]\nf x = x <$> y <*> z <|> w",
    "regex": "(?P<year>\\d{4})-(?<b>[^<>]+)</(?P=tag)>|<[^>]+>",
    "latex": "\\begin{tabular}{c} a & b \\\\ 1 < 2 \\end{tabular}",
    "make": "all: a.o\n\tcc -o $@ $<",
    "xml": "<order id='7'><title>Lamp</title><p>red</p><x:note/></order>",
    "svg": '<svg viewBox="0 0 1 1"><a><title>t</title></a></svg>',
    "vue": "<template>\n  <p v-if='a < b'>{{ a }}</p>\n</template>",
    "jinja": "{% for a in b %}<a href='{{ a }}'>{{ a }}</a> {% endfor %}",
}


@pytest.mark.parametrize("language", CODE)
def test_code_is_left_alone(language: str) -> None:
    code = CODE[language].rstrip("\n")
    assert apply(OPERATORS, code) == (code, ())


TAG = st.sampled_from(["answer", "think", "order", "tool_call", "Item", "x:y", "T"])
XML = st.recursive(
    st.sampled_from(["red", "a & b", "", "<br/>", "<p>text</p>"]),
    lambda inner: st.builds(lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>", TAG, st.lists(inner, max_size=3)),
).filter(lambda text: any(f"<{tag}>" in text for tag in ("answer", "think", "order", "tool_call", "Item", "x:y", "T")))


@given(before=st.sampled_from(["", "<p>", "Answer in XML: "]), xml=XML)
def test_a_text_with_one_foreign_tag_is_stripped_of_none(before: str, xml: str) -> None:
    assert strip_html(before + xml) == before + xml


SCRIPTS = {
    "arabic": "\u2067مرحبا بالعالم\u2069 ه\u200d. ق",
    "persian": "می\u200cخواهم خانه\u200cها",
    "hebrew": "שָׁלוֹם \u202bעולם\u202c",
    "devanagari": "क्\u200dष र्\u200d नमस्ते क्\u200cष",
    "bengali": "র\u200d্যাব বাংলা",
    "tamil": "தமிழ் க்\u200cஷ",
    "malayalam": "അവന്\u200d മലയാളം",
    "sinhala": "ශ්\u200dරී ලංකා",
    "kannada": "ಕ್ರ್\u200dಯ ಕನ್ನಡ",
    "telugu": "క్\u200cష తెలుగు",
    "thai": "ภาษา\u200bไทย",
    "lao": "ພາສາ\u200bລາວ",
    "khmer": "ភាសា\u200bខ្មែរ",
    "burmese": "မြန်မာ\u200bဘာသာ",
    "tibetan": "བོད་ཡིག། ཤིས།",
    "mongolian": "ᠮᠣᠩᠭᠣᠯ\u202fᠤᠨ ᠬᠡᠯᠡ\u180e",
    "chinese": "葛\U000e0100城市，　中文",
    "japanese": "日本語、ひらがな カタカナ",
    "korean": "한국어 \u1112\u119e\u11ab",
    "ethiopic": "አማርኛ ፤ ሰላም",
    "georgian": "ქართული ენა",
    "armenian": "հայերեն՝ լեզու",
    "greek": "Ελληνικά: ἄνθρωπος",
    "cyrillic": "Ёлка и церковнославѧнскїй",
    "french": "L’été à Noël, façade œuvre",
    "portuguese": "NÃO, CORAÇÃO À MÃE",
    "vietnamese": "Tiếng Việt được ưa chuộng",
    "yoruba": "Ẹ kú àárọ̀",
    "emoji": "👩\u200d👧 🏃\u200d♀️ 👁️\u200d🗨️ 🏴\U000e0067\U000e0062\U000e007f",
    "cuneiform": "𒀀𒁀 𓀀𓐱𓁐",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_character_that_a_script_needs_is_taken_away(script: str) -> None:
    text = unicodedata.normalize("NFC", SCRIPTS[script])
    assert apply(OPERATORS, text) == (text, ())


def test_every_letter_mark_number_sign_and_symbol_of_unicode_stays() -> None:
    kept = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "LMNPS"]
    assert len(kept) > 100_000
    text = unicodedata.normalize("NFC", "x".join(kept).strip())
    assert normalise_whitespace(text) == text


LETTERS_OF = st.characters(categories=["Lo", "Lm", "Mn", "Mc", "Nd", "Nl"], min_codepoint=0x370)


@given(words=st.lists(st.text(LETTERS_OF, min_size=1, max_size=6), min_size=1, max_size=5))
@pytest.mark.parametrize("joiner", ["\u200c", "\u200d", "\u200b", "\u2060"])
def test_joiners_stay_where_they_have_an_effect(words: list[str], joiner: str) -> None:
    text = unicodedata.normalize("NFC", joiner.join(words))
    assume(all(word[0] >= "\u0590" and word[-1] >= "\u0590" for word in text.split(joiner)))
    assert normalise_whitespace(text) == text
    assert normalise_whitespace(f"word{joiner} word{joiner}") == "word word"


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
        ("\n    def f():\n        pass\n", "    def f():\n        pass"),
        ("  one line", "one line"),
    ],
)
def test_whitespace_and_unseen_characters(before: str, after: str) -> None:
    assert normalise_whitespace(before) == after
