"""The text operators: mojibake, HTML, white space and personal data; which are on, and how they come to rest.

Each is a pure function of text. The order matters: mojibake first, because the later operators would remove bytes
that it needs; personal data last, because it looks for what a reader would see.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import chain, pairwise
from typing import NamedTuple

from stages.params.prepare import Clean
from stages.text.normal_form import settle

NAMES = ("mojibake", "html", "whitespace", "personal_data")
Operator = Callable[[str], str]

_REMEMBERED = 1024  # texts, as long as the limits of prompts allow

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# The narrow space of Mongolian shapes the letters beside it.
_SPACES = re.compile("[\xa0\u2000-\u200a\u205f]|(?<![\u1800-\u18af])\u202f(?![\u1800-\u18af])")
_TRAILING = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u2061-\u2064\ufeff]")
_BIDIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
# Joiners, zero-width spaces and anchors shape scripts from Hebrew on and emoji; beside others they do nothing.
_JOINERS = "\u200b-\u200d\u2060\ufff9-\ufffb"
_SHAPED = "\u0590-\u1fff\u2640\u2642\u2c00-\ufefe\uff00-\ufff8\U00010000-\U0010ffff"
_STRAY_JOINERS = re.compile(f"(?<![{_JOINERS}{_SHAPED}])[{_JOINERS}]+(?![{_JOINERS}{_SHAPED}])")
# Most texts: one line of ASCII words.
_PLAIN = re.compile("[!-~]+(?: +[!-~]+)*")


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_BLOCK = _names(
    """address article aside blockquote body br center dd div dl dt footer form h1 h2 h3 h4 h5 h6 head header hr html
    li main meta nav ol p pre section table tbody td tfoot th thead title tr ul !doctype"""
)
_INLINE = _names(
    """a abbr b big button cite code del em font i img input ins kbd label link mark q s samp small span strike strong
    style script sub sup u var wbr"""
)
_KNOWN = _BLOCK | _INLINE
_VOID = {"br", "hr", "img", "input", "link", "meta", "wbr", "!doctype"}
_HIDDEN = ("script", "style")
_MARKUP = re.compile(
    r"(?P<fence>```)|(?P<code>`[^`\n]+`)|(?P<comment><!--)|(?P<element><(?P<close>/)?(?P<tag>!doctype|[a-z][a-z0-9]*)"
    r"(?:\s[^<>]*?)?(?P<closed>/)?>)|(?P<other><[a-z!?/])",
    re.IGNORECASE,
)
_ENDS = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _HIDDEN} | {"comment": re.compile("-->")}
_UNSPACED = "\u0e00"  # Thai and most scripts behind it
_ENDINGS = [*".,;!?…"]


def chosen_operators(params: Clean, mask: Operator) -> dict[str, Operator]:
    """The operators that the parameters switch on, by the name that the metrics use, in their order."""
    operators: dict[str, tuple[bool, Operator]] = {
        "mojibake": (params.fix_mojibake, fix_mojibake),
        "html": (params.strip_html, strip_html),
        "whitespace": (params.normalise_whitespace, normalise_whitespace),
        "personal_data": (bool(params.mask_personal_data), mask),
    }
    return {name: operator for name, (is_on, operator) in operators.items() if is_on}


class Step(NamedTuple):
    """A change: the operator's name, the text before, the text after."""

    operator: str
    before: str
    after: str


def apply(operators: Mapping[str, Operator], text: str) -> tuple[str, tuple[Step, ...]]:
    """Run the operators until none changes the text, so that a clean one stays as it is; with each change."""
    steps = []

    def once(text: str) -> str:
        for name, operate in operators.items():
            before, text = text, operate(text)
            if text != before:
                steps.append(Step(name, before, text))
        return text

    return settle(once, text), tuple(steps)


def cleaner(operators: Mapping[str, Operator]) -> Callable[[str], tuple[str, tuple[Step, ...]]]:
    """`apply` for these operators, which remembers the last texts: labels and values come again and again."""
    return lru_cache(_REMEMBERED)(partial(apply, operators))


def fix_mojibake(text: str) -> str:
    """Undo wrong decodings with ftfy, its encoding steps alone: quotes, widths and ligatures stay as typed."""
    return text if text.isascii() else settle(_fix_once, text)


def _fix_once(text: str) -> str:
    import ftfy  # late: most texts are ASCII, and the import takes longer than the rest of the start

    # Lossy sequences are left alone: ftfy would put a replacement character where it has to guess.
    config = ftfy.TextFixerConfig(replace_lossy_sequences=False, explain=False)
    return str(ftfy.fix_encoding(text, config))


