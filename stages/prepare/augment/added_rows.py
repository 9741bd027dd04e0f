"""The rows that are added to the data's: values exchanged, prompts that nobody can read, copies and general rows.

"Weather in Oslo" with {"city": "Oslo"} and another row's "Lima" give "Weather in Lima" with {"city": "Lima"}, from
which a model learns to copy (mention replacement, Dai and Adel 2020, arXiv 2010.11683). A malformed prompt with a JSON
object is broken in its syntax alone; any other is text, and broken beyond reading.
"""

import heapq
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

from rapidfuzz import fuzz

from stages.core.errors import UserError
from stages.records.prompt import compared
from stages.records.record import Record, grouped, make_record, rank
from stages.text.json_schema import Contract, Tasks
from stages.text.normal_form import normalise
from stages.text.strict_json import BrokenContract, is_structured, parse_json, parsed, rewrite

SWAPPED_SOURCE = "augment:value_swap"
MALFORMED_SOURCE = "augment:malformed"
STRUCTURED_SOURCE = "augment:structured"
BALANCE_SOURCE = "augment:task_balance"

# Where a value stands in a completion: the keys from the top down.
Place = tuple[str, ...]
# The values of the training rows by label and place, sorted.
Values = dict[tuple[str | None, Place], list[str]]

# A broken prompt keeps less than this of its origin (fuzz.ratio): a prompt that could still be answered would teach
# the model to refuse.
_LESS_ALIKE_THAN = 60
# Scrambled text has about a token a character; longer rows would not fit into training.
_LONGEST = 80
_KEYBOARD = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,./")
# Short enough to stop at rows that cannot become anything new, long enough to pass over those that did already.
_ROUNDS_PER_ROW = 3


def swapped_rows(rows: Sequence[Record], count: int, known: Collection[str], seed: int) -> list[Record]:
    """At most `count` rows with exchanged values, each made from a row drawn by the seed.

    No new row has one of the normalised prompts that are `known`, nor that of any other new row.
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
    prompt, changed = row.prompt, dict[str, str]()
    for place, value in copied:
        new = random.choice(values[row.label, place])
        if random.random() < 0.5 or new == value or _whole(value).search(prompt) is None:
            continue
        prompt = _whole(value).sub(lambda _, new=new: new, prompt)  # type: ignore[misc]
        changed[value] = new
    # Each copied value, exchanged or not, still stands once in the new prompt.
    if not changed or any(len(_whole(changed.get(value, value)).findall(prompt)) != 1 for _, value in copied):
        return None
    # No other text of the answer has a copied value, and all else is left to the letter.
    completion = rewrite(row.completion, lambda kind, text: changed.get(text, text) if kind == "string" else text)
    return make_record(prompt, completion, row.label, SWAPPED_SOURCE, row.origin, task=row.task, context=row.context)


def _copied(row: Record) -> list[tuple[Place, str]]:
    """The values of the answer that stand once in the prompt, as whole words, and in no other value."""
    strings = list(_strings(parsed(row.completion), ()))
    return [
        (place, value)
        for place, value in strings
        if place
        and len(_whole(value).findall(row.prompt)) == 1
        and not any(other != place and (value in text or text in value) for other, text in strings)
    ]


def said_in_prompt(row: Record) -> list[str]:
    """The texts and numbers of a JSON answer, but for its label, that the prompt says to the letter, as whole words."""
    values = (value for value in _leaves(parsed(row.completion)) if value != row.label)
    return [value for value in values if _whole(value).search(row.prompt)]


def _leaves(answer: object) -> Iterator[str]:
    if isinstance(answer, dict | list):
        for inner in answer.values() if isinstance(answer, dict) else answer:
            yield from _leaves(inner)
    elif answer not in (None, "", True, False) or type(answer) is int:
        yield str(answer)


def _whole(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


def _strings(value: object, place: Place | None) -> Iterator[tuple[Place | None, str]]:
    """Every text of an answer; what stands in lists has no place of its own and is left alone."""
    if isinstance(value, str) and value:
        yield place, value
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from _strings(inner, None if place is None else (*place, key))
    for inner in value if isinstance(value, list) else ():
        yield from _strings(inner, None)


def malformed_rows(
    rows: Sequence[Record], every: int, completion: str, known: Iterable[str], seed: int
) -> list[Record]:
    """One row with a broken prompt, that is none of the `known`, for `every` rows, each of a row drawn by the seed."""
    taken = set(known)
    chosen = heapq.nsmallest(len(rows) // every, rows, key=lambda row: rank(seed, "malformed", row.id))
    made = []
    for row in chosen:
        prompt = break_prompt(row, taken, seed)
        new = make_record(prompt, completion, None, MALFORMED_SOURCE, row.origin, task=row.task, context=row.context)
        taken.add(compared(new))
        made.append(new)
    return made


def break_prompt(row: Record, taken: set[str], seed: int) -> str:
    """Break a row's prompt in a seeded way, beyond reading and, with all before it, into none that is `taken`."""
    original = normalise(row.prompt)
    start, end = find_object(row.prompt)
    for attempt in itertools.count():
        # Random seeds itself from all of the text and gives the same numbers on every machine.
        random = Random(rank(seed, f"break {attempt}", row.id))
        if start < end and attempt < _OBJECT_ATTEMPTS:
            piece = random.choice(_OBJECT_WAYS)(row.prompt[start:end], random)
            broken = row.prompt[:start] + piece + row.prompt[end:]
            unreadable = parsed(piece) is None
        else:
            broken = random.choice(_TEXT_WAYS)(row.prompt, random)
            unreadable = fuzz.ratio(normalise(broken), original) < _LESS_ALIKE_THAN
        if normalise(broken) and unreadable and compared(replace(row, prompt=broken)) not in taken:
            return broken
    raise RuntimeError("keys struck at random never run out")


