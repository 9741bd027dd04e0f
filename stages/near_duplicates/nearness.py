"""When two rows are too alike to be on two sides of a split.

Near at prompt level: the prompts are alike at `dedup.threshold`, whatever is answered; `dedup` has found these.
Near at pair level: the prompts are alike at the lower `split.pair_threshold`, and the completions are the same and
rarely shared: at most `SHARED_BY` rows of the data have them. Then one row may be the other in other words. A
completion of more rows is the answer of a class, and resemblance within a class is what a class looks like.
The same text: a line that few rows have, at most `SHARED_BY`, and that is not short is what those rows are about, and
the question or instruction beside it is another. Of several such lines the longest for its number of rows counts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, TypeVar

from stages.near_duplicates.pairs import cross_pairs, nearest
from stages.near_duplicates.rule import is_near, ratio
from stages.records.prompt import NearPairs, among, compared, components, digest, lines
from stages.records.record import Dropped, Record, grouped
from stages.text.strict_json import completion_key

Key = TypeVar("Key", bound=Hashable)

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
    found = []
    for rows in _rarely_shared(records, lambda row: [completion_key(row.completion)]).values():
        for one, other in combinations([(row.id, compared(row)) for row in rows], 2):
            if one[1] != other[1] and is_near(one[1], other[1], pair_threshold):
                found.append((one[0], other[0], ratio(one[1], other[1])))
    return Nearness(prompts, found, _shared_texts(records))


def _rarely_shared(records: Iterable[Record], texts: Callable[[Record], Iterable[str]]) -> dict[bytes, list[Record]]:
    """By digest those of their texts that at least two records have, and at most `SHARED_BY`."""
    first, shared = dict[bytes, Record](), dict[bytes, list[Record]]()
    for row in records:
        for name in map(digest, texts(row)):
            if (other := first.setdefault(name, row)) is not row:
                shared.setdefault(name, [other]).append(row)
    return {name: rows for name, rows in shared.items() if len(rows) <= SHARED_BY}


def _shared_texts(records: Sequence[Record]) -> dict[str, str]:
    """By id the line that tells what a row is about, where other rows have it: the longest for so many rows."""
    few = _rarely_shared(records, _long_lines)
    shared: dict[str, str] = {}
    for row in chain.from_iterable(few.values()):
        known = [(len(line) / len(few[name]), line) for line in lines([row]) if (name := digest(line)) in few]
        shared[row.id] = max(known)[1]
    return shared


def _long_lines(row: Record) -> list[str]:
    return [line for line in lines([row]) if len(line) >= _SHORT]


def near_groups(records: Iterable[Record], nearness: Nearness) -> list[list[Record]]:
    """Records in groups: the same group for rows that have one prompt or are near, directly or through others."""
    rows = list(records)
    return components(rows, _links(rows, nearness))


def _links(records: Iterable[Record], nearness: Nearness) -> list[tuple[Record, Record]]:
    paired = {name for pair in nearness.pairs for name in pair[:2]}
    prompts, texts, ids, links = dict[bytes, Record](), dict[str, Record](), dict[str, Record](), []
    for row in records:
        first = [prompts.setdefault(digest(compared(row)), row)]
        if line := nearness.texts.get(row.id):
            first.append(texts.setdefault(line, row))
        if row.id in paired:
            ids[row.id] = row
        links += [(other, row) for other in first if other is not row]
    links += [(one, other) for one, other, _ in among(nearness.prompts, prompts)]
    return links + [(ids[one], ids[other]) for one, other, _ in nearness.pairs if one in ids and other in ids]


def quarantine(
    records: Sequence[Record], holdout: Sequence[Record], locked: Mapping[str, str], nearness: Nearness
) -> tuple[list[Record], list[Dropped]]:
    """The records that leave the hold-out unknown, and those that match or nearly match a locked row.

    A locked row that is no longer in the data still catches the same prompt, by its hash, for which `locked` has its
    id; near rows need its text and are found for the locked rows in `holdout` alone. Of several witnesses the nearest
    is named.
    """
    held = {digest(compared(row)): row.id for row in sorted(holdout, key=lambda row: row.id, reverse=True)}
    by_words = _near(nearness.prompts, held)
    by_answer = _near(nearness.pairs, {row.id: row.id for row in holdout})
    held_texts = {nearness.texts[row.id]: row for row in reversed(holdout) if row.id in nearness.texts}
    free, rejected = [], []
    for record in records:
        name = digest(compared(record))
        if witness := locked.get(name.hex()):
            rejected.append(Dropped("same_prompt", "the prompt is that of a locked row", witness, 100.0, record))
        elif name in by_words:
            score, witness = min(by_words[name])
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


def made_leaks(
    made: Sequence[Record],
    data: Sequence[Record],
    held: Sequence[Record],
    locked: Mapping[str, str],
    threshold: int,
    pair_threshold: int,
) -> dict[str, Dropped]:
    """By id the rows made of the data, or about them, that a split would keep from training.

    Whichever of them stood in the data: those count here as they are, so that no number of made rows turns a rare
    completion into the answer of a class, and any rare line that a row shares with a held one is what both are about.
    `held` are rows of `data`, `locked` has ids by the hashes of their prompts.
    """
    texts, held_texts = (list(dict.fromkeys(map(compared, some))) for some in (made, held))
    pairs = sorted(cross_pairs(texts, held_texts, threshold), key=lambda pair: pair.score)
    near = {texts[pair.left]: (pair.score, held_texts[pair.right]) for pair in pairs}  # of several the nearest
    ids = {compared(row): row.id for row in held}

    def rarely_shared(texts_of: Callable[[Record], Iterable[str]]) -> dict[str, list[Record]]:
        ours = {text for row in made for text in texts_of(row)}
        of_held = grouped(((text, row) for row in held for text in texts_of(row) if text in ours), lambda one: one[0])
        counts = Counter(text for row in data if of_held for text in texts_of(row) if text in of_held)
        return {text: [row for _, row in of_held[text]] for text in of_held if counts[text] <= SHARED_BY}

    answers, same_texts = rarely_shared(lambda row: [completion_key(row.completion)]), rarely_shared(_long_lines)
    found = {}
    for row in made:
        text, alike = compared(row), answers.get(completion_key(row.completion), [])
        alike = [one for one in alike if is_near(text, compared(one), pair_threshold)]
        score, other = near.get(text, (0.0, ""))
        if (name := locked.get(digest(text).hex())) or score == 100:
            found[row.id] = Dropped("same_prompt", "the prompt is", name or ids[other], 100.0, row)
        elif score:
            found[row.id] = Dropped("near_prompt", f"the prompt is {score:.2f} % like one", ids[other], score, row)
        elif same := next((same_texts[line][0] for line in _long_lines(row) if line in same_texts), None):
            score = ratio(text, compared(same))
            found[row.id] = Dropped("same_text", "a line of the prompt, which few rows have, is", same.id, score, row)
        elif alike:
            score, name = max((ratio(text, compared(one)), one.id) for one in alike)
            detail = f"the completion is, with a prompt {score:.2f} % like this one,"
            found[row.id] = Dropped("near_pair", detail, name, score, row)
    return found


def _near(pairs: Iterable[tuple[Key, Key, float]], held: Mapping[Key, str]) -> dict[Key, list[tuple[float, str]]]:
    """By what is in a pair with one of `held`: these, each with the negative score."""
    found: dict[Key, list[tuple[float, str]]] = defaultdict(list)
    for left, right, score in pairs:
        for one, other in ((left, right), (right, left)):
            if other in held:
                found[one].append((-score, held[other]))
    return found


def distances(holdout: Sequence[Record], train: Sequence[Record]) -> list[dict[str, Any]]:
    """For each hold-out row the training row of the nearest prompt and the ratio (`fuzz.ratio`, rounded down).

    The training rows are those of the data. What `augment` makes of them does not count: the ratios say how alike
    the data are, and stay comparable when the augmentation changes. Both are null without training rows.
    """
    if not train:
        return [{"id": row.id, "nearest_id": None, "ratio": None} for row in holdout]
    ordered = sorted(train, key=lambda row: row.id)
    best = nearest([compared(row) for row in holdout], map(compared, ordered), len(ordered))
    return [
        {"id": row.id, "nearest_id": ordered[pair.right].id, "ratio": pair.score}
        for row, pair in zip(holdout, best, strict=True)
    ]
