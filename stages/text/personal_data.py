"""Mask personal data with fixed placeholders: [SECRET] [EMAIL] [IBAN] [CARD] [IP] [PHONE] [PERSON] [LOCATION].

Numbers with a checksum are masked only when it holds, so order numbers and amounts survive.
"""

import ipaddress
import re
from collections.abc import Callable, Collection
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from stages.core.errors import UserError
from stages.params.clean import PersonalData
from stages.text.normal_form import settle

TYPES: tuple[str, ...] = get_args(PersonalData)
NAMES = ("person", "location")  # found by a named-entity model through Presidio (an extra), the others by patterns
_LEAST_SCORE = 0.5  # of 1; Presidio gives what a spaCy model finds 0.85, and less what it trusts less

# Published prefixes of access keys and tokens; a digit is asked for where words could follow the prefix.
_SECRET = re.compile(
    r"""
    -----BEGIN[ ](?P<kind>[A-Z ]*PRIVATE[ ]KEY(?:[ ]BLOCK)?)-----
        (?: .*?-----END[ ](?P=kind)----- | \s*[A-Za-z0-9+/=]{40,}(?:\s+[A-Za-z0-9+/=]{40,})* )
    | (?<=://) [^\s/:@]+:[^\s/:@]+ (?=@[\w.-]+)
    | https://hooks\.slack\.com/services/[\w/]{20,}
    | (?<![\w-]) (?:
        (?:AKIA|ASIA)[0-9A-Z]{16}
        | gh[pousr]_[A-Za-z0-9]{36,255}
        | github_pat_\w{22,255}
        | gl(?:pat|dt|rt|cbt|ptt|soat|oas)-(?=[\w-]*\d)[\w-]{20,}
        | sk-(?=[\w-]*\d)[\w-]{20,}
        | [rs]k_(?:live|test)_[A-Za-z0-9]{16,}
        | whsec_[A-Za-z0-9+/]{24,}
        | xox[abeoprs]-(?=[\w-]*\d)[\w-]{10,}
        | xapp-\d-[\w-]{20,}
        | AIza[\w-]{35}
        | GOCSPX-[\w-]{28}
        | ya29\.[\w-]{30,}
        | hf_[A-Za-z0-9]{30,}
        | npm_[A-Za-z0-9]{36}
        | pypi-AgEIcHlwaS5vcmc[\w-]{50,}
        | SG\.[\w-]{22}\.[\w-]{43}
        | (?:AC|SK)[0-9a-f]{32}
        | (?:dop|doo|dor)_v1_[0-9a-f]{64}
        | shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}
        | dapi[0-9a-f]{32}(?:-\d)?
        | hvs\.[\w-]{24,}
        | lin_api_[A-Za-z0-9]{40}
        | glc_[A-Za-z0-9+/]{32,}={0,2}
        | [0-9]{8,10}:AA[\w-]{33}
        | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}
    ) (?![\w-])
    """,
    re.VERBOSE | re.DOTALL,
)
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24}(?![\w-])")
# Lookaheads, so that candidates may overlap: "2 x 4111..." and "4111... 123" both hold a card number.
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=([A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}))", re.ASCII)
_CARD = re.compile(r"(?<![\w-])(?=([2-6](?:[ -]?[0-9]){12,18}))", re.ASCII)
_IP4 = re.compile(r"(?<![\w.])(?=([0-9]{1,3}(?:\.[0-9]{1,3}){3})(?!\.?\w))")
_IP6 = re.compile(r"(?<![\w:.])(?=((?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]))")
_VERSION = re.compile(r"(?:version|release|firmware|build|update|driver|software)s?:?\s*$", re.IGNORECASE)
_BEFORE = 20  # characters in which such a word would stand
# Issuers by their leading digits, with the lengths that they use (ISO/IEC 7812).
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7]|35)\d{14}|3[47]\d{13}|3[0689]\d{12}|6\d{15,18}", re.ASCII
)
_DIGIT = re.compile(r"\d")
_SEVEN_DIGITS = re.compile(r"\d(?:\W{0,4}\d){6}")


