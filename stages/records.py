"""The record: one training pair, its canonical form and id, and the JSONL files that hold it."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.files import atomic


@dataclass(frozen=True, slots=True)
class Record:
    """One training pair.

    `label` is the stratum, or None. `source` names where the row came from (by default its file),
    `origin` is the raw file and line, `FILE:LINE`, counted from 1.
    """

    id: str
    prompt: str
    completion: str
    label: str | None
    source: str
    origin: str


def canonical(text: str) -> str:
    """NFC with every line ending as a line feed: texts that read the same are the same."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def record_id(prompt: str, completion: str) -> str:
    """SHA-256 of the canonical pair. A JSON array keeps the border between the two unambiguous."""
    pair = json.dumps([canonical(prompt), canonical(completion)], ensure_ascii=False)
    return hashlib.sha256(pair.encode()).hexdigest()


def make_record(prompt: str, completion: str, label: str | None, source: str, origin: str) -> Record:
    """A record whose texts are in canonical form and whose id follows from them."""
    return Record(
        id=record_id(prompt, completion),
        prompt=canonical(prompt),
        completion=canonical(completion),
        label=label,
        source=source,
        origin=origin,
    )


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; return how many."""
    count = 0
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as handle:
        for row in rows:
            handle.write(row_line(row))
            count += 1
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
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); run `dvc repro` to make it anew") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected a JSON object; run `dvc repro` to make it anew")
            yield row


def write_records(path: Path, records: Iterable[Record]) -> int:
    return write_rows(path, (asdict(record) for record in records))


def read_records(path: Path) -> list[Record]:
    """Read records that a stage wrote. Raises UserError when a row is no record."""
    records = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            records.append(Record(**row))
        except TypeError:
            raise UserError(
                f"{path}, line {number}: not a record of this pipeline (has {', '.join(row)}); "
                "run `dvc repro` to make it anew"
            ) from None
    return records
