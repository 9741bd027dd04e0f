"""The record: one training pair, its canonical form and id, and the JSONL files that hold it."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.files import atomic

# The source of general rows that `augment` mixes in: they are asked as anybody would ask, without an instruction.
REPLAY = "augment:replay"


@dataclass(frozen=True, slots=True)
class Message:
    """What was said before the prompt. `role` is system (then it is the first), user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One training pair.

    `label` is the stratum, or None. `source` names where the row came from (by default its file),
    `origin` is the raw file and line, `FILE:LINE`, counted from 1. `task` names the task of the row where a
    data set has several. `context` is the row's own system message and the turns before the prompt. `fields`
    are further columns of the raw row, kept for slices; they are no part of the id.
    """

    id: str
    prompt: str
    completion: str
    label: str | None
    source: str
    origin: str
    task: str | None = None
    context: tuple[Message, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)


def canonical(text: str) -> str:
    """NFC with every line ending as a line feed: texts that read the same are the same."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def record_id(prompt: str, completion: str, context: Sequence[Message] = (), task: str | None = None) -> str:
    """SHA-256 of the canonical pair, followed by the context and the task where there are any.

    A JSON array keeps the borders between the texts unambiguous.
    """
    parts: list[Any] = [canonical(prompt), canonical(completion)]
    if context:
        parts.append([[message.role, canonical(message.content)] for message in context])
    if task is not None:
        parts.append({"task": task})
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def rank(seed: int, purpose: str, key: str) -> str:
    """The place of `key` in a shuffled order: sort by it. `purpose` keeps the draws of one seed apart.

    A row's place depends on no other row, so a draw of the first n is the same for any order of the rows,
    and a new row moves at most one other out.
    """
    return hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).hexdigest()


def make_record(
    prompt: str,
    completion: str,
    label: str | None,
    source: str,
    origin: str,
    *,
    task: str | None = None,
    context: Sequence[Message] = (),
    fields: Mapping[str, str] | None = None,
) -> Record:
    """A record whose texts are in canonical form and whose id follows from them."""
    return Record(
        id=record_id(prompt, completion, context, task),
        prompt=canonical(prompt),
        completion=canonical(completion),
        label=label,
        source=source,
        origin=origin,
        task=task,
        context=tuple(Message(message.role, canonical(message.content)) for message in context),
        fields=dict(fields or {}),
    )


def record_row(record: Record) -> dict[str, Any]:
    """The record as a row of JSONL; task, context and fields are there only where the record has them."""
    row = {name: getattr(record, name) for name in Record.__slots__}
    row["context"] = [{"role": message.role, "content": message.content} for message in record.context]
    return {name: value for name, value in row.items() if value not in (None, [], {}) or name == "label"}


def record_of(row: Mapping[str, Any]) -> Record:
    """The record of a row that `record_row` made. Raises TypeError when it is none."""
    return Record(**{**row, "context": tuple(Message(**message) for message in row.get("context", ()))})


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; return how many.

    No rows are one empty line: DVC warns of an empty file at each run of a stage that depends on it.
    """
    count = 0
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as handle:
        for row in rows:
            handle.write(row_line(row))
            count += 1
        if not count:
            handle.write("\n")
    return count


def row_line(row: dict[str, Any]) -> str:
    """The row as a line of JSONL, with its line feed."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read rows that `write_rows` wrote. Raises UserError with file and line for anything else."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run `dvc repro` to make it")
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if number == 1 and line == b"\n":
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); run `dvc repro` to make it anew") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected a JSON object; run `dvc repro` to make it anew")
            yield row


def write_records(path: Path, records: Iterable[Record]) -> int:
    return write_rows(path, map(record_row, records))


def read_records(path: Path) -> list[Record]:
    """Read records that a stage wrote. Raises UserError when a row is no record."""
    records = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            records.append(record_of(row))
        except TypeError:
            raise UserError(
                f"{path}, line {number}: not a record of this pipeline (has {', '.join(row)}); "
                "run `dvc repro` to make it anew"
            ) from None
    return records
