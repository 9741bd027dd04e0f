"""New rows from old ones: a value that a prompt spells out and its answer repeats is replaced in both.

"Weather in Oslo" with {"city": "Oslo"} and another row's "Lima" give "Weather in Lima" with {"city": "Lima"}. A model
that has seen each value in one sentence alone learns sentences by heart; one that sees them exchanged learns to copy.
The idea is data augmentation by entity replacement (Dai and Adel 2020, arXiv 2010.11683, mention replacement).
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from random import Random

from stages.records.prompt import compared
from stages.records.record import Record, make_record, rank
from stages.text.strict_json import BrokenContract, parse_json

SOURCE = "augment:value_swap"

# Where a value stands in a completion: the keys from the top down.
Place = tuple[str, ...]
# The values of the training rows by label and place, sorted.
Values = dict[tuple[str | None, Place], list[str]]

# Short enough to stop at rows that cannot become anything new, long enough to pass over those that did already.
_ROUNDS_PER_ROW = 3


def swapped_rows(rows: Sequence[Record], count: int, known: Collection[str], seed: int) -> list[Record]:
    """At most `count` rows with exchanged values, each made from a row drawn by the seed.

    `known` are the normalised prompts that already stand somewhere; no new row has one of them, nor has any other
    new row. Rows whose completion is no JSON object, or repeats nothing of the prompt, are left out, so there can
    be fewer than asked for.
    """
    if not count:
        return []
    copied = {row.id: _copied(row) for row in rows}
    values: Values = defaultdict(list)
    for row in rows:
        for place, value in copied[row.id]:
            values[row.label, place].append(value)
    values = {key: sorted(found) for key, found in values.items()}
    taken, made = set(known), list[Record]()
    ordered = sorted(rows, key=lambda row: rank(seed, "value swap", row.id))
    rounds = -(-_ROUNDS_PER_ROW * count // max(len(rows), 1))
    for attempt, row in itertools.product(range(rounds), ordered):
        if len(made) == count:
            break
        new = _swap(row, copied[row.id], values, Random(rank(seed, f"value swap {attempt}", row.id)))
        if new and compared(new) not in taken:
            taken.add(compared(new))
            made.append(new)
    return made


def _swap(row: Record, copied: Sequence[tuple[Place, str]], values: Values, random: Random) -> Record | None:
    """The row with about half of its copied values exchanged, or None where chance or the row gave none."""
    prompt, answer, changed = row.prompt, _object(row.completion), False
    for place, value in copied:
        new = random.choice(values[row.label, place])
        if random.random() < 0.5 or new == value or _whole(value).search(prompt) is None:
            continue
        prompt = _whole(value).sub(lambda _, new=new: new, prompt)  # type: ignore[misc]
        _put(answer, place, new)
        changed = True
    places = {place for place, _ in copied}
    # Each copied value, exchanged or not, still stands once in the new prompt.
    if not changed or any(
        len(_whole(value).findall(prompt)) != 1 for place, value in _strings(answer, ()) if place in places
    ):
        return None
    completion = json.dumps(answer, ensure_ascii=False)
    return make_record(prompt, completion, row.label, SOURCE, row.origin, task=row.task, context=row.context)


def _copied(row: Record) -> list[tuple[Place, str]]:
    """The values of the answer that stand once in the prompt, as whole words, and in no other value."""
    strings = list(_strings(_object(row.completion), ()))
    return [
        (place, value)
        for place, value in strings
        if len(_whole(value).findall(row.prompt)) == 1
        and not any(other != place and (value in text or text in value) for other, text in strings)
    ]


def _whole(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


def _object(completion: str) -> dict[str, object]:
    try:
        answer = parse_json(completion)
    except BrokenContract:
        return {}
    return answer if isinstance(answer, dict) else {}


def _strings(answer: Mapping[str, object], above: Place) -> Iterator[tuple[Place, str]]:
    """Every text in nested objects; what stands in lists has no place of its own and is left alone."""
    for key, value in answer.items():
        if isinstance(value, str) and value:
            yield (*above, key), value
        elif isinstance(value, dict):
            yield from _strings(value, (*above, key))


def _put(answer: dict[str, object], place: Place, value: str) -> None:
    *above, last = place
    inner = answer
    for key in above:
        inner = inner[key]  # type: ignore[assignment]
    inner[last] = value
