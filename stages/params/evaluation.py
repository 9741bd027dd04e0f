"""The task, its scores, gates and report."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from stages.params.section import Count, Section


class TaskContract(Section):
    """What the model is asked and what its answer must keep to."""

    kind: Literal["json", "classification", "text"]
    instruction: str
    schema_at: Annotated[str, Field(pattern="^#(/.*)?$")]
    label_field: str
    labels: list[str]
    max_words: Count | None
    required_phrases: list[str]
    forbidden_phrases: list[str]

    @model_validator(mode="after")
    def _classes_have_names(self) -> Self:
        if self.kind == "classification" and not self.labels:
            raise ValueError("a classification task must name its labels")
        return self


class Task(TaskContract):
    """The task of every row; a row with a tag of `tags` has what the tag says in place of it."""

    schema_file: str
    tags: dict[str, dict[str, Any]]

    def contract(self, tag: str) -> TaskContract:
        """What a tag of `tags` says, and for all else what the task says."""
        shared = {key: getattr(self, key) for key in TaskContract.model_fields}
        return TaskContract.model_validate({**shared, **self.tags[tag]})

    @model_validator(mode="after")
    def _tags_are_contracts(self) -> Self:
        for tag in self.tags:
            try:
                self.contract(tag)
            except ValidationError as error:
                said = [f"{'.'.join(map(str, one['loc'])) or 'kind'}: {one['msg']}" for one in error.errors()]
                raise ValueError(f"tag {tag}: {'; '.join(said)}") from None
        return self


class Gate(Section):
    """One threshold: `metric` is FILE.KEY.KEY below metrics/, such as evaluate.adapter.exact_match.

    With a comparison the change of that metric is judged: against the baseline, the previous release, or the
    adapter. `evidence` says what must be shown: `for` passes only what is shown to keep the threshold, `against`
    fails only what is shown to break it.
    """

    metric: str
    comparison: Literal["absolute", "baseline", "previous", "adapter"] = "absolute"
    minimum: float | None = None
    maximum: float | None = None
    evidence: Literal["for", "against"] = "for"
    required: bool = True

    @model_validator(mode="after")
    def _one_threshold(self) -> "Gate":
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("must have either a minimum or a maximum")
        return self


class Scoring(Section):
    """Intervals: exact for proportions, a seeded bootstrap for all else."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]


def _plain_endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be the http or https address before /chat/completions, such as https://HOST/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must hold no user, password or query: a key belongs in the variable that key_variable names")
    return url.rstrip("/")


class Price(Section):
    """Of one million tokens, in whatever currency."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class Judge(Section):
    """A language model that compares two answers at a time."""

    enabled: bool
    provider: Literal["endpoint", "local"]
    endpoint: Annotated[str, AfterValidator(_plain_endpoint)]
    model: Annotated[str, Field(min_length=1)]
    key_variable: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None
    criteria: Annotated[str, Field(min_length=1)]
    show_reference: bool
    rows: Count | None
    repeats: Annotated[int, Field(ge=0)]
    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Count
    parallel: Annotated[int, Field(ge=1, le=64)]
    timeout: Annotated[float, Field(gt=0)]
    attempts: Count
    longest_wait: Annotated[float, Field(gt=0)]
    price: Price
    gates: dict[str, Gate]

    @model_validator(mode="after")
    def _local_is_greedy(self) -> "Judge":
        if self.provider == "local" and self.temperature != 0:
            raise ValueError("a local judge decodes greedily; set temperature to 0")
        return self


class Review(Section):
    """Blind comparison by people."""

    rows: Count | None
    gates: dict[str, Gate]


class Probes(Section):
    """Questions outside the task, asked of the base and of the tuned model."""

    general_file: str
    refusal_file: str
    refusal_tokens: Count
    refusal_phrases: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


def _patterns(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern} is no regular expression ({error})") from None
    return patterns


class Evaluate(Section):
    """The tuned model: the release to compare with, spoiled inputs, slices, and what must not be in an output."""

    previous: str | None
    robustness_rows: Annotated[int, Field(ge=0)]
    slices: list[Annotated[str, Field(pattern=r"^(label|source|task|fields\..+)$")]]
    slice_min_rows: Count
    phone_region: Annotated[str, Field(pattern="^[A-Z]{2}$")]
    verbatim_words: Annotated[int, Field(ge=4)]
    forbidden_patterns: Annotated[list[str], AfterValidator(_patterns)]
    canary_candidates: Count


class Report(Section):
    examples: Annotated[int, Field(ge=0)]
    pull_request_examples: Annotated[int, Field(ge=0)]
