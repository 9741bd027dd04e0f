"""Which rows stay, for each row that goes the kept row that stands for it, and what that comes to in numbers."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import comb
from typing import Any, Literal

from stages.near_duplicates.rule import is_near
from stages.records.prompt import Question, components
from stages.records.record import Dropped, Record, copy_rank
from stages.text.strict_json import completion_key

Agreement = Callable[[str, str], bool]
Questions = Mapping[Question, Sequence[Record]]
QuestionPair = tuple[Question, Question, float]


def drop_exact(records: Iterable[Record]) -> tuple[list[Record], list[Dropped]]:
    """One record of each id (the first by `copy_rank`), sorted by id, and the rest as rejected rows."""
    first: dict[str, Record] = {}
    repeated: dict[str, list[Record]] = {}
    for record in records:
        if record.id in first:
            repeated.setdefault(record.id, [first[record.id]]).append(record)
        else:
            first[record.id] = record
    dropped = []
    for identifier in sorted(repeated):
        best, *rest = sorted(repeated[identifier], key=copy_rank)
        first[identifier] = best
        for row in rest:
            label = f", but its label is {best.label!r} instead of {row.label!r}" if row.label != best.label else ""
            detail = f"prompt and completion are those of the kept row{label}"
            dropped.append(Dropped("exact", detail, best.id, 100.0, row))
    return [first[identifier] for identifier in sorted(first)], dropped


def agreement(rule: Literal["equal", "fuzzy", "ignore"], threshold: int) -> Agreement:
    """When the completions of near prompts agree: their keys are the same, near at `threshold`, or anything."""
    if rule == "equal":
        return lambda left, right: left == right
    if rule == "fuzzy":
        return lambda left, right: is_near(left, right, threshold)
    return lambda left, right: True


def drop_near(
    questions: Questions, pairs: Iterable[QuestionPair], agree: Agreement
) -> tuple[list[Record], list[Dropped]]:
    """Drop each row that has a kept near-duplicate of better rank with an agreeing completion.

    Rows are taken by rank: the longest normalised prompt first, for of two wordings the shorter is more often the
    cut one, then the smallest id. A row stays unless one that stays already stands for it, so every dropped row has a
    direct witness, no two kept rows stand for each other, and the order of the rows changes nothing.
    """
    # Most rows are near no other, and stay whatever they say.
    neighbours = {question: [(question, 100.0)] for question, rows in questions.items() if len(rows) > 1}
    for left, right, score in pairs:
        for one, other in ((left, right), (right, left)):
            neighbours.setdefault(one, [(one, 100.0)]).append((other, score))
    kept = [row for question, rows in questions.items() if question not in neighbours for row in rows]
    kept_of: dict[Question, list[tuple[Record, str]]] = {question: [] for question in neighbours}
    dropped = []
    ranked = [(-len(question.text), row.id, question, row) for question in neighbours for row in questions[question]]
    for _, _, question, record in sorted(ranked, key=lambda row: row[:2]):
        key = completion_key(record.completion)
        witnesses = [
            (-score, -len(other.text), witness.id, witness)
            for other, score in neighbours[question]
            for witness, its_key in kept_of[other]
            if agree(key, its_key)
        ]
        if witnesses:
            negative_score, _, _, witness = min(witnesses, key=lambda found: found[:3])
            detail = f"prompt {-negative_score:.2f} % like the kept row's, and the completions agree"
            dropped.append(Dropped("near", detail, witness.id, -negative_score, record))
        else:
            kept_of[question].append((record, key))
    kept += [record for rows in kept_of.values() for record, _ in rows]
    return sorted(kept, key=lambda record: record.id), dropped


def with_kept_witness(exact: Iterable[Dropped], near: Iterable[Dropped]) -> list[Dropped]:
    """The exact duplicates, where the row that stood for one went as a near-duplicate, with that row's witness."""
    gone = {row.record.id: row for row in near}
    return [replace(gone[row.record.id], record=row.record) if row.record.id in gone else row for row in exact]


def conflicts(questions: Questions) -> list[Sequence[Record]]:
    """The records of each question that comes with more than one completion."""
    several = (rows for rows in questions.values() if len(rows) > 1)
    return [rows for rows in several if len({completion_key(row.completion) for row in rows}) > 1]


def near_clusters(questions: Questions, pairs: Iterable[QuestionPair]) -> list[list[Record]]:
    """Records whose questions are the same or near, directly or through others: components of more than one record."""
    links = [(left, right) for left, right, _ in pairs]
    near = {question for link in links for question in link}
    groups = components((one for one, rows in questions.items() if one in near or len(rows) > 1), links)
    return [[row for question in group for row in questions[question]] for group in groups]


def giants(clusters: Iterable[Sequence[Record]], giant_rows: int) -> list[Sequence[Record]]:
    """The clusters of `giant_rows` or more, the largest first."""
    large = [cluster for cluster in clusters if len(cluster) >= giant_rows]
    return sorted(large, key=lambda cluster: (-len(cluster), min(row.id for row in cluster)))


def summarise(
    records: Sequence[Record],
    questions: Questions,
    pairs: Iterable[QuestionPair],
    clusters: Sequence[Sequence[Record]],
    giants: Sequence[Sequence[Record]],
    kept: Sequence[Record],
    dropped: Sequence[Dropped],
) -> dict[str, Any]:
    """The metrics of the stage, as docs/metrics.md describes them."""
    sizes = {question: len(group) for question, group in questions.items()}
    conflicting = conflicts(questions)
    reasons = Counter(row.reason for row in dropped)
    return {
        "rows": {"in": len(records), "kept": len(kept), "dropped": len(dropped)},
        "dropped": {"exact": reasons["exact"], "near": reasons["near"]},
        "pairs": {
            "exact": sum(comb(n, 2) for n in Counter(record.id for record in records).values()),
            "near": sum(comb(n, 2) for n in sizes.values()) + sum(sizes[one] * sizes[other] for one, other, _ in pairs),
        },
        "conflicts": {"prompts": len(conflicting), "rows": sum(map(len, conflicting))},
        "clusters": {
            "count": len(clusters),
            "largest": max(map(len, clusters), default=min(1, len(records))),
            "giant": len(giants),
            "giant_rows": sum(map(len, giants)),
        },
    }
