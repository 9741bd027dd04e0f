"""The text that stands for a record wherever prompts are compared, and the last word on leaks."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from stages.core.errors import Refusal
from stages.records.record import Record
from stages.text.normal_form import normalise, prompt_hash


def asked(record: Record) -> str:
    """The text that stands for a record wherever prompts are compared: its earlier turns and its prompt.

    The task and the system message are left out, so that a text stays on one side of a split, whatever is asked about
    it. What the model reads, and with it what is a duplicate, `Question` says.
    """
    turns = [message.content for message in record.context if message.role != "system"]
    return "\n".join([*turns, record.prompt])


def compared(record: Record) -> str:
    """The normal form of what is asked."""
    return normalise(asked(record))


class Question(NamedTuple):
    """What the model reads: the task, the row's own system message and what is asked, both in normal form."""

    task: str | None
    system: str
    text: str


def question(record: Record) -> Question:
    system = "".join(message.content for message in record.context if message.role == "system")
    return Question(record.task, normalise(system), compared(record))


def by_question(records: Iterable[Record]) -> dict[Question, list[Record]]:
    groups: dict[Question, list[Record]] = defaultdict(list)
    for record in records:
        groups[question(record)].append(record)
    return groups


def lines(records: Iterable[Record]) -> set[str]:
    """The lines of what is asked, in normal form, but for empty ones."""
    return {line for record in records for part in asked(record).split("\n") if (line := normalise(part))}


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
