"""Text that others wrote, on a page of Markdown: all of it is shown, and nothing in it is read as markup."""

import re

from stages.core.errors import visible

_JOINER = "\u2060"
_SPAN = 80  # characters of a text in a cell


def markdown_code(text: str) -> str:
    """The text as one code span, also in a cell of a table; a long one is cut, an empty one is a space."""
    short = visible(text[:_SPAN]) + "…" * (len(text) > _SPAN)
    one_line = " ".join(short.split()).replace("|", "\\|") or " "
    fence = _longer_than("`", one_line)
    return f"{fence} {one_line} {fence}" if "`" in one_line else f"{fence}{one_line}{fence}"


def markdown_block(text: str) -> str:
    """The text as a block of code, to the letter but for what cannot be seen."""
    fence = _longer_than("`", f"``{text}``")
    return f"{fence}\n{visible(text)}\n{fence}"


def markdown_text(text: str) -> str:
    """The text as one line of Markdown in which nothing is read as markup, also where it is escaped once more.

    GitHub finds mentions, issues and addresses in text that is escaped, too: a word joiner (U+2060), which nobody
    sees, parts them.
    """
    plain = " ".join(visible(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    escaped = re.sub(r"([\\`*_{}\[\]>#|~])", r"\\\1", plain)
    begun = re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", escaped)  # a list, a rule or the line below a heading
    live = re.compile(r"(@|:(?=//)|w(?=ww\.)|G(?=H-\d)|#(?=\d))", re.IGNORECASE)
    return live.sub(rf"\1{_JOINER}", begun)


def _longer_than(mark: str, text: str) -> str:
    return mark * (max(map(len, re.findall(f"{mark}+", text)), default=0) + 1)