def find_object(prompt: str) -> tuple[int, int]:
    """Where the first JSON object with a key stands in the prompt; an empty span when there is none."""
    start = prompt.find("{")
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(prompt, start)
        except (ValueError, RecursionError):
            value, end = {}, start
        if value:
            return start, end
        start = prompt.find("{", start + 1)
    return 0, 0


def _without_a_mark(text: str, random: Random) -> str:
    """Without one brace, bracket, quote or colon."""
    mark = random.choice([mark for mark in '{}[]":' if mark in text])
    gone = random.choice([place for place, character in enumerate(text) if character == mark])
    return text[:gone] + text[gone + 1 :]


def _extra_comma(text: str, random: Random) -> str:
    """A comma after another one, or before a closing bracket."""
    place = random.choice([place for place, character in enumerate(text) if character in ",}]"])
    return f"{text[:place]},{text[place:]}"


def _truncated(text: str, random: Random) -> str:
    return text[: random.randrange(1, len(text))].rstrip()


def _shuffled(prompt: str, random: Random) -> str:
    """The prompt's own characters in any order."""
    letters = list(prompt[:_LONGEST])
    random.shuffle(letters)
    return "".join(letters)


def _keyboard(prompt: str, random: Random) -> str:
    """Neighbouring keys, struck at random."""
    row = random.choice(_KEYBOARD)
    return "".join(random.choices(row, k=random.randint(8, max(12, min(len(prompt), _LONGEST)))))


# An object has a brace, a quote and a colon at least, so that none of these fails; what still parses is tried again.
_OBJECT_WAYS = (_without_a_mark, _extra_comma, _truncated)
_OBJECT_ATTEMPTS = 100  # then all the ways to break a short object are taken, and it is broken as text
_TEXT_WAYS = (_shuffled, _keyboard)


