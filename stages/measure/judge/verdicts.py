"""Read the judge's replies, and make one verdict of the two orders of a pair."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# The last line must be the choice and nothing else, but for marks and the few words that models put around it.
_CHOICE = re.compile(
    r"(?:(?:the )?(?:better |best )?(?:answer|choice|winner|verdict)(?: is)?)?[\W_]*"
    r"(?:answer )?(A|B|TIE)(?: is (?:the )?better(?: (?:answer|one))?(?: than (?:the )?(?:answer )?[AB])?)?[\W_]*",
    re.IGNORECASE,
)

WIN, TIE, LOSS = 1, 0, -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the two orders say together, for the tuned model: WIN, TIE or LOSS.

    Orders that contradict each other are a tie, and so is an unreadable reply: neither shows a difference.
    """

    value: int
    readable: bool
    agreed: bool


def read_choice(reply: str) -> str | None:
    """A, B or TIE; None when the reply's last line is no such choice."""
    lines = reply.strip().splitlines()
    found = _CHOICE.fullmatch(lines[-1].strip()) if lines else None
    return found.group(1).upper() if found else None


def score(choice: str | None, *, tuned_first: bool) -> int | None:
    """The choice as WIN, TIE or LOSS of the tuned model."""
    if choice is None or choice == "TIE":
        return None if choice is None else TIE
    return WIN if (choice == "A") == tuned_first else LOSS


def settle(scores: Mapping[bool, int | None]) -> Verdict:
    """One verdict of the scores by `tuned_first`."""
    one, other = scores[True], scores[False]
    readable, agreed = one is not None and other is not None, one == other
    return Verdict(one if readable and agreed and one is not None else TIE, readable, readable and agreed)
