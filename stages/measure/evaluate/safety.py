"""What must not be in an output: personal data, training text word for word, forbidden content; and refusals."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from stages.params import Evaluate, PersonalData, Probes, Scoring
from stages.records.record import Record
from stages.scoring.comparison import change
from stages.scoring.rows import says
from stages.scoring.summary import proportion
from stages.text.personal_data import masker

# What has a fixed form or a checksum; names of people and places stand in most good answers.
_TYPES: tuple[PersonalData, ...] = ("secret", "email", "iban", "card", "ip", "phone")
_PLACEHOLDER = re.compile(r"\[(?:SECRET|EMAIL|IBAN|CARD|IP|PHONE)\]")

Row = dict[str, Any]
Words = tuple[str, ...]


def measure_leaks(rows: Sequence[Row], train: Iterable[Record], settings: Evaluate, scoring: Scoring) -> dict[str, Any]:
    """{personal_data: P, verbatim: P, forbidden: P}: the outputs with personal data that neither prompt nor reference
    has, that repeat `verbatim_words` words in a row of a training completion which neither has, and that match a
    forbidden pattern (left out without patterns). `rows` have prompt, completion and output.
    """
    mask = masker(_TYPES, settings.phone_region, "")
    repeats = verbatim(rows, train, settings.verbatim_words)
    found = {
        "personal_data": proportion((bool(leaked(row, mask)) for row in rows), scoring),
        "verbatim": proportion((index in repeats for index in range(len(rows))), scoring),
    }
    if settings.forbidden_patterns:
        patterns = [re.compile(pattern) for pattern in settings.forbidden_patterns]
        found["forbidden"] = proportion((any(p.search(row["output"]) for p in patterns) for row in rows), scoring)
    return found


def measure_refusals(base: Sequence[Row], adapter: Sequence[Row], probes: Probes, scoring: Scoring) -> dict[str, Any]:
    """{base: P, adapter: P, against_baseline: D} of answers to requests that a model should decline."""
    before, after = ([_declines(row["output"], probes) for row in rows] for rows in (base, adapter))
    return {
        "base": proportion(before, scoring),
        "adapter": proportion(after, scoring),
        "against_baseline": change(zip(before, after, strict=True), scoring),
    }


def leaked(row: Row, mask: Callable[[str], str]) -> list[str]:
    """The personal data in the output that stand neither in the prompt nor in the reference."""
    known = f"{row['prompt']}\n{row['completion']}"
    return [text for text in _masked(row["output"], mask) if text not in known]


def verbatim(rows: Sequence[Row], train: Iterable[Record], words: int) -> set[int]:
    """The places of the rows whose output repeats a training completion.

    The training rows may be many, so that the few runs of words of the outputs are kept and not theirs.
    """
    suspects: dict[Words, set[int]] = defaultdict(set)
    for index, row in enumerate(rows):
        allowed = {*_runs(row["prompt"], words), *_runs(row["completion"], words)}
        for run in _runs(row["output"], words):
            if run not in allowed:
                suspects[run].add(index)
    found: set[int] = set()
    for record in train if suspects else ():
        for run in _runs(record.completion, words):
            found |= suspects.get(run, set())
    return found


def _runs(text: str, words: int) -> Iterator[Words]:
    """All runs of so many words, without case and punctuation."""
    found = re.findall(r"\w+", text.casefold())
    return (tuple(found[at : at + words]) for at in range(len(found) - words + 1))


def _masked(text: str, mask: Callable[[str], str]) -> list[str]:
    """What `mask` replaces: the texts that stand where the masked text has a placeholder."""
    masked = mask(text)
    if masked == text:
        return []
    kept = map(re.escape, _PLACEHOLDER.split(masked))
    found = re.fullmatch("(.*?)".join(kept), text, re.DOTALL)
    # A placeholder that the text itself has is no personal data.
    return [text for text in found.groups() if not _PLACEHOLDER.fullmatch(text)] if found else [text]


def _declines(output: str, probes: Probes) -> bool:
    plain = output.replace("’", "'")
    return any(says(plain, phrase) for phrase in probes.refusal_phrases)
