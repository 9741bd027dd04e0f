"""Which rows stay, for each row that goes the kept row that stands for it, and what that comes to in numbers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import comb
from typing import Any, Literal

from stages.near_duplicates.rule import Pair, is_near
from stages.records.dropped import Dropped, copy_rank
from stages.records.near_pairs import components
from stages.records.prompt import compared
from stages.records.record import Record
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
        for row in rest:
            label = f", but its label is {best.label!r} instead of {row.label!r}" if row.label != best.label else ""
            detail = f"prompt and completion are those of the kept row{label}"
            dropped.append(Dropped("exact", detail, best.id, 100.0, row))
    return kept, dropped


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
    texts = list(prompts)
    neighbours = {text: [(text, 100.0)] for text in texts}
    for pair in pairs:
        left, right = texts[pair.left], texts[pair.right]
        neighbours[left].append((right, pair.score))
        neighbours[right].append((left, pair.score))
    kept_of: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    dropped = []
    for record in sorted((row for rows in prompts.values() for row in rows), key=_near_rank):
        text, key = compared(record), completion_key(record.completion)
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
    return -len(compared(record)), record.id


def conflicts(prompts: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """The prompts that come with more than one completion, and their records."""
    return {
        prompt: list(records)
        for prompt, records in prompts.items()
        if len(records) > 1 and len({completion_key(record.completion) for record in records}) > 1
    }


def near_clusters(prompts: Mapping[str, Sequence[Record]], pairs: Sequence[Pair]) -> list[list[Record]]:
    """Records whose prompts are the same or near, directly or through others: the connected components."""
    rows = list(prompts.values())
    groups = components(len(rows), ((pair.left, pair.right) for pair in pairs))
    return [[row for place in group for row in rows[place]] for group in groups]


def giants(clusters: Iterable[Sequence[Record]], giant_rows: int) -> list[Sequence[Record]]:
    """The clusters of `giant_rows` or more, the largest first."""
    large = [cluster for cluster in clusters if len(cluster) >= giant_rows]
    return sorted(large, key=lambda cluster: (-len(cluster), min(row.id for row in cluster)))


def summarise(
    records: Sequence[Record],
    prompts: Mapping[str, Sequence[Record]],
    pairs: Sequence[Pair],
    clusters: Sequence[Sequence[Record]],
    giants: Sequence[Sequence[Record]],
    kept: Sequence[Record],
    dropped: Sequence[Dropped],
) -> dict[str, Any]:
    """Rows in and out by reason, pairs, conflicts and clusters.

    `pairs.exact` counts the pairs of rows with one id; `pairs.near` the pairs of different records whose prompts
    are near or the same, whatever their completions. A cluster counts from two records on.
    """
    copies = Counter(record.id for record in records)
    sizes = [len(group) for group in prompts.values()]
    conflicting = conflicts(prompts)
    reasons = Counter(row.reason for row in dropped)
    return {
        "rows": {"in": len(records), "kept": len(kept), "dropped": len(dropped)},
        "dropped": {"exact": reasons["exact"], "near": reasons["near"]},
        "pairs": {
            "exact": sum(comb(n, 2) for n in copies.values()),
            "near": sum(comb(n, 2) for n in sizes) + sum(sizes[pair.left] * sizes[pair.right] for pair in pairs),
        },
        "conflicts": {"prompts": len(conflicting), "rows": sum(map(len, conflicting.values()))},
        "clusters": {
            "count": sum(len(cluster) > 1 for cluster in clusters),
            "largest": max(map(len, clusters), default=0),
            "giant": len(giants),
            "giant_rows": sum(map(len, giants)),
        },
    }
