"""What makes two prompts the same: the text that stands for a record, its normal form, and its hash."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from stages.records.record import Record

# Raise this with every change of `normalise`: a hold-out lock keeps hashes of normalised prompts, and one that
# another version wrote would recognise nothing.
NORMALISER_VERSION = 1


def asked(record: Record) -> str:
    """The text that stands for a record wherever prompts are compared: its earlier turns and its prompt.

    A system message is left out. Data sets repeat one in every row, and it is often longer than what is asked:
    with it all rows would be near-duplicates. So a question asked under two system messages counts as asked
    twice, which keeps both on one side of a split.
    """
    turns = [message.content for message in record.context if message.role != "system"]
    return "\n".join([*turns, record.prompt])


def normalise(prompt: str) -> str:
    """The text by which prompts are compared.

    Case is folded (Unicode 3.13, canonical caseless matching, then NFC), every run of white space is one
    space, and none is left at the ends. Punctuation, accents and compatibility forms stay: they can change
    what is asked.
    """
    folded = unicodedata.normalize("NFD", prompt).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def prompt_hash(prompt: str) -> str:
    """SHA-256 of the normalised prompt, in hex."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()


def by_prompt(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by their normalised prompt, in the order of the prompts."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[normalise(asked(record))].append(record)
    return dict(sorted(groups.items()))
