"""`task`: what the model is asked and what its answer must keep to."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stages.params.section import Count, FileName, Section


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
