"""In which language a prompt is, by lingua (an extra)."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from stages.core.errors import UserError
from stages.prepare.clean.rows import Rejected
from stages.records.record import Record
from stages.text.normal_form import asked


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
