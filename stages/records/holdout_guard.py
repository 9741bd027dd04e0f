"""The last word on leaks: no row that is trained on or stops training is a row of the hold-out."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from stages.core.errors import Refusal
from stages.records.prompt import asked
from stages.records.record import Record
from stages.text.normal_form import prompt_hash


def refuse_overlap(what: str, seen: Iterable[Record], ids: AbstractSet[str], prompt_hashes: AbstractSet[str]) -> None:
    """Check that no row is in the hold-out, by the SHA-256 of the whole row or of its normalised prompt.

    Raises:
        Refusal: naming the rows.
    """
    leaks = [row for row in seen if row.id in ids or prompt_hash(asked(row)) in prompt_hashes]
    if leaks:
        names = ", ".join(f"{row.origin} ({row.id[:12]})" for row in leaks[:10])
        raise Refusal(f"{len(leaks)} rows of {what} are in the hold-out: {names}; nothing was written")
