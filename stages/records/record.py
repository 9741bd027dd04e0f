"""The record: one training pair, its canonical form and id; the JSONL files of records kept and of those taken out."""

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from stages.core.errors import UserError
from stages.core.files import atomic, changing

Item = TypeVar("Item")
Key = TypeVar("Key")

_ANEW = "run `dvc repro` to make it anew"
# The source of general rows that `augment` mixes in: they are asked as anybody would ask, without an instruction.
REPLAY = "augment:replay"
_ALWAYS = ("id", "prompt", "completion", "label", "source", "origin")
# Made once: there are millions of rows.
_encode, _decode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode, json.JSONDecoder().decode
_quoted = json.encoder.encode_basestring
_NO_FIELDS: Mapping[str, str] = {}
_held_once: Callable[[str], str] = lru_cache(1 << 14)(lambda text: text)


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
    fields: Mapping[str, str] = field(default_factory=lambda: _NO_FIELDS, hash=False)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key, in the order in which they come; of a key that none has, an empty list."""
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


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

    A row's place depends on no other row, so a draw of the first n is the same for any order of the rows.
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
        fields=dict(fields) if fields else _NO_FIELDS,
    )


def record_row(record: Record) -> dict[str, Any]:
    """The record as a row of JSONL; task, context and fields are there only where the record has them."""
    row: dict[str, Any] = {name: getattr(record, name) for name in _ALWAYS}
    if record.task is not None:
        row["task"] = record.task
    if record.context:
        row["context"] = [{"role": message.role, "content": message.content} for message in record.context]
    if record.fields:
        row["fields"] = record.fields
    return row


def record_of(row: Mapping[str, Any]) -> Record:
    """The record of a row that `record_row` made. Raises TypeError or KeyError when it is none."""
    if "context" in row:
        row = {**row, "context": tuple(Message(**message) for message in row["context"])}
    return Record(**{**row, **{name: _held_once(row[name]) for name in ("completion", "label", "source")}})


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically.

    No rows are one empty line: DVC warns of an empty file at each run of a stage that depends on it.
    """
    _write_lines(path, map(row_line, rows))


def write_new(path: Path, rows: Iterable[dict[str, Any]], option: str) -> None:
    """`write_rows` to a file that is not there, and that no other process writes meanwhile; see `require_new`."""
    with changing(path.parent):
        require_new(path, option)
        write_rows(path, rows)


def require_new(path: Path, option: str) -> None:
    """Raises UserError when the file that the option names is there already."""
    if path.exists():
        raise UserError(f"{path} is there already, perhaps with answers of people; move it, or choose another {option}")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(lines)
        if not handle.tell():
            handle.write("\n")


def record_line(record: Record) -> str:
    """`row_line` of `record_row`; most records have texts alone, which need no encoder."""
    if record.context or record.fields or record.task is not None or record.label is None:
        return row_line(record_row(record))
    values = (f'"{name}": {_quoted(getattr(record, name))}' for name in _ALWAYS)
    return "{" + ", ".join(values) + "}\n"


def row_line(row: dict[str, Any]) -> str:
    """The row as a line of JSONL, with its line feed."""
    return _encode(row) + "\n"


def read_rows(path: Path, decode: Callable[[str], Any] = _decode, remedy: str = _ANEW) -> Iterator[dict[str, Any]]:
    """Read rows that `write_rows` wrote. Raises UserError with file, line and `remedy` for anything else.

    What people edit is read with `parse_json`, for what it refuses cannot be written again as it is.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; run `dvc repro` to make it")
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if number == 1 and line == b"\n":
                continue
            try:
                row = decode(line.decode())
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); {remedy}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected a JSON object; {remedy}")
            yield row


def write_records(path: Path, records: Iterable[Record]) -> None:
    _write_lines(path, map(record_line, records))


def read_records(path: Path) -> list[Record]:
    """Read records that a stage wrote. Raises UserError when a row is no record."""
    return _read(path, record_of)


def _read(path: Path, read: Callable[[dict[str, Any]], Item]) -> list[Item]:
    found = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            found.append(read(row))
        except (TypeError, KeyError):
            raise UserError(f"{path}, line {number}: not a record of this stage; {_ANEW}") from None
    return found


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was taken out.

    `witness` is the id of the record because of which it was, `score` how alike their prompts are (0 to 100,
    rounded down to hundredths); both are None where no other record is the cause.
    """

    reason: str
    detail: str
    witness: str | None
    score: float | None
    record: Record


def origin_place(record: Record) -> tuple[str, int]:
    """File and line of a record's origin, for sorting: line 9 comes before line 10."""
    file, _, line = record.origin.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (record.origin, 0)


def copy_rank(record: Record) -> tuple[bool, str, str, tuple[str, int]]:
    """Of records with one id the first in this order stands for all.

    It is the labelled one, then the one with the smallest label and source, then the one from the smallest file and
    line: only `origin` can depend on the order of the raw rows.
    """
    return record.label is None, record.label or "", record.source, origin_place(record)


def write_dropped(path: Path, rows: Iterable[Dropped]) -> None:
    """Write the rows sorted by record id, then origin."""
    ordered = sorted(rows, key=lambda row: (row.record.id, origin_place(row.record)))
    values = ({name: getattr(row, name) for name in Dropped.__slots__} for row in ordered)
    write_rows(path, ({**row, "record": record_row(row["record"])} for row in values))


def read_dropped(path: Path) -> list[Dropped]:
    """Read what `write_dropped` wrote. Raises UserError when a row is something else."""
    return _read(path, lambda row: Dropped(**{**row, "record": record_of(row["record"])}))
