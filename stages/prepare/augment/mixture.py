"""The rows that are trained along with the data's: how many of each kind, and in which order."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from stages.core.errors import UserError
from stages.records.record import REPLAY, Record, make_record, rank
from stages.text.strict_json import is_structured, parsed

STRUCTURED_SOURCE = "augment:structured"
BALANCE_SOURCE = "augment:task_balance"


def plan(rows: int, structured: int, replay: int, structured_share: float, replay_share: float) -> tuple[int, int]:
    """How many structured rows to repeat, and how many replay rows to take.

    Of `rows` rows `structured` are structured, and there are `replay` replay rows, which count as text. The most
    replay rows are taken that stay within `replay_share` of all rows in the end, and the fewest repeats that bring
    the structured ones to `structured_share` of them.

    Raises:
        UserError: when all rows must be structured and some are not.
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
    """`count` copies of structured rows, each row as often as any other or once more.

    Raises:
        UserError: when there is none to repeat.
    """
    structured = [row for row in rows if is_structured(row.completion)]
    if count and not structured:
        raise UserError(
            "augment.structured_share asks for JSON completions, but no training row has one; set it to 0 or add rows"
        )
    return _copies(structured, count, STRUCTURED_SOURCE, seed)


def balance_tasks(rows: Iterable[Record], share: float, seed: int) -> list[Record]:
    """Copies that bring every task to `share` of the rows that the largest one has; rows without a tag are a task."""
    tasks: dict[str | None, list[Record]] = defaultdict(list)
    for row in rows:
        tasks[row.task].append(row)
    goal = math.ceil(Fraction(str(share)) * max(map(len, tasks.values()), default=0))
    return [
        copy
        for tag in sorted(tasks, key=repr)
        for copy in _copies(tasks[tag], max(0, goal - len(tasks[tag])), BALANCE_SOURCE, seed)
    ]


def _copies(rows: Iterable[Record], count: int, source: str, seed: int) -> list[Record]:
    ordered = sorted(rows, key=lambda row: rank(seed, source, row.id))
    return [replace(row, source=source) for row in itertools.islice(itertools.cycle(ordered), count)]


def training_order(rows: Iterable[Record], seed: int) -> list[Record]:
    """The rows shuffled by the seed and their content.

    Sorted by id, copies of a row would stand side by side and fall into one batch; sorted by kind, training would
    end on one kind. A row's place depends on itself alone, so a new row moves no other.
    """
    copies: Counter[tuple[str, str]] = Counter()
    placed = []
    for row in sorted(rows, key=lambda row: (row.id, row.source)):
        copies[row.id, row.source] += 1
        placed.append((rank(seed, "order", f"{row.id}:{row.source}:{copies[row.id, row.source]}"), row))
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def read_replay(path: Path) -> list[Record]:
    """Read JSONL with `prompt` and `completion`, without its exact repeats, in the order of the lines.

    Raises:
        UserError: when the file is missing, or a line is something else; with file and line.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; augment.replay_file must name a JSONL file of prompt and completion")
    found: dict[str, Record] = {}
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            record = _record(line, path, number)
            found.setdefault(record.id, record)
    return list(found.values())


def _record(line: bytes, path: Path, number: int) -> Record:
    match parsed(line.decode("utf-8", "surrogateescape")):
        case {"prompt": str(prompt), "completion": str(completion), **rest} if not rest:
            if prompt.strip() and completion.strip():
                return make_record(prompt, completion, None, REPLAY, f"{path.name}:{number}")
    raise UserError(f"{path}, line {number}: expected an object of two texts, prompt and completion")
