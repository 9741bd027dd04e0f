"""The answers that are held against each other: what each model said to the same prompt."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.params.measure import Scoring
from stages.params.task import Task
from stages.records.record import Record, read_records, read_rows, write_rows
from stages.scoring.intervals import bootstrap, mean_of
from stages.scoring.metrics import Preference

BASE, PREVIOUS, TUNED = "base", "previous", "tuned"
WIN, TIE, LOSS = 1, 0, -1  # of the tuned model
# The last line must be the choice and nothing else, but for marks and the few words that models put around it.
_CHOICE = re.compile(
    r"(?:(?:the )?(?:better |best )?(?:answer|choice|winner|verdict)(?: is)?)?[\W_]*"
    r"(?:answer )?(A|B|TIE)(?: is (?:the )?better(?: (?:answer|one))?(?: than (?:the )?(?:answer )?[AB])?)?[\W_]*",
    re.IGNORECASE,
)
# The name of a comparison in the metrics, and whom the tuned model meets in it.
RIVALS = {"against_baseline": BASE, "against_previous": PREVIOUS}
_FILES = {BASE: paths.BASE_GENERATIONS, TUNED: paths.ADAPTER_GENERATIONS}


@dataclass(frozen=True, slots=True)
class Answers:
    """One row of the hold-out with the output of every model that answered it, by the model's name."""

    record: Record
    outputs: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.record.id

    def instruction(self, task: Task) -> str:
        """What the models were told before the conversation."""
        context = self.record.context
        if context and context[0].role == "system":
            return context[0].content
        return task.instruction_for(self.record.task)

    def conversation(self) -> str:
        """What was asked: the prompt, after the earlier turns where there are any."""
        turns = [f"{turn.role}: {turn.content}" for turn in self.record.context if turn.role != "system"]
        return "\n".join([*turns, f"user: {self.record.prompt}"]) if turns else self.record.prompt


def write_previous(release: str | None, commit: str | None, rows: Iterable[dict[str, Any]]) -> None:
    """The answers of the release compared with, after a line that names it: no file that a stage reads is empty."""
    write_rows(paths.PREVIOUS_GENERATIONS, [{"release": release, "commit": commit}, *rows])


def read_previous() -> list[dict[str, Any]]:
    """The answers of the release compared with; none where there is no such release."""
    return list(read_rows(paths.PREVIOUS_GENERATIONS))[1:]


def read_answers() -> list[Answers]:
    """The rows in the order of their ids.

    A previous release may have answered only some of them, or other ones too; a first release has none before it.
    Raises UserError when the base or the tuned model did not answer the rows of the hold-out.
    """
    records = {record.id: record for record in read_records(paths.HOLDOUT)}
    said = {model: {row["id"]: row["output"] for row in read_rows(path)} for model, path in _FILES.items()}
    said[PREVIOUS] = {row["id"]: row["output"] for row in read_previous()}
    for model in (BASE, TUNED):
        if said[model].keys() != records.keys():
            raise UserError(f"{_FILES[model]} does not answer the rows of {paths.HOLDOUT}; run `dvc repro`")
    return [
        Answers(records[key], {model: rows[key] for model, rows in said.items() if key in rows})
        for key in sorted(records)
    ]


def meetings(rows: Sequence[Answers]) -> dict[str, tuple[str, list[Answers]]]:
    """The rival and the rows that it answered, by the comparison's name; without those that there are not."""
    met = {name: (rival, [row for row in rows if rival in row.outputs]) for name, rival in RIVALS.items()}
    return {name: (rival, both) for name, (rival, both) in met.items() if both}


def read_choice(reply: str) -> str | None:
    """A, B or TIE; None when the reply's last line is no such choice."""
    lines = reply.strip().splitlines()
    found = _CHOICE.fullmatch(lines[-1].strip()) if lines else None
    return found.group(1).upper() if found else None


def delta(values: Sequence[float], scoring: Scoring) -> Preference:
    """The mean of wins (+1), ties (0) and losses (-1), one value a row, with its interval.

    The bootstrap over rows, with one imaginary win and one imaginary loss among those that are resampled. Without
    them a handful of rows that all say the same would have an interval without width; Agresti & Min, "Simple
    improved confidence intervals for comparing matched proportions", Statistics in Medicine 24 (2005), 729-740, add
    as much. No rows at all know nothing: 0, from -1 to 1.
    """
    if not values:
        return Preference(0.0, -1.0, 1.0, 0)
    value = sum(values) / len(values)
    resampled = mean_of(sorted([*values, 1.0, -1.0]))
    found = bootstrap(resampled, scoring)
    return Preference(value, min(found.low, value), max(found.high, value), len(values))
