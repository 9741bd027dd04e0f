"""`gates`, `judge`, `review`: thresholds, a language model and people, who decide whether a model may ship."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.params.asked_model import AskedModel, Variable
from stages.params.section import Count, Number, Phrase, Section, Size

Of = Literal["task", "label", "field", "rule", "perturbation", "slice", "distance"]
Reference = Literal["base", "linear", "previous", "sft", "adapter"]
Threshold = Annotated[float, Field(ge=-1e15, le=1e15)]


class Gate(Section):
    """One threshold on one number: whose it is, which metric, of which rows, and against what."""

    model: str = Field(description="base, linear, sft, adapter, previous, a format, judge, review, or a stage")
    metric: str = Field(description="such as exact_match; docs/metrics.md has all")
    against: Reference | None = Field(None, description="judge the change since this model, not the number")
    of: dict[Of, str] = Field({}, max_length=1, description="the rows, such as {label: refund}; all when left out")
    minimum: Threshold | None = Field(None, description="what must be reached")
    maximum: Threshold | None = Field(None, description="what must not be passed")
    evidence: Literal["for", "against", "value"] = Field(
        "for", description="for: PASS must be shown; against: FAIL must be shown; value: the number alone decides"
    )
    required: bool = Field(True, description="false only warns")

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("must have either a minimum or a maximum")
        return self


_ADVISORY = {"required": False}
_UNSPOILED = {"model": "adapter", "evidence": "against"}
_MERGED = {"model": "merged", "against": "adapter"}
_DROP = {"metric": "exact_match", "against": "adapter", "minimum": -0.05, "evidence": "against"}
# What every task is held against. A gate of params.yaml with one of these names changes the keys that it gives; null
# takes the gate away.
STANDING: dict[str, dict[str, Any]] = {
    "better_than_linear": _ADVISORY
    | {"model": "adapter", "metric": "label_accuracy", "against": "linear", "minimum": 0.0},
    "better_than_sft": {"model": "adapter", "metric": "exact_match", "against": "sft", "minimum": 1e-9},
    "no_forgetting": _ADVISORY | _UNSPOILED | {"metric": "general_perplexity", "against": "base", "maximum": 1.05},
    "no_forgetting_answers": _ADVISORY
    | _UNSPOILED
    | {"metric": "general_agreement", "against": "base", "minimum": -0.05},
    "no_personal_data": _UNSPOILED | {"metric": "personal_data", "maximum": 0.0},
    "merge_keeps_logits": _MERGED | {"metric": "divergence", "maximum": 0.01},
    "merge_keeps_perplexity": _MERGED | {"metric": "perplexity", "maximum": 1.01, "evidence": "value"},
    **{f"{name}_drop": _DROP | {"model": name} for name in ("gguf", "compressed_tensors", "lora")},
    "confirmed_triggers": {"model": "adapter", "metric": "confirmed_triggers", "maximum": 0.0},
    "suspected_triggers": _ADVISORY | {"model": "checks", "metric": "triggers.found", "maximum": 0.0},
    "conflicting_labels": {"model": "checks", "metric": "conflicts.share", "maximum": 0.02},
    "largest_source": {"model": "checks", "metric": "sources.largest_share", "maximum": 1.0},
    "sources_differ": _ADVISORY | {"model": "checks", "metric": "sources.largest_distance", "maximum": 0.5},
}


def _with_standing(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    changed = {name: STANDING.get(name, {}) | gate if isinstance(gate, dict) else gate for name, gate in given.items()}
    every = changed | {name: gate for name, gate in STANDING.items() if name not in given}
    return {name: gate for name, gate in every.items() if gate is not None or name not in STANDING}


Gates = Annotated[dict[str, Gate], BeforeValidator(_with_standing)]


_CRITERIA = "The better answer does what the instruction asks, says what the input supports, and adds nothing."
# The second holds when the whole interval of the difference lies above 0.
_GATES = {
    "judge_better": Gate(model="judge", metric="delta", against="base", minimum=0.05, evidence="value"),
    "judge_sure": Gate(model="judge", metric="delta", against="base", minimum=1e-9),
}


class Judge(AskedModel):
    """A language model that compares two answers at a time."""

    enabled: bool = Field(False, description="true asks it, and may cost money")
    called: ClassVar = "the judge"
    section: ClassVar = "judge"
    model: Phrase = Field("judge", description="its name at the endpoint, or its folder")
    key_variable: Variable | None = Field(
        "JUDGE_API_KEY", description="environment variable with the key; null for none"
    )
    criteria: Phrase = Field(_CRITERIA, description="what the judge is told to look for")
    show_reference: bool = Field(True, description="let the judge see the reference answer")
    rows: Count | None = Field(None, description="ask about a seeded sample of this many hold-out rows; null for all")
    repeats: Number = Field(10, description="rows asked a second time, for the judge's agreement with itself")
    max_tokens: Size = Field(16, description="of one reply; more for a judge that thinks aloud")
    gates: dict[str, Gate] = Field(_GATES, description="looked at when the judge is enabled; in place of the default")


class Review(Section):
    """Blind comparison by people: `tunetrail review`."""

    rows: Count | None = Field(30, description="a seeded sample of this many hold-out rows; null for all")
    gates: dict[str, Gate] = Field({}, description="looked at when people have reviewed")
