"""The task, its scores, gates and report."""

from typing import Annotated

from pydantic import Field, model_validator

from stages.params.section import Section


class Task(Section):
    """What the model is asked: the instruction before every prompt and the contract of the answer."""

    instruction: str
    schema_file: str
    label_field: str


class Gate(Section):
    """One threshold: `metric` is FILE.KEY.KEY below metrics/, such as evaluate.adapter.exact_match."""

    metric: str
    minimum: float | None = None
    maximum: float | None = None
    required: bool = True

    @model_validator(mode="after")
    def _one_threshold(self) -> "Gate":
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("must have either a minimum or a maximum")
        return self


class Scoring(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Evaluate(Section):
    gates: dict[str, Gate]


class MergeQuantize(Section):
    gates: dict[str, Gate]


class Report(Section):
    examples: Annotated[int, Field(ge=0)]
