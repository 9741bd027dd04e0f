"""How numbers and texts are put on a page, and the templates that do it."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.core.errors import visible
from stages.text.markdown import markdown_code, markdown_text

_EXCERPT = 700


def percent(share: float) -> str:
    return f"{_rounded(share * 100, 1)} %"


def points(difference: float) -> str:
    """A change of a share, in percentage points, always with its sign."""
    text = _rounded(difference * 100, 1)
    return f"{'+' if difference > 0 else ''}{text} points".replace("-", "−")


def signed(difference: float) -> str:
    """A change of a number, always with its sign."""
    return f"{'+' if difference > 0 else ''}{number(difference)}".replace("-", "−")


def between(form: Callable[[float], str], low: float, high: float) -> str:
    """Both ends of an interval, with their unit once: "+1.0 to +3.0 points"."""
    first, last = form(low), form(high)
    unit = re.search(" (points|%)$", last)
    return f"{first.removesuffix(unit[0])} to {last}" if unit else f"{first} to {last}"


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {_rounded(value, 3)}"


def whole(count: float) -> str:
    return f"{count:,.0f}"


def number(value: float) -> str:
    """About four digits, never in exponent form between 0.001 and a million."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, singular: str, many: str = "") -> str:
    """ "1 row", "2 rows"; "2 replies" where `many` says so."""
    return f"{count:,} {singular if count == 1 else many or singular + 's'}"


def words(identifier: str) -> str:
    """A key of ours as words: invalid_json is "invalid json"."""
    return identifier.replace("_", " ")


def listed(counts: Mapping[str, int]) -> str:
    """What there is any of, as "near 19, exact 9"."""
    return ", ".join(f"{words(name)} {whole(rows)}" for name, rows in counts.items() if rows)


def excerpt(text: str, limit: int = _EXCERPT) -> str:
    """The text with what cannot be seen made visible, cut where it is long."""
    shown = visible(text[:limit])
    return shown if len(text) <= limit else f"{shown} … (the first {limit} of {len(text):,} characters)"


def value_text(value: Any) -> str:
    """A JSON value as one line of text."""
    return excerpt(json.dumps(value, ensure_ascii=False))


def render(template: str, values: dict[str, Any]) -> str:
    """Fill a template of this folder; in HTML every value is escaped, and a missing one is an error."""
    return environment().get_template(template).render(values)


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (excerpt, listed, markdown_code, markdown_text, number, percent, plural, visible, whole, words)
    made.filters.update({one.__name__: one for one in filters})
    made.globals.update(between=between, percent=percent, points=points)
    return made


def _rounded(value: float, digits: int) -> str:
    """Fixed digits, without a minus before zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not float(text) else text
