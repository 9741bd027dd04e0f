"""Questions outside the task, asked of the base and of the tuned model: general ones, and ones to decline.

They are asked as anybody would ask, without the task's instruction.
"""

from collections.abc import Sequence
from typing import Any

from stages.model.answers import answer_rows
from stages.model.chat import Chat
from stages.model.likelihoods import likelihoods, with_likelihood
from stages.params.measure import Probes
from stages.params.model import Generation
from stages.records.prompt import read_texts
from stages.records.record import Record

GENERAL, REFUSAL = "general", "refusal"


def read_probes(probes: Probes) -> tuple[list[Record], list[Record]]:
    """General questions and requests to decline. Raises UserError with file and line, before a model is loaded."""
    general = read_texts("probes.general_file", probes.general_file, {"prompt", "completion"})
    return general, read_texts("probes.refusal_file", probes.refusal_file, {"prompt"})


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
