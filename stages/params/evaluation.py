"""The task, its scores, gates and report."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from stages.params.section import Count, Section


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


class Report(Section):
    examples: Annotated[int, Field(ge=0)]
