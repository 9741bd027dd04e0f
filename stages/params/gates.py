"""`gates`: the thresholds that decide whether a model may ship."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Section

Of = Literal["task", "label", "field", "rule", "perturbation", "slice", "distance"]


class Gate(Section):
    """One threshold on one number: whose it is, which metric, of which rows, and against what."""

    model: str = Field(description="base, linear, adapter, previous, merged, nf4, int8, judge, review, or a stage")
    metric: str = Field(description="such as exact_match; docs/metrics.md has all")
    against: Literal["base", "linear", "previous", "adapter"] | None = Field(
        None, description="judge the change since this model instead of the number itself"
    )
    of: dict[Of, str] = Field({}, max_length=1, description="the rows, such as {label: refund}; all when left out")
    minimum: float | None = Field(None, allow_inf_nan=False, description="what must be reached")
    maximum: float | None = Field(None, allow_inf_nan=False, description="what must not be passed")
    evidence: Literal["for", "against", "value"] = Field(
        "for",
        description="for: PASS must be shown; against: FAIL must be shown; value: the number decides, not its interval",
    )
    required: bool = Field(True, description="false only warns")

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("must have either a minimum or a maximum")
        return self
