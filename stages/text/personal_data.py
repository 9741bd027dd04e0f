"""Mask personal data with fixed placeholders: [SECRET] [EMAIL] [IBAN] [CARD] [IP] [PHONE] [PERSON] [LOCATION].

Numbers with a checksum are masked only when it holds, so order numbers and amounts survive.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import get_args

from stages.core.errors import UserError
from stages.params.prepare import PersonalData
from stages.text.normal_form import settle

TYPES: tuple[str, ...] = get_args(PersonalData)
NAMES = ("person", "location")  # found by a named-entity model through Presidio (an extra), the others by patterns
_LEAST_SCORE = 0.5  # of 1; Presidio gives what a spaCy model finds 0.85, and less what it trusts less

# Published prefixes of access keys and tokens; a digit is asked for where words could follow the prefix.
_SECRET = re.compile(
    r"""
    (?<=://) [^\s/:@]+:[^\s/:@]+ (?=@[\w.-]+)
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
    re.VERBOSE,
)
# Of few kinds, so that an end that is missing is looked for once.
_KEY = re.compile("-----BEGIN ((?:(?:RSA|EC|DSA|OPENSSH|ENCRYPTED|SSH2 ENCRYPTED|PGP) )?PRIVATE KEY(?: BLOCK)?)-----")
_KEY_LINES = re.compile(r"\s*[A-Za-z0-9+/=]{40,}(?:\s+[A-Za-z0-9+/=]{40,})*")
# A product of matrices, `a@b.sum()`, and a remote of git are no addresses.
_EMAIL = re.compile(
    r"(?<![\w.+%-])(?!git@[\w.-]+:)[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24}(?![\w(-])"
)
# Lookaheads, so that candidates may overlap: "2 x 4111..." and "4111... 123" both hold a card number.
_GAP = "[ \xa0\u2007\u2009\u202f\u2010-\u2013-]?"  # spaces and hyphens as typists, and as typesetters write them
_IBAN = re.compile(rf"(?<![A-Za-z0-9])(?=([A-Za-z]{{2}}[0-9]{{2}}(?:{_GAP}[A-Za-z0-9]){{11,30}}))", re.ASCII)
_CARD = re.compile(rf"(?<![\w-])(?=([2-6](?:{_GAP}[0-9]){{12,18}}))", re.ASCII)
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


Span = tuple[int, int, str]  # start, end, type
Values = list[tuple[str, str]]  # type and what was masked


def finder(types: Collection[str], region: str, ner_model: str) -> Callable[[str], tuple[str, Values]]:
    """A function that masks until nothing of `types` is found, and gives the text and what was masked in it."""
    steps: list[Callable[[str], Iterable[Span]]] = [step for kind, step in _STEPS.items() if kind in types]
    if "phone" in types:
        steps.append(partial(_phones, region=region))
    if names := [kind for kind in NAMES if kind in types]:
        steps.append(name_finder(names, ner_model))

    def find(text: str) -> tuple[str, Values]:
        values: Values = []

        def once(text: str) -> str:
            for step in steps:
                text = _mask(text, step(text), values)
            return text

        return settle(once, text), values

    return find


def masker(types: Collection[str], region: str, ner_model: str) -> Callable[[str], str]:
    """As `finder`, without what was masked."""
    find = finder(types, region, ner_model)
    return lambda text: find(text)[0]


def _mask(text: str, spans: Iterable[Span], values: Values) -> str:
    pieces, done = [], 0
    for start, end, kind in spans:
        if start >= done:
            values.append((kind, text[start:end]))
            pieces += [text[done:start], f"[{kind.upper()}]"]
            done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def _found(pattern: re.Pattern[str], kind: str, text: str) -> Iterator[Span]:
    return ((*match.span(), kind) for match in pattern.finditer(text))


def _keys(text: str) -> Iterator[Span]:
    endless = set()
    for match in _KEY.finditer(text):
        marker = f"-----END {match[1]}-----"
        end = -1 if marker in endless else text.find(marker, match.end())
        if end >= 0:
            yield match.start(), end + len(marker), "secret"
        elif lines := _KEY_LINES.match(text, match.end()):
            yield match.start(), lines.end(), "secret"
        if end < 0:
            endless.add(marker)


def _phones(text: str, region: str) -> Iterator[Span]:
    if _SEVEN_DIGITS.search(text):
        from phonenumbers import Leniency, PhoneNumberMatcher

        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            yield match.start, match.end, "phone"


def _numbers(text: str, kind: str, candidates: re.Pattern[str], valid: Callable[[str, str], bool]) -> Iterator[Span]:
    """Wherever a candidate starts, its longest whole part that is valid (given a few characters before it)."""
    done = 0
    for match in candidates.finditer(text) if _DIGIT.search(text) else ():
        start = match.start()
        for end in range(match.end(1), start, -1) if start >= done else ():
            if not text[end : end + 1].isalnum() and valid(text[start:end], text[max(0, start - _BEFORE) : start]):
                yield start, end, kind
                done = end
                break


def _is_iban(number: str, _before: str) -> bool:
    from stdnum import iban  # late, as below: few texts have a candidate

    return bool(iban.is_valid(number, check_country=False))


def _is_card(number: str, _before: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", number)
    return number[-1].isdigit() and bool(_ISSUED.fullmatch(digits) and luhn.is_valid(digits))


def _is_ip(address: str, before: str) -> bool:
    """The address of a host; four numbers after "version" or the like are none, nor is `[1::2]` of a program."""
    if not any(character.isdigit() for character in address) or _VERSION.search(before):
        return False
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified or found.is_reserved)


# In this order: a key may hold what looks like a number of another kind, and a card's number like a phone's.
_STEPS: dict[str, Callable[[str], Iterable[Span]]] = {
    "secret": lambda text: chain(_keys(text), _found(_SECRET, "secret", text)),
    "email": lambda text: _found(_EMAIL, "email", text) if "@" in text else iter(()),
    "iban": partial(_numbers, kind="iban", candidates=_IBAN, valid=_is_iban),
    "card": partial(_numbers, kind="card", candidates=_CARD, valid=_is_card),
    "ip": lambda text: chain(_numbers(text, "ip", _IP4, _is_ip), _numbers(text, "ip", _IP6, _is_ip)),
}


def name_finder(kinds: Collection[str], model: str) -> Callable[[str], Iterable[Span]]:
    """A function that finds the names of `kinds`; the first two letters of the spaCy model's name are its language."""
    if not find_spec("presidio_analyzer"):
        raise UserError("clean.mask_personal_data: for person and location pip install 'tunetrail[names]'")
    if not (Path(model).is_dir() or find_spec(model)):  # else Presidio would download it
        raise UserError(f"clean.ner_model: the spaCy model {model!r} is no folder and not installed; install it")
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    language = Path(model).name[:2]
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[language])
    entities = [kind.upper() for kind in kinds]

    def find(text: str) -> list[Span]:
        found = analyzer.analyze(text, language, entities=entities, score_threshold=_LEAST_SCORE)
        # A placeholder, also a part of one, is no name.
        spans = [(span.start, span.end, span.entity_type.lower()) for span in found]
        return sorted(span for span in spans if not _in_placeholder(text, *span[:2]))

    return find


def _in_placeholder(text: str, start: int, end: int) -> bool:
    opened = text.rfind("[", 0, end)
    return "[" in text[start:end] or (opened >= 0 and "]" not in text[opened:start] and "]" in text[start:])
