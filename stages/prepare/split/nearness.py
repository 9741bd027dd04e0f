"""When two rows are too alike to be on two sides of a split.

Near at prompt level: the prompts are alike at `dedup.threshold`, whatever is answered; `dedup` has found these.
Near at pair level: the prompts are alike at the lower `split.pair_threshold`, and the completions are the same and
rarely shared: at most `SHARED_BY` rows of the data have them. Then one row may be the other in other words. A
completion of more rows is the answer of a class, and resemblance within a class is what a class looks like.
The same text: a line that few rows have, at most `SHARED_BY`, and that is not short is what those rows are about, and
the question or instruction beside it is another. Of several such lines the longest for its number of rows counts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

from stages.near_duplicates.pairs import nearest
from stages.near_duplicates.rule import is_near, ratio
from stages.prepare.split.lock import Lock
from stages.records.prompt import NearPairs, by_prompt, compared, components, digest, lines
from stages.records.record import Dropped, Record, grouped
from stages.text.strict_json import completion_key

SHARED_BY = 10
_SHORT = 20  # characters of a line, such as a greeting, that says nothing of what a row is about


@dataclass(frozen=True, slots=True)
class Nearness:
    """The near prompts, the near pairs of rows (two ids and the score of their prompts), and rows of one text by id."""

    prompts: NearPairs
    pairs: list[tuple[str, str, float]]
    texts: dict[str, str]


def find_nearness(records: Sequence[Record], prompts: NearPairs, pair_threshold: int) -> Nearness:
    """`prompts` with the near pairs of all `records`.

    Only rows of one rarely shared completion are compared, a few for each row, so that this is no second join.
    """
    texts = [compared(row) for row in records]
    same = grouped(range(len(records)), lambda place: completion_key(records[place].completion))
    rare = (places for places in same.values() if len(places) <= SHARED_BY)
    found = [
        (records[one].id, records[other].id, ratio(texts[one], texts[other]))
        for one, other in chain.from_iterable(combinations(places, 2) for places in rare)
        if texts[one] != texts[other] and is_near(texts[one], texts[other], pair_threshold)
    ]
    return Nearness(prompts, found, _shared_texts(records))


def _shared_texts(records: Sequence[Record]) -> dict[str, str]:
    """By id the line that tells what a row is about, where other rows have it: the longest for so many rows."""
    own = {row.id: lines([row]) for row in records}
    count = Counter(line for found in own.values() for line in found)
    shared: dict[str, str] = {}
    for name, found in own.items():
        few = [line for line in found if 1 < count[line] <= SHARED_BY and len(line) >= _SHORT]
        if few:
            shared[name] = max(few, key=lambda line: (len(line) / count[line], line))
    return shared


def near_groups(records: Iterable[Record], nearness: Nearness) -> list[list[Record]]:
    """Records in groups: the same group for rows that have one prompt or are near, directly or through others."""
    prompts = by_prompt(records)
    texts = list(prompts)
    text_of = {row.id: text for text, rows in prompts.items() for row in rows}
    links = [(texts[left], texts[right]) for left, right, _ in nearness.prompts.among(texts)]
    first: dict[str, str] = {}
    for name, text in text_of.items():
        if line := nearness.texts.get(name):
            links.append((text, first.setdefault(line, text)))
    links += [(text_of[one], text_of[other]) for one, other, _ in nearness.pairs if {one, other} <= text_of.keys()]
    return [[row for text in group for row in prompts[text]] for group in components(texts, links)]


def quarantine(
    records: Sequence[Record], holdout: Sequence[Record], lock: Lock, nearness: Nearness
) -> tuple[list[Record], list[Dropped]]:
    """The records that leave the hold-out unknown, and those that match or nearly match a locked row.

    A locked row that is no longer in the data still catches the same prompt, by its hash; near rows need its
    text and are found for the locked rows in `holdout` alone. Of several witnesses the nearest is named.
    """
    locked = {row.prompt_sha256: row.id for row in reversed(lock.rows)}
    held = {digest(text): min(row.id for row in rows) for text, rows in by_prompt(holdout).items()}
    by_answer: dict[str, list[tuple[float, str]]] = defaultdict(list)
    ids = {row.id for row in holdout}
    for left, right, score in nearness.pairs:
        for one, other in ((left, right), (right, left)):
            if other in ids:
                by_answer[one].append((-score, other))
    held_texts = {nearness.texts[row.id]: row for row in reversed(holdout) if row.id in nearness.texts}
    free, rejected = [], []
    for record in records:
        name = digest(compared(record))
        partners = nearness.prompts.partners.get(name, {})
        by_words = [(-score, held[other]) for other, score in partners.items() if other in held]
        if witness := locked.get(name):
            rejected.append(Dropped("same_prompt", "the prompt is that of a locked row", witness, 100.0, record))
        elif by_words:
            score, witness = min(by_words)
            detail = f"the prompt is {-score:.2f} % like a locked row's"
            rejected.append(Dropped("near_prompt", detail, witness, -score, record))
        elif same := held_texts.get(nearness.texts.get(record.id, "")):
            score = ratio(compared(record), compared(same))
            rejected.append(Dropped("same_text", "a locked row asks about the same text", same.id, score, record))
        elif record.id in by_answer:
            score, witness = min(by_answer[record.id])
            detail = f"the completion is a locked row's, and the prompt is {-score:.2f} % like its"
            rejected.append(Dropped("near_pair", detail, witness, -score, record))
        else:
            free.append(record)
    return free, rejected


def distances(holdout: Sequence[Record], train: Sequence[Record]) -> list[dict[str, Any]]:
    """For each hold-out row the training row of the nearest prompt and the ratio (`fuzz.ratio`, rounded down).

    The training rows are those of the data. What `augment` makes of them does not count: the ratios say how alike
    the data are, and stay comparable when the augmentation changes. Both are null without training rows.
    """
    ids: dict[str, str] = {}
    for row in sorted(train, key=lambda row: row.id):
        ids.setdefault(compared(row), row.id)
    texts = list(ids)
    if not texts:
        return [{"id": row.id, "nearest_id": None, "ratio": None} for row in holdout]
    best = nearest([compared(row) for row in holdout], texts)
    return [
        {"id": row.id, "nearest_id": ids[texts[pair.right]], "ratio": pair.score}
        for row, pair in zip(holdout, best, strict=True)
    ]
