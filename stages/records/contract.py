"""The tasks of a data set: what each asks for and what it promises, by the tag of the row."""

from dataclasses import dataclass
from pathlib import Path

from stages.params.task import Task, TaskContract
from stages.text.json_schema import Schema


@dataclass(frozen=True)
class Contract:
    """One task's settings and, for structured answers, its schema."""

    settings: TaskContract
    schema: Schema


class Tasks:
    """The contract of every row: that of its tag where task.tags has it, else the one that all of `task` gives.

    Raises:
        UserError: when a schema is missing or is none.
    """

    def __init__(self, task: Task) -> None:
        tagged: dict[str | None, TaskContract] = {tag: task.contract(tag) for tag in task.tags}
        self._contracts = {
            tag: Contract(settings, Schema(Path(task.schema_file), settings.schema_at))
            for tag, settings in {None: task, **tagged}.items()
        }

    def of(self, tag: str | None) -> Contract:
        return self._contracts.get(tag, self._contracts[None])
