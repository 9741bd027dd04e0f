"""The text operators: mojibake, HTML, white space and personal data; which are on, and how they come to rest.

Each is a pure function of text. The order matters: mojibake first, because the later operators would remove bytes
that it needs; personal data last, because it looks for what a reader would see.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

from stages.params.clean import Clean
from stages.text.normal_form import settle
from stages.text.personal_data import masker

NAMES = ("mojibake", "html", "whitespace", "personal_data")
Operator = Callable[[str], str]

_REMEMBERED = 1024  # texts, as long as the limits of prompts allow

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[\xa0\u2000-\u200a\u202f\u205f]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
# Control characters, soft hyphen, zero-width space, word joiner, byte order mark, bidirectional overrides.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]"
)
# Most texts: one line of ASCII words.
_PLAIN = re.compile("[!-~]+(?: +[!-~]+)*")
# Joiners shape emoji and several scripts; beside ASCII or at an edge they do nothing.
_STRAY_JOINERS = re.compile("(?:(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f]))")


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_BLOCK = _names(
    "blockquote body br center dd div dl dt h1 h2 h3 h4 h5 h6 head hr html li meta ol p pre table tbody td tfoot th "
    "thead tr ul !doctype"
)
_INLINE = _names("abbr big code del em font img ins kbd mark samp small span strike strong sub sup wbr")
# Names that prose and source code use between angle brackets too: tags only with attributes or in pairs.
_AMBIGUOUS_BLOCK = _names("address article aside footer form header main nav section title")
_AMBIGUOUS = _AMBIGUOUS_BLOCK | _names("a b button cite i label q s u var")

_TOKEN = re.compile(
    r"""
    (?P<code> ```.*?``` | `[^`\n]+` )
    | (?P<hidden> <!--.*?--> | <(?P<raw>script|style)\b[^<>]*>.*?</(?P=raw)\s*> )
    | (?P<tag> < (?P<close>/?) (?P<name>!doctype|[a-z][a-z0-9]*) (?P<attributes>\s[^<>]*)? /? > )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def chosen_operators(params: Clean) -> dict[str, Operator]:
    """The operators that the parameters switch on, by the name that the metrics use, in their order."""
    operators: dict[str, Operator] = {}
    if params.fix_mojibake:
        operators["mojibake"] = fix_mojibake
    if params.strip_html:
        operators["html"] = strip_html
    if params.normalise_whitespace:
        operators["whitespace"] = normalise_whitespace
    if params.mask_personal_data:
        operators["personal_data"] = masker(params.mask_personal_data, params.phone_region, params.ner_model)
    return operators


class Step(NamedTuple):
    """A change: the operator's name, the text before, the text after."""

    operator: str
    before: str
    after: str


def apply(operators: Mapping[str, Operator], text: str) -> tuple[str, tuple[Step, ...]]:
    """Run the operators over `text` until none changes it, so that cleaning a clean text does nothing.

    Returns the text and each change on the way.

    Raises:
        Unsettled: when the text does not come to rest.
    """
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
    text = _LINE_ENDS.sub("\n", text)
    text = _SPACES.sub(" ", _STRAY_JOINERS.sub("", _INVISIBLE.sub("", text)))
    return _TRAILING.sub("", unicodedata.normalize("NFC", text)).strip(" \t\n")


def strip_html(text: str) -> str:
    """Remove tags, comments, scripts and styles; decode character references if there was anything to remove.

    Text without a tag is returned as it is, so "a < b", "Vec<String>" and "&amp;" survive, as does all
    between backticks. Block tags leave a line break. A tag that only decoding would make keeps its "&lt;".
    """
    return settle(_strip_once, text) if "<" in text else text


def _strip_once(text: str) -> str:
    tokens = _removable(text)
    if not tokens:
        return text
    from selectolax.lexbor import LexborHTMLParser  # late: few texts have tags

    tree = LexborHTMLParser("<!doctype html><body>" + _as_html(text, tokens))
    plain = str(tree.body.text()) if tree.body else ""
    return _escape(plain)


def _removable(text: str) -> list[re.Match[str]]:
    """The tags, comments, scripts and styles of `text`, outside code."""
    tokens = [match for match in _TOKEN.finditer(text) if match["code"] is None]
    opened = {_name(match) for match in tokens if match["name"] and not match["close"]}
    closed = {_name(match) for match in tokens if match["close"]}
    paired = opened & closed
    return [match for match in tokens if match["hidden"] or _is_tag(match, paired)]


def _is_tag(match: re.Match[str], paired: set[str]) -> bool:
    name = _name(match)
    if name in _AMBIGUOUS:
        return name in paired or "=" in (match["attributes"] or "")
    return name in _BLOCK or name in _INLINE


def _name(match: re.Match[str]) -> str:
    return (match["name"] or "").lower()


def _as_html(text: str, tokens: list[re.Match[str]]) -> str:
    """`text` as HTML in which `tokens` alone are markup and block tags are line breaks."""
    pieces: list[str] = []
    end, due = 0, False
    for match in tokens:
        due = _add_text(pieces, text[end : match.start()], due)
        end = match.end()
        if _name(match) in ("td", "th"):
            pieces += [] if due or match["close"] else [" "]
        elif _name(match) in _BLOCK | _AMBIGUOUS_BLOCK:
            due = True
        elif match["tag"]:
            pieces.append(match["tag"])
    _add_text(pieces, text[end:], due)
    return "".join(pieces)


def _add_text(pieces: list[str], text: str, break_due: bool) -> bool:
    """Append text, after a line break if one is due and not there; return whether it is still due."""
    if not text:
        return break_due
    if break_due and pieces and not pieces[-1].endswith("\n") and not text.lstrip(" ").startswith("\n"):
        pieces.append("\n")
    pieces.append("".join(_literal(part) for part in _code_apart(text)))
    return False


def _code_apart(text: str) -> list[tuple[str, bool]]:
    """`text` cut into (piece, is code)."""
    parts, end = [], 0
    for match in _TOKEN.finditer(text):
        if match["code"]:
            parts += [(text[end : match.start()], False), (match["code"], True)]
            end = match.end()
    return [*parts, (text[end:], False)]


def _literal(part: tuple[str, bool]) -> str:
    text, is_code = part
    return html.escape(text, quote=False) if is_code else text.replace("<", "&lt;")


def _escape(text: str) -> str:
    """Keep "&lt;" before what would now be read as a tag: its author wrote about tags."""
    for match in reversed(_removable(text)):
        text = text[: match.start()] + "&lt;" + text[match.start() + 1 :]
    return text
