"""The text that stands for a record wherever prompts are compared, and the last word on leaks."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from stages.core.errors import Refusal
from stages.records.record import Record
from stages.text.normal_form import normalise, prompt_hash


def asked(record: Record) -> str:
    """The text that stands for a record wherever prompts are compared: its earlier turns and its prompt.

    A system message is left out. Data sets repeat one in every row, and it is often longer than what is asked:
    with it all rows would be near-duplicates. So a question asked under two system messages counts as asked
    twice, which keeps both on one side of a split.
    """
    turns = [message.content for message in record.context if message.role != "system"]
    return "\n".join([*turns, record.prompt])


def compared(record: Record) -> str:
    """The normal form of what is asked."""
    return normalise(asked(record))


def by_prompt(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by their normalised prompt, in the order of the prompts."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[compared(record)].append(record)
    return dict(sorted(groups.items()))


def refuse_overlap(what: str, seen: Iterable[Record], ids: AbstractSet[str], prompt_hashes: AbstractSet[str]) -> None:
    """Check that no row is in the hold-out, by the SHA-256 of the whole row or of its normalised prompt.

    Raises:
        Refusal: naming the rows.
    """
    leaks = [row for row in seen if row.id in ids or prompt_hash(asked(row)) in prompt_hashes]
    if leaks:
        names = ", ".join(f"{row.origin} ({row.id[:12]})" for row in leaks[:10])
        raise Refusal(f"{len(leaks)} rows of {what} are in the hold-out: {names}; nothing was written")
