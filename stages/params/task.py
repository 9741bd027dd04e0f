"""`task`: what the model is asked and what its answer must keep to."""

import posixpath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from stages.core import paths
from stages.params.section import Count, FileName, Section


def _watched(metric: str) -> str:
    """The stages depend on this one folder: DVC cannot cut a path out of FILE.py:FUNCTION."""
    path, _, name = metric.rpartition(":")
    folder = paths.OWN_METRIC.as_posix()
    if not (posixpath.normpath(path).startswith(f"{folder}/") and path.endswith(".py") and name.isidentifier()):
        raise ValueError(f"is no {folder}/FILE.py:FUNCTION; only files below {folder} are hashed into the trail")
    return metric


Metric = Annotated[str, AfterValidator(_watched)]


class TaskContract(Section):
    """What an answer must keep to."""

    kind: Literal["json", "classification", "text"] = Field(description="what an answer is")
    schema_at: Annotated[str, Field(pattern="^#(/.*)?$")] = Field(
        "#", description='the part of schema_file that answers must fit, such as "#/$defs/order"; "#" for all of it'
    )
    label_field: str = Field("label", description="key of a JSON completion that counts as its label")
    labels: list[str] = Field([], description="the labels of a classification task")
    max_words: Count | None = Field(None, description="longest answer of a text task; null for no limit")
    required_phrases: list[str] = Field([], description="what an answer of a text task must say")
    forbidden_phrases: list[str] = Field([], description="what an answer of a text task must not say")

    @model_validator(mode="after")
    def _classes_have_names(self) -> Self:
        if self.kind == "classification" and not self.labels:
            raise ValueError("a classification task must name its labels")
        return self


class Task(TaskContract):
    """The task of every row; rows with a tag may have another instruction and other contracts.

    What the model is told stands apart from what its answer is held against, so that training depends on the
    instructions alone.
    """

    instruction: str = Field(description="what the model is told before each prompt")
    instructions: dict[str, str] = Field({}, description="TAG: what the model is told before prompts of this tag")
    schema_file: FileName = Field("data/schema.json", description="JSON schema of the answers of a json task")
    metric: Metric | None = Field(None, description="FILE.py:FUNCTION below data/metric, your own score of an answer")
    tags: dict[str, dict[str, Any]] = Field({}, description="TAG: where its contract differs: {kind, labels ...}")

    def instruction_for(self, tag: str | None) -> str:
        return self.instructions.get(tag or "", self.instruction)

    def contract(self, tag: str | None) -> TaskContract:
        """What a tag of `tags` says, and for all else what the task says."""
        shared = {key: getattr(self, key) for key in TaskContract.model_fields}
        return TaskContract.model_validate({**shared, **self.tags.get(tag or "", {})})

    @model_validator(mode="after")
    def _tags_are_contracts(self) -> Self:
        for tag, contract in self.tags.items():
            if "instruction" in contract:
                raise ValueError(f"tag {tag}: its instruction belongs to instructions: {{{tag}: TEXT}}")
            try:
                self.contract(tag)
            except ValidationError as error:
                said = [f"{'.'.join(map(str, one['loc'])) or 'kind'}: {one['msg']}" for one in error.errors()]
                raise ValueError(f"tag {tag}: {'; '.join(said)}") from None
        return self
