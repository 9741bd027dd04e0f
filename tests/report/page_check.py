"""Read a page as a browser would, and collect what a reader or a screen reader needs of it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from stages.report.formats import environment

_VOID = {"meta", "link", "br", "line", "circle", "polyline", "img", "hr", "input"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parts: list["Element | str"] = field(default_factory=list)

    @property
    def children(self) -> list["Element"]:
        return [part for part in self.parts if isinstance(part, Element)]

    def all(self, *tags: str) -> list["Element"]:
        """This element's descendants of these tags, in the order of the page."""
        found = []
        for child in self.children:
            found += [child] * (child.tag in tags) + child.all(*tags)
        return found

    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text() for part in self.parts)


class Page(HTMLParser):
    """`root` holds the tree; ValueError when tags do not close in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("page", {})
        self._open = [self.root]
        self.feed(source)
        self.close()
        if len(self._open) != 1:
            raise ValueError(f"<{self._open[-1].tag}> is never closed")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) != len(names):
            raise ValueError(f"<{tag}> has an attribute twice: {names}")
        element = Element(tag, dict(attrs))
        self._open[-1].parts.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open[-1].tag != tag:
            raise ValueError(f"</{tag}> closes <{self._open[-1].tag}>")
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].parts.append(data)


def sentences(macro: str, *values: Any) -> list[str]:
    """What a macro of the page's facts says: its items or paragraphs, or all of its text."""
    facts = environment().get_template("sections/facts.html.j2").module
    root = Page(str(getattr(facts, macro)(*values))).root
    return [one.text() for one in root.all("li", "p")] or [root.text().strip()]
