"""General rows that are trained along with the task against forgetting."""

from collections.abc import Sequence
from pathlib import Path

from stages.core.errors import UserError
from stages.near_duplicates.pairs import cross_pairs
from stages.records.record import REPLAY, Record, make_record
from stages.text.normal_form import asked, normalise
from stages.text.strict_json import BrokenContract, parse_json


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
    try:
        row = parse_json(line.decode("utf-8"))
    except (BrokenContract, UnicodeDecodeError) as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}); mend or remove the line") from None
    match row:
        case {"prompt": str(prompt), "completion": str(completion), **rest} if not rest:
            if prompt.strip() and completion.strip():
                return make_record(prompt, completion, None, REPLAY, f"{path.name}:{number}")
    raise UserError(f"{path}, line {number}: expected an object of two texts, prompt and completion")


def refuse_leaks(replay: Sequence[Record], held: Sequence[Record], path: Path, threshold: int) -> None:
    """Check that no replay row asks what the hold-out or validation asks, or nearly that.

    Raises:
        UserError: naming the line.
    """
    texts, held_texts = ([normalise(asked(row)) for row in rows] for rows in (replay, held))
    pairs = cross_pairs(texts, held_texts, threshold)
    if pairs:
        pair = min(pairs, key=lambda pair: (pair.left, -pair.score))
        line = replay[pair.left].origin.rpartition(":")[2]
        alike = "is" if pair.distance == 0 else f"is {pair.score:.2f} % like one"
        raise UserError(f"{path}, line {line}: the prompt {alike} in the hold-out or validation; remove the line")
