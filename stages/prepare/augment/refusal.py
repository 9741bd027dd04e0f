"""The answer to input that nobody can read, and the rows whose task can give it."""

from collections.abc import Sequence

from stages.core.errors import UserError
from stages.records.contract import Contract, Tasks
from stages.records.record import Record
from stages.text.strict_json import BrokenContract, parse_json


def rows_that_can_refuse(rows: Sequence[Record], completion: str, tasks: Tasks) -> list[Record]:
    """The rows whose task allows `completion` (augment.malformed_completion) as an answer.

    Raises:
        UserError: when there is none; what is wrong with the answer in the task of most rows.
    """
    problems = {tag: _problem(completion, tasks.of(tag)) for tag in {row.task for row in rows}}
    able = [row for row in rows if problems[row.task] is None]
    if not able:
        tags = [row.task for row in rows]
        most = max(sorted(problems, key=repr), key=tags.count)
        task = "the task" if most is None else f"task {most}"
        raise UserError(
            f"augment.malformed_completion: {completion!r} is no answer of {task} ({problems[most]}); write the "
            "answer that the task has for input that cannot be read, or set augment.malformed_every to null"
        )
    return able


def _problem(completion: str, contract: Contract) -> str | None:
    """What keeps the completion from being an answer of the task, or None."""
    if contract.settings.kind == "json":
        try:
            return contract.schema.problem(parse_json(completion))
        except BrokenContract as error:
            return f"not JSON: {error}"
    if contract.settings.kind == "classification" and completion not in contract.settings.labels:
        return f"none of its labels: {', '.join(contract.settings.labels)}"
    return None
