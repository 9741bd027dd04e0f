"""What keeps a clean record out: refusal, repetition, another language."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

from stages.core.errors import UserError
from stages.params.clean import Clean
from stages.prepare.clean.rejected_rows import Rejected
from stages.records.prompt import asked
from stages.records.record import Record

Filter = Callable[[Record], None]

_GRAM = 5
_FEWEST = 40  # units; in less, lists and forms repeat by nature
_LONGEST_WORD = 20  # characters on average, beyond which a text is not one of words (Chinese, or one held key)


def chosen_filters(params: Clean) -> list[Filter]:
    """The filters that the parameters switch on. Each raises Rejected for a record that must not be trained on.

    Raises:
        UserError: when one lacks its library.
    """
    filters: list[Filter] = []
    if params.refusals:
        filters.append(partial(_no_refusal, phrases=[_plain(phrase) for phrase in params.refusals]))
    if params.max_repetition is not None:
        filters.append(partial(_no_repetition, most=params.max_repetition))
    if params.languages:
        filters.append(language_filter(params.languages, params.other_languages, params.language_confidence))
    return filters


def _no_refusal(record: Record, phrases: Sequence[str]) -> None:
    opening = _plain(record.completion)
    for phrase in phrases:
        if opening.startswith(phrase):
            raise Rejected("refusal", f"the completion opens with {phrase!r}, one of clean.refusals")


def _plain(text: str) -> str:
    """For comparison: lower case, straight apostrophes, no quotes or spaces in front."""
    return text.casefold().replace("’", "'").lstrip(" \t\n\"'“‘*")


def _no_repetition(record: Record, most: float) -> None:
    """Of prompts and of answers in words; JSON repeats by nature, and the schema says how much of it is right."""
    answer = "" if record.completion[:1] in ("{", "[") else record.completion
    for column, text in (("prompt", record.prompt), ("completion", answer)):
        if (share := repeated_share(text)) > most:
            detail = f"{share:.0%} of the {column} repeats what it said before; clean.max_repetition is {most:.0%}"
            raise Rejected(f"repetitive_{column}", detail)


def repeated_share(text: str) -> float:
    """The share of words, 0 to 1, that lie in a run of five that occurred earlier in the text.

    After the n-gram rules of Gopher (Rae et al. 2021, arXiv:2112.11446, A.1.1), but over words instead of characters.
    Of text without spaces characters count instead; a short text counts as 0.
    """
    units: list[str] = text.split()
    if len(text) > _LONGEST_WORD * len(units):
        units = list(text)
    if len(units) < _FEWEST:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated, end = 0, 0
    for start in range(len(units) - _GRAM + 1):
        gram = tuple(units[start : start + _GRAM])
        if gram in seen:
            repeated += start + _GRAM - max(start, end)
            end = start + _GRAM
        seen.add(gram)
    return repeated / len(units)


def language_filter(wanted: Sequence[str], others: Sequence[str], confidence: float) -> Callable[[Record], None]:
    """A filter that rejects a record asked in one of `others` (ISO 639-1 codes) with at least `confidence`.

    Of two close languages a short text is hard to tell, so only what is surely of another language goes. lingua
    loads some 15 MB of n-grams for each language that it is asked to tell apart.

    Raises:
        UserError: when lingua is not installed or does not know a code.
    """
    if not find_spec("lingua"):
        raise UserError("clean.languages needs lingua: pip install 'tunetrail[language]', or set it to []")
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = sorted({*wanted, *others})
    unknown = [code for code in codes if not hasattr(IsoCode639_1, code.upper())]
    if unknown or len(codes) < 2:
        problem = (
            f"lingua does not know {', '.join(unknown)}" if unknown else "other_languages names none to tell apart"
        )
        raise UserError(f"clean.languages: {problem}; give ISO 639-1 codes, such as en")
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(
        *(getattr(IsoCode639_1, code.upper()) for code in codes)
    ).build()

    def check(record: Record) -> None:
        text = asked(record)
        found = detector.compute_language_confidence_values(text)
        code = found[0].language.iso_code_639_1.name.lower()
        if code not in wanted and found[0].value >= confidence:
            detail = f"{code} with confidence {found[0].value:.2f}; clean.languages are {', '.join(wanted)}"
            raise Rejected("other_language", detail)

    return check
