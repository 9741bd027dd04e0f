"""Questions outside the task, asked of the base and of the tuned model: general ones, and ones to decline.

They are asked as anybody would ask, without the task's instruction.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.model.answers import answer_rows, likelihoods, with_likelihood
from stages.model.chat import Chat
from stages.params.evaluate import Probes
from stages.params.model import Generation
from stages.records.record import REPLAY, Record, make_record
from stages.text.strict_json import BrokenContract, parse_json

GENERAL, REFUSAL = "general", "refusal"


def read_probes(probes: Probes) -> tuple[list[Record], list[Record]]:
    """General questions and requests to decline. Raises UserError with file and line, before a model is loaded."""
    general = _read("general_file", probes.general_file, {"prompt", "completion"})
    return general, _read("refusal_file", probes.refusal_file, {"prompt"})


def ask_probes(
    model: Any, chat: Chat, questions: tuple[list[Record], list[Record]], tokens: int, what: str
) -> list[dict[str, Any]]:
    """A row for each probe: {"probe": general or refusal, "id", "prompt", ...}.

    Of a general question the likelihood of its reference is measured ("nats", "reference_tokens", "agreed": how many
    of its tokens are the model's first choice), which takes no generation; a request to decline is answered in
    so many `tokens` ("output", "tokens", "stopped").
    """
    general, refusals = questions
    found = likelihoods(model, chat, general)
    measured = with_likelihood([{"id": r.id, "prompt": r.prompt, "completion": r.completion} for r in general], found)
    rows = [{"probe": GENERAL, **row, "agreed": one.agreed} for row, one in zip(measured, found, strict=True)]
    short = Generation(max_new_tokens=tokens)
    return rows + [{"probe": REFUSAL, **row} for row in answer_rows(model, chat, refusals, short, what)]


def of_probe(rows: Sequence[dict[str, Any]], probe: str) -> list[dict[str, Any]]:
    """The rows of one probe in the order of their ids."""
    return sorted((row for row in rows if row["probe"] == probe), key=lambda row: row["id"])


def _read(key: str, file: str, wanted: set[str]) -> list[Record]:
    """The records of the JSONL file that probes.`key` names. Raises UserError with file and line."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:  # missing, a folder, no UTF-8, no name that a file can have
        raise UserError(
            f"probes.{key}: {file[:200]!r} cannot be read ({str(error)[:200]}); it must name a JSONL file of "
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
