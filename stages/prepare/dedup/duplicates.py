"""Which rows stay, and for each row that goes the kept row that stands for it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from stages.near_duplicates.rule import Pair, is_near
from stages.records.dropped import Dropped, copy_rank
from stages.records.prompt import asked
from stages.records.record import Record
from stages.text.normal_form import normalise
from stages.text.strict_json import completion_key

Agreement = Callable[[str, str], bool]


def drop_exact(records: Iterable[Record]) -> tuple[list[Record], list[Dropped]]:
    """One record of each id (the first by `copy_rank`), sorted by id, and the rest as rejected rows."""
    same: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        same[record.id].append(record)
    kept, dropped = [], []
    for identifier in sorted(same):
        best, *rest = sorted(same[identifier], key=copy_rank)
        kept.append(best)
        dropped += [Dropped("exact", _exact_detail(best, row), best.id, 100.0, row) for row in rest]
    return kept, dropped


def _exact_detail(kept: Record, dropped: Record) -> str:
    detail = "prompt and completion are those of the kept row"
    if dropped.label != kept.label:
        detail += f", but its label is {kept.label!r} instead of {dropped.label!r}"
    return detail


def agreement(rule: Literal["equal", "fuzzy", "ignore"], threshold: int) -> Agreement:
    """When the completions of near prompts agree: their keys are the same, near at `threshold`, or anything."""
    if rule == "equal":
        return lambda left, right: left == right
    if rule == "fuzzy":
        return lambda left, right: is_near(left, right, threshold)
    return lambda left, right: True


def drop_near(
    prompts: Mapping[str, Sequence[Record]], pairs: Iterable[Pair], agree: Agreement
) -> tuple[list[Record], list[Dropped]]:
    """Drop each row that has a kept near-duplicate of better rank with an agreeing completion.

    `prompts` are rows with distinct ids by their normalised prompts, `pairs` the near pairs of these by position.
    Rows are taken by rank: the longest normalised prompt first, for of two wordings the shorter is more often the
    cut one, then the smallest id. A row stays unless one that stays already stands for it, so every dropped row has a
    direct witness, no two kept rows stand for each other, and the order of the rows changes nothing.
    """
    neighbours = _neighbours(list(prompts), pairs)
    kept_of: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    dropped = []
    for record in sorted((row for rows in prompts.values() for row in rows), key=_near_rank):
        text, key = normalise(asked(record)), completion_key(record.completion)
        witnesses = [
            (-score, _near_rank(kept), kept)
            for other, score in neighbours[text]
            for kept, kept_key in kept_of[other]
            if agree(key, kept_key)
        ]
        if witnesses:
            negative_score, _, witness = min(witnesses, key=lambda found: found[:2])
            detail = f"prompt {-negative_score:.2f} % like the kept row's, and the completions agree"
            dropped.append(Dropped("near", detail, witness.id, -negative_score, record))
        else:
            kept_of[text].append((record, key))
    kept = [record for rows in kept_of.values() for record, _ in rows]
    return sorted(kept, key=lambda record: record.id), dropped


def with_kept_witness(exact: Iterable[Dropped], near: Iterable[Dropped]) -> list[Dropped]:
    """The exact duplicates, where the row that stood for one went as a near-duplicate, with that row's witness."""
    gone = {row.record.id: row for row in near}
    return [replace(gone[row.record.id], record=row.record) if row.record.id in gone else row for row in exact]


def _near_rank(record: Record) -> tuple[int, str]:
    return -len(normalise(asked(record))), record.id


def _neighbours(texts: Sequence[str], pairs: Iterable[Pair]) -> dict[str, list[tuple[str, float]]]:
    """For each text the texts near it with their scores; it is the first of them itself."""
    neighbours = {text: [(text, 100.0)] for text in texts}
    for pair in pairs:
        left, right = texts[pair.left], texts[pair.right]
        neighbours[left].append((right, pair.score))
        neighbours[right].append((left, pair.score))
    return neighbours