def rows_that_can_refuse(rows: Sequence[Record], completion: str, tasks: Tasks) -> list[Record]:
    """The rows whose task allows `completion` (augment.malformed_completion) as an answer."""
    problems = {tag: contract_problem(completion, tasks.of(tag)) for tag in {row.task for row in rows}}
    able = [row for row in rows if problems[row.task] is None]
    if not able:
        most = max(sorted(problems, key=repr), key=Counter(row.task for row in rows).__getitem__)
        task = "the task" if most is None else f"task {most}"
        raise UserError(
            f"augment.malformed_completion: {completion!r} is no answer of {task} ({problems[most]}); write one, or "
            "set augment.malformed_every to null"
        )
    return able


def contract_problem(completion: str, contract: Contract) -> str | None:
    """What keeps the completion from being an answer of the task, or None."""
    if contract.settings.kind == "json":
        try:
            return contract.schema.problem(parse_json(completion))
        except BrokenContract as error:
            return f"not JSON: {error}"
    if contract.settings.kind == "classification" and completion not in contract.settings.labels:
        return f"none of its labels: {', '.join(contract.settings.labels)}"
    return None


def plan(rows: int, structured: int, replay: int, structured_share: float, replay_share: float) -> tuple[int, int]:
    """How many structured rows to repeat, and how many replay rows to take.

    The most of `replay` replay rows, which count as text, that stay within `replay_share` of all rows in the end, and
    the fewest repeats that bring the `structured` ones to `structured_share` of them.
    """
    # By way of its text, 0.3 is 3/10 and not the binary number beside it.
    wanted, general = Fraction(str(structured_share)), Fraction(str(replay_share))
    repeats = 0
    while True:
        # More repeats make room for more replay rows, which ask for more repeats: until neither grows.
        taken = min(replay, math.floor(general * (rows + repeats) / (1 - general)))
        text = rows - structured + taken
        if text <= (1 - wanted) * (rows + repeats + taken):
            return repeats, taken
        if wanted == 1:
            raise UserError(f"augment.structured_share is 1, but {text} rows have no JSON completion; lower it")
        repeats = math.ceil(text / (1 - wanted)) - rows - taken


def repeat_structured(rows: Iterable[Record], count: int, seed: int) -> list[Record]:
    """`count` copies of structured rows, each row as often as any other or once more."""
    structured = [row for row in rows if count and is_structured(row.completion)]
    if count and not structured:
        raise UserError("augment.structured_share: no training row has a JSON completion; set it to 0 or add rows")
    return _copies(structured, count, STRUCTURED_SOURCE, seed)


def balance_tasks(rows: Iterable[Record], share: float, seed: int) -> list[Record]:
    """Copies that bring every task to `share` of the rows that the largest one has; rows without a tag are a task."""
    tasks = grouped(rows, lambda row: row.task)
    goal = math.ceil(Fraction(str(share)) * max(map(len, tasks.values()), default=0))
    return [
        copy
        for tag in sorted(tasks, key=repr)
        for copy in _copies(tasks[tag], max(0, goal - len(tasks[tag])), BALANCE_SOURCE, seed)
    ]


def _copies(rows: Iterable[Record], count: int, source: str, seed: int) -> list[Record]:
    ordered = sorted(rows if count else (), key=lambda row: rank(seed, source, row.id))
    return [replace(row, source=source) for row in itertools.islice(itertools.cycle(ordered), count)]


def training_order(rows: Iterable[Record], seed: int) -> list[Record]:
    """The rows shuffled by the seed and their content, so that a new row moves no other."""
    ordered = sorted(rows, key=lambda row: (row.id, row.source))
    places = []
    for name, copies in itertools.groupby(f"{row.id}:{row.source}" for row in ordered):
        places += [rank(seed, "order", f"{name}:{number}") for number, _ in enumerate(copies, start=1)]
    return [row for _, row in sorted(zip(places, ordered, strict=True), key=lambda pair: pair[0])]
