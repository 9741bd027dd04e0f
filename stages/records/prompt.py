"""Prompts: how they are compared, the near pairs of all of them, the last word on leaks, files of general ones.

`dedup` searches the near pairs once and writes them, and the stages after it read them.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from stages.core.errors import Refusal, UserError
from stages.records.record import REPLAY, Record, grouped, make_record, read_rows, write_rows
from stages.text.normal_form import normalise, prompt_hash
from stages.text.strict_json import BrokenContract, parse_json

Item = TypeVar("Item", bound=Hashable)
NearPairs = list[tuple[bytes, bytes, float]]  # near prompts, each as the digest of its normal form, and their score


def asked(record: Record) -> str:
    """The text that stands for a record wherever prompts are compared: its earlier turns and its prompt.

    The task and the system message are left out, so that a text stays on one side of a split, whatever is asked about
    it. What the model reads, and with it what is a duplicate, `Question` says.
    """
    if not record.context:
        return record.prompt
    turns = [message.content for message in record.context if message.role != "system"]
    return "\n".join([*turns, record.prompt])


def compared(record: Record) -> str:
    """The normal form of what is asked."""
    return normalise(asked(record))


class Question(NamedTuple):
    """What the model reads: the task, the row's own system message and what is asked, both in normal form."""

    task: str | None
    system: str
    text: str


def question(record: Record) -> Question:
    if not record.context:
        return Question(record.task, "", compared(record))
    system = "".join(message.content for message in record.context if message.role == "system")
    return Question(record.task, normalise(system), compared(record))


def by_question(records: Iterable[Record]) -> dict[Question, list[Record]]:
    return grouped(records, question)


def lines(records: Iterable[Record]) -> set[str]:
    """The lines of what is asked, in normal form, but for empty ones."""
    return {line for record in records for part in asked(record).split("\n") if (line := normalise(part))}


def among(pairs: NearPairs, known: Mapping[bytes, Item]) -> list[tuple[Item, Item, float]]:
    """The pairs of two of the `known` prompts, by what stands there for each."""
    return [(known[left], known[right], score) for left, right, score in pairs if left in known and right in known]


def digest(text: str) -> bytes:
    """The name of a normalised prompt: in hex it is `prompt_hash` of what it is the normal form of."""
    return sha256(text.encode()).digest()


def write_near_pairs(path: Path, texts: Sequence[str], pairs: Iterable[tuple[int, int, float]], threshold: int) -> None:
    """Write pairs of positions in `texts` with their scores; the first line, which is always there, counts both."""
    rows = [
        {"left": digest(texts[left]).hex(), "right": digest(texts[right]).hex(), "score": score}
        for left, right, score in pairs
    ]
    write_rows(path, [{"threshold": threshold, "prompts": len(texts), "pairs": len(rows)}, *rows])


def read_near_pairs(path: Path, threshold: int) -> NearPairs:
    """Read what `write_near_pairs` wrote. Raises UserError when it is something else, or of another threshold."""
    head, *rows = read_rows(path) if path.is_file() else ({},)
    if head.get("threshold") != threshold or head.get("pairs") != len(rows):
        raise UserError(f"{path} has not the near pairs at dedup.threshold {threshold}; make it with `dvc repro dedup`")
    return [(bytes.fromhex(row["left"]), bytes.fromhex(row["right"]), row["score"]) for row in rows]


def components(items: Iterable[Item], pairs: Iterable[tuple[Item, Item]]) -> list[list[Item]]:
    """The distinct items in groups that `pairs` connect, directly or through others, in the order of the items."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = list(pairs)
    place = {item: position for position, item in enumerate(dict.fromkeys(chain.from_iterable(pairs)))}
    links = np.array([(place[left], place[right]) for left, right in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links), dtype=bool), (links[:, 0], links[:, 1])), shape=(len(place), len(place)))
    numbers = connected_components(graph, directed=False)[1].tolist() if place else []
    groups, found = list[list[Item]](), dict[int, list[Item]]()
    for item in items:
        group = found.setdefault(numbers[place[item]], []) if item in place else []
        if not group:
            groups.append(group)
        group.append(item)
    return groups


def refuse_overlap(what: str, seen: Iterable[Record], locked: Mapping[str, str]) -> None:
    """Raises Refusal when a row is locked: by its id, or by the SHA-256 of its normalised prompt, by which `locked` has
    ids.
    """
    ids = set(locked.values())
    leaks = [row for row in seen if row.id in ids or prompt_hash(asked(row)) in locked]
    if leaks:
        names = ", ".join(f"{row.origin} ({row.id[:12]})" for row in leaks[:10])
        raise Refusal(f"{len(leaks)} rows of {what} are in the hold-out: {names}; nothing was written")


def read_texts(key: str, file: str, wanted: set[str]) -> list[Record]:
    """The records of the JSONL file that the parameter `key` names: general prompts, without exact repeats.

    Raises UserError when it cannot be read or a line is something else; with file and line.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:  # missing, a folder, no UTF-8, no name that a file can have
        raise UserError(
            f"{key}: {file[:200]!r} cannot be read ({str(error)[:200]}); it must name a JSONL file of "
            f"{' and '.join(sorted(wanted))}, an empty one for none"
        ) from None
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except BrokenContract as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        texts = list(row.values()) if isinstance(row, dict) and row.keys() == wanted else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{file}, line {number}: expected an object of texts with {' and '.join(sorted(wanted))}")
        record = make_record(row["prompt"], row.get("completion", ""), None, REPLAY, f"{Path(file).name}:{number}")
        records.setdefault(record.id, record)
    return list(records.values())
