"""The rows of data/preferences: pairs and thumbs, each with its source."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.records.prompt import compared
from stages.records.record import Message, Record, canonical, grouped, make_record, rank
from stages.text.strict_json import BrokenContract, parse_json

_PAIR, _THUMB = {"chosen", "rejected"}, {"completion", "label"}


@dataclass(frozen=True, slots=True)
class Preference:
    """One opinion. The record's completion is the answer it is about: of a pair, which has `rejected`, the better one.

    `good` is what a thumb said; that of a pair is True.
    """

    record: Record
    rejected: str | None
    good: bool

    def thumbs(self) -> Iterator[tuple[str, bool]]:
        """The answers of the row, each with whether it is wanted."""
        yield self.record.completion, self.good
        if self.rejected is not None:
            yield self.rejected, False


def read_preferences(folder: Path) -> list[Preference]:
    """All rows of the folder's JSONL files, exact repeats once. Raises UserError with file and line for any other."""
    found: dict[tuple[str, str | None, bool], Preference] = {}
    for file in sorted(folder.rglob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            if line.strip():
                try:
                    row = _preference(parse_json(line.decode("utf-8")), f"{file.relative_to(folder)}:{number}")
                except (BrokenContract, UnicodeDecodeError, ValueError) as error:
                    raise UserError(f"{file}, line {number}: {error}; see docs/preferences.md") from None
                found.setdefault((row.record.id, row.rejected, row.good), row)
    return list(found.values())


def _preference(row: Any, origin: str) -> Preference:
    """Raises ValueError that says what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    pair = row.keys() >= _PAIR
    if pair == (row.keys() >= _THUMB) or row.keys() & (_THUMB if pair else _PAIR):
        raise ValueError("expected either chosen and rejected, or completion and label")
    if not pair and not isinstance(row["label"], bool):
        raise ValueError("label must be true or false")
    texts = {"prompt", "source", *(_PAIR if pair else {"completion"})}
    if wrong := sorted(key for key in texts if not isinstance(row.get(key), str) or not row[key].strip()):
        raise ValueError(f"{wrong[0]} must be a text")
    rejected = canonical(row["rejected"]) if pair else None
    if rejected and canonical(row["chosen"]).strip() == rejected.strip():
        raise ValueError("chosen and rejected are the same")
    task, turns = row.get("task"), row.get("context", [])
    if not isinstance(task, str | None) or not isinstance(turns, list) or not all(map(_is_message, turns)):
        raise ValueError("task must be a text, context a list of messages with role and content")
    context = [Message(turn["role"], turn["content"]) for turn in turns]
    answer = row["chosen" if pair else "completion"]
    record = make_record(row["prompt"], answer, None, row["source"], origin, task=task, context=context)
    return Preference(record, rejected, pair or row["label"])


def _is_message(turn: Any) -> bool:
    return (
        isinstance(turn, Mapping)
        and turn.keys() == {"role", "content"}
        and turn["role"] in ("system", "user", "assistant")
        and isinstance(turn["content"], str)
    )


def held_back(rows: Iterable[Preference], share: float, seed: int) -> tuple[list[Preference], list[Preference]]:
    """Rows to learn from, and those of a seeded share of the prompts to measure with: one at least, if share allows."""
    by_prompt = grouped(rows, lambda row: compared(row.record))
    prompts = sorted(by_prompt, key=lambda prompt: rank(seed, "prefer", prompt))
    count = min(max(round(share * len(prompts)), int(share > 0)), max(len(prompts) - 1, 0))
    learnt, measured = (
        [row for prompt in part for row in by_prompt[prompt]] for part in (prompts[count:], prompts[:count])
    )
    return learnt, measured
