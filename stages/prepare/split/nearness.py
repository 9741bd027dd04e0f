"""When two rows are too alike to be on two sides of a split.

Near at prompt level: the prompts are alike at `dedup.threshold`, whatever is answered. Near at pair level: the
completions are the same, and prompts that are alike at the lower `split.pair_threshold` ask the same in other words.
The similarity of the joined texts would not do: where answers are long and few, it would call all short prompts with
one answer near; where they repeat the prompt's words in JSON, it would call two prompts from one template near.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.near_duplicates import clusters, cross_pairs, near_pairs
from stages.records.record import Record
from stages.text.normal_form import asked, by_prompt, normalise
from stages.text.strict_json import completion_key


@dataclass(frozen=True, slots=True)
class Nearness:
    """The thresholds (`rapidfuzz.fuzz.ratio`) for any two prompts, and for prompts with the same completion."""

    prompt: int
    pair: int


def near_groups(records: Iterable[Record], nearness: Nearness) -> list[list[Record]]:
    """Records in groups: the same group for rows that have one prompt or are near, directly or through others."""
    prompts = by_prompt(records)
    texts = list(prompts)
    links = [(pair.left, pair.right) for pair in near_pairs(texts, nearness.prompt)]
    place = {text: position for position, text in enumerate(texts)}
    for same in _by_completion(row for rows in prompts.values() for row in rows).values():
        if len(same) > 1:
            links += [(place[same[p.left]], place[same[p.right]]) for p in near_pairs(same, nearness.pair)]
    groups: dict[int, list[Record]] = defaultdict(list)
    for root, rows in zip(clusters(len(texts), links), prompts.values(), strict=True):
        groups[root] += rows
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best match among the locked rows: the score of the prompts, and the smallest id of a row that has it."""

    score: float
    witness: str


def near_prompts(records: Sequence[Record], holdout: Sequence[Record], threshold: int) -> dict[str, Nearest]:
    """For each normalised prompt of `records` that is near one of the hold-out's, the nearest."""
    return _nearest(list(by_prompt(records)), by_prompt(holdout), threshold)


def near_same_completion(
    records: Sequence[Record], holdout: Sequence[Record], threshold: int
) -> dict[tuple[str, str], Nearest]:
    """The same for each normalised prompt and completion key, among the hold-out's rows with that completion."""
    locked: dict[str, list[Record]] = defaultdict(list)
    for row in holdout:
        locked[completion_key(row.completion)].append(row)
    found: dict[tuple[str, str], Nearest] = {}
    for key, texts in _by_completion(records).items():
        if key in locked:
            near = _nearest(texts, by_prompt(locked[key]), threshold)
            found |= {(text, key): nearest for text, nearest in near.items()}
    return found


def _nearest(texts: Sequence[str], locked: Mapping[str, Sequence[Record]], threshold: int) -> dict[str, Nearest]:
    ids = [min(row.id for row in rows) for rows in locked.values()]
    best: dict[str, Nearest] = {}
    pairs = cross_pairs(texts, list(locked), threshold)
    for pair in sorted(pairs, key=lambda pair: (-pair.score, ids[pair.right])):
        best.setdefault(texts[pair.left], Nearest(pair.score, ids[pair.right]))
    return best


def _by_completion(records: Iterable[Record]) -> dict[str, list[str]]:
    """The distinct normalised prompts of each completion."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for row in records:
        texts[completion_key(row.completion)][normalise(asked(row))] = None
    return {key: list(found) for key, found in texts.items()}
