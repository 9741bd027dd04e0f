"""The text operators: which are on, in which order, and how they come to rest.

Each is a pure function of text. The order matters: mojibake first, because the later operators would
remove bytes that it needs; personal data last, because it looks for what a reader would see.
"""

from collections.abc import Callable, Mapping

from stages.clean.markup import strip_html
from stages.clean.mojibake import fix_mojibake
from stages.clean.personal_data import masker
from stages.clean.settling import settle
from stages.clean.whitespace import normalise
from stages.params import Clean

NAMES = ("mojibake", "html", "whitespace", "personal_data")
Operator = Callable[[str], str]
Observer = Callable[[str, str, str], None]


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


def apply(operators: Mapping[str, Operator], text: str, observe: Observer) -> str:
    """Run the operators over `text` until none changes it, so that cleaning a clean text does nothing.

    `observe` is told each change: the operator's name, the text before, the text after.

    Raises:
        Unsettled: when the text does not come to rest.
    """

    def once(text: str) -> str:
        for name, operate in operators.items():
            before, text = text, operate(text)
            if text != before:
                observe(name, before, text)
        return text

    return settle(once, text)
