"""answer: a file of prompts through a release's engine, a row for a row; a killed run goes on where it stopped."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from stages.core.errors import Refusal, UserError
from stages.core.files import alone
from stages.core.run_notes import track
from stages.engines.engine_server import CHAT, EngineError, Server, call, reply
from stages.records.record import Message, Record, make_record, row_line
from stages.ship.serve.served_version import Version
from stages.text.strict_json import BrokenContract, parse_json

_BATCH = 32


def answer_file(source: Path, target: Path, version: Version, server: Server) -> str:
    """Write each row of `source` with its "answer" to `target`, in order; return how many.

    A row is {"prompt": TEXT} with "task", "context" and whatever else. An answer is {"release", "output", "tokens",
    "stopped"}, or {"release", "error"} where the engine refuses the row, as one that is too long. Raises UserError
    naming the first line that is no such row, before anything is asked; when the engine fails; Refusal when `target`
    has rows of something else, or another run is writing it.
    """
    rows, records = _read(source, target)
    with target.open("a+b") as out, alone(target) as lock:
        if lock is None:
            raise Refusal(f"another run writes {target}")
        done = _done(out, rows, version.id, target)
        bodies = version.messages(records[done:])
        told = {record.task: version.defaults(server, record.task) for record in records}

        def answered(number: int) -> dict[str, Any]:
            body = {**told[records[number].task], "messages": bodies[number - done]}
            try:
                found = call(server, CHAT, body)
                said = reply(found)
            except EngineError as error:
                if error.status is None or not 400 <= error.status < 500 or error.status in (401, 404, 408, 429):
                    raise  # no fault of the row's
                return {"release": version.id, "error": str(error)}
            if server.process is None and found.get("model") != version.id:
                raise Refusal(f"{server.url} answers with {found.get('model')}, and not with {version.id}")
            return {"release": version.id, "output": said.output, "tokens": said.tokens, "stopped": said.stopped}

        with ThreadPoolExecutor(server.slots) as pool:
            starts = range(done, len(rows), _BATCH)
            for start in track(starts, len(starts), "batches"):
                numbers = range(start, min(start + _BATCH, len(rows)))
                for number, said in zip(numbers, pool.map(answered, numbers), strict=True):
                    out.write(row_line({**rows[number], "answer": said}).encode())
                out.flush()
                os.fsync(out.fileno())
    return f"{len(rows) - done} rows answered by {version.id} in {target}" + (f", after {done} before" if done else "")


def _done(out: IO[bytes], rows: Sequence[dict[str, Any]], release: str, target: Path) -> int:
    """How many rows are answered; what a kill left of a half-written line is cut off, and nothing else ever is."""
    out.seek(0)
    *lines, half = out.read().split(b"\n")
    for number, line in enumerate([*lines, half], start=1):
        row = {**rows[number - 1], "answer": {"release": release}} if number <= len(rows) else None
        begun = row_line(row).encode()[:-3] if row else b"\n"
        if not line.startswith(begun) and not (number > len(lines) and begun.startswith(line)):
            raise Refusal(f"{target}, line {number}: no answer of {release} to this row; give another file for it")
    out.truncate(out.tell() - len(half))
    out.seek(0, os.SEEK_END)
    return len(lines)


def _read(source: Path, target: Path) -> tuple[list[dict[str, Any]], list[Record]]:
    rows: list[dict[str, Any]] = []
    records: list[Record] = []
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
        target.touch()
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read, or {target} not be written: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                parse_json(line)  # strictly: no key twice, no number that JSON has not
                row = json.loads(line)
                context = [Message(str(turn["role"]), turn["content"]) for turn in row.get("context", [])]
                if "answer" in row or not isinstance(row["prompt"], str) or not isinstance(row.get("task"), str | None):
                    raise TypeError("no row to answer")
                origin = f"{source.name}:{len(rows) + 1}"
                record = make_record(row["prompt"], "", None, "answer", origin, task=row.get("task"), context=context)
            except (BrokenContract, KeyError, TypeError, ValueError, AttributeError):
                raise UserError(
                    f'{source}, line {number}: expected {{"prompt": TEXT}}, with "task": TEXT, "context": '
                    '[{"role": TEXT, "content": TEXT}] if there are any, and without "answer"'
                ) from None
            rows.append(row)
            records.append(record)
    return rows, records
