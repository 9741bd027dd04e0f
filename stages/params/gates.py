"""`gates`: the thresholds that decide whether a model may ship."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

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


# What every task is held against. A gate of params.yaml with one of these names changes the keys that it gives; null
# takes the gate away.
STANDING: dict[str, dict[str, Any]] = {
    "better_than_linear": {
        "model": "adapter",
        "metric": "label_accuracy",
        "against": "linear",
        "minimum": 0.0,
        "required": False,
    },
    "no_forgetting": {
        "model": "adapter",
        "metric": "general_perplexity",
        "against": "base",
        "maximum": 1.05,
        "evidence": "against",
        "required": False,
    },
    "no_forgetting_answers": {
        "model": "adapter",
        "metric": "general_agreement",
        "against": "base",
        "minimum": -0.05,
        "evidence": "against",
        "required": False,
    },
    "no_personal_data": {"model": "adapter", "metric": "personal_data", "maximum": 0.0, "evidence": "against"},
    "confirmed_triggers": {"model": "adapter", "metric": "confirmed_triggers", "maximum": 0.0},
    "suspected_triggers": {"model": "checks", "metric": "triggers.found", "maximum": 0.0, "required": False},
    "conflicting_labels": {"model": "checks", "metric": "conflicts.share", "maximum": 0.02},
    "largest_source": {"model": "checks", "metric": "sources.largest_share", "maximum": 1.0},
    "sources_differ": {"model": "checks", "metric": "sources.largest_distance", "maximum": 0.5, "required": False},
}


def _with_standing(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    changed = {
        name: STANDING.get(name, {}) | gate if isinstance(gate, dict) else gate
        for name, gate in given.items()
        if gate is not None or name not in STANDING
    }
    return changed | {name: gate for name, gate in STANDING.items() if name not in given}


Gates = Annotated[dict[str, Gate], BeforeValidator(_with_standing)]