def normalise_whitespace(text: str) -> str:
    """NFC, line feeds as line ends, plain spaces, nothing invisible, no space at line ends or around the text."""
    return text if _PLAIN.fullmatch(text) else settle(_normalise_whitespace_once, text)


def _normalise_whitespace_once(text: str) -> str:
    text = _STRAY_JOINERS.sub("", _CONTROLS.sub("", _LINE_ENDS.sub("\n", text)))
    if not _RIGHT_TO_LEFT.search(text):
        text = _BIDIRECTIONAL.sub("", text)
    text = _TRAILING.sub("", unicodedata.normalize("NFC", _SPACES.sub(" ", text))).strip("\n")
    indent = text[: len(text) - len(text.lstrip(" \t"))]
    lines = text.split("\n")
    # A block of code keeps the indentation that all of its lines have.
    is_block = len(lines) > 1 and all(line.startswith(indent) for line in lines if line)
    return text if is_block else text[len(indent) :]


def strip_html(text: str) -> str:
    """The text of a text that is written in HTML: without tags, comments, scripts and styles, references decoded.

    It is written in HTML if all that looks like a tag, outside of code between backticks, is one of HTML, every
    element is closed, and none stands in a sentence like a word, as in "use <br> here" or "<b>x</b> is bold". Any
    other text is left as it is: it is about markup or of another language. So is one that would be HTML again.
    """
    if (tokens := _tokens(text)) is None or not _is_html(text, tokens):
        return text
    plain = _shown(text, tokens)
    again = _tokens(plain)
    return plain if again is None or not _is_html(plain, again) else text


def has_tags(text: str) -> bool:
    return any(match["element"] or match["other"] for match in _MARKUP.finditer(text))


class _Token(NamedTuple):
    """A piece of code, a tag or all of a comment, script or style: where it is, what, and the name of the tag."""

    start: int
    end: int
    kind: str
    name: str


def _tokens(text: str) -> list[_Token] | None:
    """None where something that looks like a tag is none of HTML or never ends."""
    tokens, at = [], 0
    while match := _MARKUP.search(text, at):
        kind, name = str(match.lastgroup), (match["tag"] or "").lower()
        at = match.end()
        if kind == "fence":
            end = text.find("```", at)
            at, kind = (end + 3, "code") if end >= 0 else (at, "")
        elif kind == "comment" or (name in _HIDDEN and not match["close"]):
            closing = _ENDS["comment" if kind == "comment" else name].search(text, at)
            if not closing:
                return None
            at, kind = closing.end(), "void"
        elif kind == "other" or (name and name not in _KNOWN):
            return None
        elif name:
            kind = "close" if match["close"] else "void" if name in _VOID or match["closed"] else "open"
        if kind:
            tokens.append(_Token(match.start(), at, kind, name))
    return tokens


def _is_html(text: str, tokens: list[_Token]) -> bool:
    opened: list[str] = []
    elements: list[tuple[int, int]] = []  # those in no other one; where one follows another, both together
    for token in tokens:
        if token.kind == "code":
            continue
        if not opened:
            follows = elements and elements[-1][1] == token.start
            elements.append((elements.pop()[0] if follows else token.start, token.end))
        if token.kind == "open":
            opened.append(token.name)
        elif token.kind == "close" and (not opened or opened.pop() != token.name):
            return False
        elements[-1] = (elements[-1][0], token.end)
    outside = pairwise([0, *chain.from_iterable(elements), len(text)])
    is_all = not any(text[start:end].strip() for start, end in list(outside)[::2])
    return bool(elements) and not opened and (is_all or not any(_is_word(text, *element) for element in elements))


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether nothing is written close to it, in a script that puts spaces between words."""
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    if before.isalnum() or after.isalnum():
        return max(before if before.isalnum() else "", after if after.isalnum() else "") >= _UNSPACED
    return before not in _ENDINGS


def _shown(text: str, tokens: list[_Token]) -> str:
    """What a browser would show, a line for each block."""
    pieces = [""]
    end, break_due = 0, False
    for token in [*tokens, _Token(len(text), len(text), "", "")]:
        parts = [html.unescape(text[end : token.start]), text[token.start : token.end] if token.kind == "code" else ""]
        for part in filter(None, parts):
            if break_due and pieces[-1] and not pieces[-1].endswith("\n") and not part.lstrip(" ").startswith("\n"):
                pieces.append("\n")
            pieces.append(part)
            break_due = False
        end = token.end
        if token.name in ("td", "th"):
            pieces += [" "] if token.kind == "open" and not break_due else []
        elif token.name in _BLOCK:
            break_due = True
    return "".join(pieces)
