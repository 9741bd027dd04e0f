"""The text operators: which are on, in which order, and how they come to rest.

Each is a pure function of text. The order matters: mojibake first, because the later operators would
remove bytes that it needs; personal data last, because it looks for what a reader would see.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

from stages.params import Clean
from stages.prepare.clean.markup import strip_html
from stages.prepare.clean.mojibake import fix_mojibake
from stages.prepare.clean.whitespace import normalise
from stages.text.fixpoint import settle
from stages.text.personal_data import masker

NAMES = ("mojibake", "html", "whitespace", "personal_data")
Operator = Callable[[str], str]

_REMEMBERED = 1024  # texts, as long as the limits of prompts allow


def chosen_operators(params: Clean) -> dict[str, Operator]:
    """The operators that the parameters switch on, by the name that the metrics use, in their order."""
    operators: dict[str, Operator] = {}
    if params.fix_mojibake:
        operators["mojibake"] = fix_mojibake
    if params.strip_html:
        operators["html"] = strip_html
    if params.normalise_whitespace:
        operators["whitespace"] = normalise
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
