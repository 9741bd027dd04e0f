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
from stages.records.record import REPLAY, Record, make_record, read_rows

GENERAL, REFUSAL = "general", "refusal"


def ask_probes(model: Any, chat: Chat, probes: Probes, generation: Generation, what: str) -> list[dict[str, Any]]:
    """A row for each probe: {"probe": general or refusal, "id", "prompt", ...}.

    Of a general question the likelihood of its reference is measured ("nats", "reference_tokens", "agreed": how many
    of its tokens are the model's first choice), which takes no generation; a request to decline is answered
    ("output", "tokens", "stopped").
    """
    general, refusals = _read(Path(probes.general_file), "completion"), _read(Path(probes.refusal_file), None)
    found = likelihoods(model, chat, general)
    measured = with_likelihood([{"id": r.id, "prompt": r.prompt, "completion": r.completion} for r in general], found)
    rows = [{"probe": GENERAL, **row, "agreed": one.agreed} for row, one in zip(measured, found, strict=True)]
    short = generation.model_copy(update={"max_new_tokens": probes.refusal_tokens})
    return rows + [{"probe": REFUSAL, **row} for row in answer_rows(model, chat, refusals, short, what)]


def of_probe(rows: Sequence[dict[str, Any]], probe: str) -> list[dict[str, Any]]:
    """The rows of one probe in the order of their ids."""
    return sorted((row for row in rows if row["probe"] == probe), key=lambda row: row["id"])


def _read(path: Path, answer: str | None) -> list[Record]:
    """Records of a JSONL file with `prompt` and, where asked for, a reference. Raises UserError with file and line."""
    wanted = {"prompt"} | ({answer} if answer else set())
    records: dict[str, Record] = {}
    for number, row in enumerate(read_rows(path), start=1):
        if row.keys() != wanted or not all(isinstance(text, str) and text.strip() for text in row.values()):
            raise UserError(f"{path}, line {number}: expected an object of texts with {' and '.join(sorted(wanted))}")
        record = make_record(row["prompt"], row[answer] if answer else "", None, REPLAY, f"{path.name}:{number}")
        records.setdefault(record.id, record)
    return list(records.values())
