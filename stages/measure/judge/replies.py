"""Replies that were paid for, kept by the content of what was asked, so that no run pays twice."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.measure.judge.questions import SYSTEM, Question
from stages.records.record import row_line


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said, and the tokens it took; None where the server did not count them."""

    text: str
    input_tokens: int | None
    output_tokens: int | None


def key(question: Question, identity: Mapping[str, Any]) -> str:
    """SHA-256 over all that decides a reply: the model and its sampling, every word, and which asking this is."""
    asked = {**identity, "texts": [SYSTEM, question.text], "repeat": question.repeat}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Memory:
    """Replies by key, in a file that only grows: a line a reply, on the disk before the next is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Reply] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines():
            try:
                row = json.loads(line)
                name = row.pop("key")
                self.known[name] = Reply(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # the line at which a run was killed
        self._cut = bool(content) and not content.endswith(b"\n")

    def add(self, name: str, reply: Reply) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = ("\n" if self._cut else "") + row_line({"key": name, **asdict(reply)})
        with self._path.open("ab") as handle:
            handle.write(line.encode())
            handle.flush()
            os.fsync(handle.fileno())
        self._cut = False
        self.known[name] = reply
