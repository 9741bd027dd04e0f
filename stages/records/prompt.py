"""The text that stands for a record wherever prompts are compared."""

from collections import defaultdict
from collections.abc import Iterable

from stages.records.record import Record
from stages.text.normal_form import normalise


def asked(record: Record) -> str:
    """The text that stands for a record wherever prompts are compared: its earlier turns and its prompt.

    A system message is left out. Data sets repeat one in every row, and it is often longer than what is asked:
    with it all rows would be near-duplicates. So a question asked under two system messages counts as asked
    twice, which keeps both on one side of a split.
    """
    turns = [message.content for message in record.context if message.role != "system"]
    return "\n".join([*turns, record.prompt])


def by_prompt(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by their normalised prompt, in the order of the prompts."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[normalise(asked(record))].append(record)
    return dict(sorted(groups.items()))
