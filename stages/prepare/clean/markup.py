"""Remove HTML tags, and nothing that merely looks like one."""

import html
import re

from stages.text.fixpoint import settle


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