def masker(types: Collection[str], region: str, ner_model: str) -> Callable[[str], str]:
    """A function that masks until nothing of `types` is found.

    `region` is the country of phone numbers without a country code; `ner_model` finds names, if they are asked for.

    Raises:
        UserError: when names are asked for and the libraries or the model for them are not installed.
    """
    steps: list[Callable[[str], str]] = [step for kind, step in _STEPS.items() if kind in types]
    if "phone" in types:
        steps.append(partial(_mask_phones, region=region))
    if names := [kind for kind in NAMES if kind in types]:
        steps.append(name_masker(names, ner_model))

    def once(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return partial(settle, once)


def placeholder(kind: str) -> str:
    return f"[{kind.upper()}]"


def _mask_secrets(text: str) -> str:
    return _SECRET.sub(placeholder("secret"), text)


def _mask_emails(text: str) -> str:
    return _EMAIL.sub(placeholder("email"), text) if "@" in text else text


def _mask_ibans(text: str) -> str:
    return _mask(text, _IBAN, _is_iban, placeholder("iban"))


def _mask_cards(text: str) -> str:
    return _mask(text, _CARD, _is_card, placeholder("card"))


def _mask_ips(text: str) -> str:
    text = _mask(text, _IP4, _is_ip, placeholder("ip")) if "." in text else text
    return _mask(text, _IP6, _is_ip, placeholder("ip")) if ":" in text else text


# In this order: a key may hold what looks like a number of another kind, and a card's number like a phone's.
_STEPS: dict[str, Callable[[str], str]] = {
    "secret": _mask_secrets,
    "email": _mask_emails,
    "iban": _mask_ibans,
    "card": _mask_cards,
    "ip": _mask_ips,
}


def _mask(text: str, candidates: re.Pattern[str], valid: Callable[[str, str], bool], mask: str) -> str:
    """Replace, wherever a candidate starts, its longest whole part that is valid (given a few characters before it)."""
    if not _DIGIT.search(text):
        return text
    pieces, done = [], 0
    for match in candidates.finditer(text):
        start = match.start()
        if start < done:
            continue
        for end in range(match.end(1), start, -1):
            if not text[end : end + 1].isalnum() and valid(text[start:end], text[max(0, start - _BEFORE) : start]):
                pieces += [text[done:start], mask]
                done = end
                break
    return "".join([*pieces, text[done:]])


def _is_iban(number: str, _before: str) -> bool:
    from stdnum import iban  # late, as below: few texts have a candidate

    return bool(iban.is_valid(number, check_country=False))


def _is_card(number: str, _before: str) -> bool:
    from stdnum import luhn

    digits = re.sub("[ -]", "", number)
    return number[-1].isdigit() and bool(_ISSUED.fullmatch(digits) and luhn.is_valid(digits))


def _is_ip(address: str, before: str) -> bool:
    """A valid address; four numbers after "version" or the like are none."""
    if not any(character.isdigit() for character in address) or _VERSION.search(before):
        return False
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _mask_phones(text: str, region: str) -> str:
    if not _SEVEN_DIGITS.search(text):
        return text
    from phonenumbers import Leniency, PhoneNumberMatcher

    pieces, done = [], 0
    for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
        pieces += [text[done : match.start], placeholder("phone")]
        done = match.end
    return "".join([*pieces, text[done:]])


def name_masker(kinds: Collection[str], model: str) -> Callable[[str], str]:
    """A function that replaces the names of `kinds` by their placeholders.

    `model` is a spaCy model, installed as a package or a folder; the first two letters of its name are its language.

    Raises:
        UserError: when Presidio or the model is not installed.
    """
    if not find_spec("presidio_analyzer"):
        raise UserError(
            "clean.mask_personal_data has person or location, for which Presidio must be installed: "
            "pip install 'tunetrail[names]'"
        )
    if not (Path(model).is_dir() or find_spec(model)):  # else Presidio would download it
        raise UserError(f"clean.ner_model: the spaCy model {model!r} is no folder and not installed; install it")
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    language = Path(model).name[:2]
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[language])
    entities = [kind.upper() for kind in kinds]

    def mask(text: str) -> str:
        found = analyzer.analyze(text, language, entities=entities, score_threshold=_LEAST_SCORE)
        spans = sorted((span.start, span.end, f"[{span.entity_type}]") for span in found)
        pieces, done = [], 0
        for start, end, name in spans:
            # A placeholder, also a part of one, is no name.
            if start >= done and not _in_placeholder(text, start, end):
                pieces += [text[done:start], name]
                done = end
        return "".join([*pieces, text[done:]])

    return mask


def _in_placeholder(text: str, start: int, end: int) -> bool:
    opened = text.rfind("[", 0, end)
    return "[" in text[start:end] or (opened >= 0 and "]" not in text[opened:start] and "]" in text[start:])
