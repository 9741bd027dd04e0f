"""Ask the judge what it was not asked before: replies that were paid for are kept by the content of what was asked."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from stages.core import paths
from stages.measure.judge.pairwise_questions import SYSTEM, Question
from stages.params.gates import Judge
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


class Asked(Protocol):
    """A judge that can be asked; `identity` is all of it that decides a reply."""

    identity: Mapping[str, Any]

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """The replies, each as soon as it is there, in any order, and how long the rest will take."""
        ...


def ask_all(questions: Sequence[Question], judge: Judge, notes: dict[str, object]) -> dict[Question, Reply]:
    """The reply to every question, kept from an earlier run or asked for now; `notes` tells how many were asked.

    Raises:
        UserError: when the judge cannot be asked. Replies that came before are kept.
    """
    asked = _judge(judge)
    memory = Memory(paths.JUDGE_REPLIES)
    keys = {question: key(question, asked.identity) for question in questions}
    # Two models that say the same to a prompt make the same question, which is asked once.
    missing = list({keys[question]: question for question in questions if keys[question] not in memory.known}.values())
    kept = len(questions) - len(missing)
    notes |= {"replies_kept": kept, "replies_asked": len(missing)}
    print(f"asking {judge.model} {len(missing)} times; {kept} replies are known already", flush=True)
    for question, reply in asked.ask(missing):
        memory.add(keys[question], reply)
    return {question: memory.known[keys[question]] for question in questions}


def _judge(judge: Judge) -> Asked:
    from stages.measure.judge.judges import Endpoint, Local

    return Local(judge) if judge.provider == "local" else Endpoint(judge)
