"""`gates`: the thresholds that decide whether a model may ship."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Section


class Gate(Section):
    """One threshold: `metric` is FILE.KEY.KEY below metrics/, such as evaluate.adapter.exact_match.

    With a comparison the change of that metric is judged: against the baseline, the previous release, or the
    adapter. `evidence` says what must be shown: `for` passes only what is shown to keep the threshold, `against`
    fails only what is shown to break it.
    """

    metric: str = Field(description="FILE.KEY.KEY below metrics/")
    comparison: Literal["absolute", "baseline", "previous", "adapter"] = Field(
        "absolute", description="absolute, or the change against baseline, previous or adapter"
    )
    minimum: float | None = Field(None, description="the metric, or its change, must not be below")
    maximum: float | None = Field(None, description="the metric, or its change, must not be above")
    evidence: Literal["for", "against"] = Field(
        "for", description="for: PASS must be shown; against: FAIL must be shown"
    )
    required: bool = Field(True, description="false only warns")

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("must have either a minimum or a maximum")
        return self
