"""What dedup hands on, made without files."""

from collections.abc import Iterable
from typing import Any

from stages.core import paths
from stages.near_duplicates.nearness import Nearness, find_nearness
from stages.near_duplicates.pairs import near_pairs
from stages.near_duplicates.rule import same_questions
from stages.prepare.dedup.duplicates import agreement, drop_exact, drop_near, with_kept_witness
from stages.records.prompt import NearPairs, by_question, compared, digest, write_near_pairs
from stages.records.record import Dropped, Record


def deduplicated(raw: list[Record], completion: Any = "equal") -> tuple[list[Record], list[Dropped]]:
    distinct, copies = drop_exact(raw)
    questions, texts = by_question(distinct), sorted(set(map(compared, distinct)))
    near_texts = [(texts[pair.left], texts[pair.right], pair.score) for pair in near_pairs(texts, 90)]
    kept, near = drop_near(questions, same_questions(questions, near_texts), agreement(completion, 90))
    return kept, near + with_kept_witness(copies, near)


def write_searched(records: Iterable[Record]) -> None:
    """The file of near pairs that dedup writes of these rows."""
    texts = sorted(set(map(compared, records)))
    pairs = [(pair.left, pair.right, pair.score) for pair in near_pairs(texts, 90)]
    write_near_pairs(paths.NEAR_PAIRS, texts, pairs, 90)


def near_prompts(records: Iterable[Record]) -> NearPairs:
    texts = sorted(set(map(compared, records)))
    names = list(map(digest, texts))
    return [(names[pair.left], names[pair.right], pair.score) for pair in near_pairs(texts, 90)]


def nearness(records: list[Record]) -> Nearness:
    return find_nearness(records, near_prompts(records), 80)
