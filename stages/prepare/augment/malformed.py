"""Examples of input that nobody can read, so that the model learns to say so instead of guessing.

A prompt that holds a JSON object is broken in its syntax alone: a mark less, a comma more, or cut off. Any other prompt
is text, which is still understood after that, and is broken beyond reading: shuffled, or other keys struck.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from random import Random

from rapidfuzz import fuzz

from stages.core.errors import UserError
from stages.records.contract import Contract, Tasks
from stages.records.record import Record, make_record, rank
from stages.text.normal_form import normalise
from stages.text.strict_json import BrokenContract, parse_json

SOURCE = "augment:malformed"

# A broken prompt keeps less than this of its origin (fuzz.ratio): a prompt that could still be answered would teach
# the model to refuse.
_LESS_ALIKE_THAN = 60
# Scrambled text has about a token a character; longer rows would not fit into training.
_LONGEST = 80

_KEYBOARD = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,./")


def malformed_rows(
    rows: Sequence[Record], every: int, completion: str, known: Iterable[str], seed: int
) -> list[Record]:
    """One row with a broken prompt for `every` rows, each made from a row drawn by the seed.

    `known` are the normalised prompts that have an answer; no broken prompt is one of them.
    """
    taken = set(known)
    chosen = sorted(rows, key=lambda row: rank(seed, "malformed", row.id))[: len(rows) // every]
    made = []
    for row in chosen:
        prompt = break_prompt(row, taken, seed)
        taken.add(normalise(prompt))
        made.append(make_record(prompt, completion, None, SOURCE, row.origin, task=row.task, context=row.context))
    return made


def break_prompt(row: Record, taken: set[str], seed: int) -> str:
    """Break a row's prompt in a seeded way, beyond reading and into none of the prompts `taken`."""
    original = normalise(row.prompt)
    start, end = find_object(row.prompt)
    for attempt in itertools.count():
        # Random seeds itself from all of the text and gives the same numbers on every machine.
        random = Random(rank(seed, f"break {attempt}", row.id))
        if start < end and attempt < _OBJECT_ATTEMPTS:
            piece = random.choice(_OBJECT_WAYS)(row.prompt[start:end], random)
            broken = row.prompt[:start] + piece + row.prompt[end:]
            unreadable = not _parses(piece)
        else:
            broken = random.choice(_TEXT_WAYS)(row.prompt, random)
            unreadable = fuzz.ratio(normalise(broken), original) < _LESS_ALIKE_THAN
        text = normalise(broken)
        if text and text not in taken and unreadable:
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


def _parses(text: str) -> bool:
    try:
        parse_json(text)
    except BrokenContract:
        return False
    return True


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
    """The rows whose task allows `completion` (augment.malformed_completion) as an answer.

    Raises:
        UserError: when there is none; what is wrong with the answer in the task of most rows.
    """
    problems = {tag: _problem(completion, tasks.of(tag)) for tag in {row.task for row in rows}}
    able = [row for row in rows if problems[row.task] is None]
    if not able:
        tags = [row.task for row in rows]
        most = max(sorted(problems, key=repr), key=tags.count)
        task = "the task" if most is None else f"task {most}"
        raise UserError(
            f"augment.malformed_completion: {completion!r} is no answer of {task} ({problems[most]}); write the "
            "answer that the task has for input that cannot be read, or set augment.malformed_every to null"
        )
    return able


def _problem(completion: str, contract: Contract) -> str | None:
    """What keeps the completion from being an answer of the task, or None."""
    if contract.settings.kind == "json":
        try:
            return contract.schema.problem(parse_json(completion))
        except BrokenContract as error:
            return f"not JSON: {error}"
    if contract.settings.kind == "classification" and completion not in contract.settings.labels:
        return f"none of its labels: {', '.join(contract.settings.labels)}"
    return None
