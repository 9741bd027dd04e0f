"""What is measured, as values: the forms that every number takes in metrics/*.json, written here alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any

PASS, MARGINAL, FAIL = "PASS", "MARGINAL", "FAIL"  # the states of a gate and of the verdict
WORST_FIRST = (FAIL, MARGINAL, PASS)


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion: `count` of `n`, with the exact interval of Clopper and Pearson."""

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.n


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric that is no proportion, with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a proportion on paired rows: Newcombe's interval and McNemar's exact test.

    `won` rows are right only after, `lost` rows were right only before.
    """

    difference: float
    low: float
    high: float
    won: int
    lost: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Shift:
    """The change of a metric that is no proportion, after less before, with its paired bootstrap interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric after by before, with its paired bootstrap interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Preference:
    """The mean over `n` rows of wins (+1), ties (0) and losses (-1), with its bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


# A field whose meaning is not plain from its name has it beside its type; docs/metrics.md is made from that.


@dataclass(frozen=True, slots=True)
class ClassMeans:
    precision: Annotated[Interval, "of the rows given a label, the share that have it"]
    recall: Annotated[Interval, "of the rows that have a label, the share given it"]
    f1: Annotated[Interval, "the harmonic mean of precision and recall"]


@dataclass(frozen=True, slots=True)
class Classification:
    accuracy: Annotated[Share, "the answer is the label of the reference"]
    macro: Annotated[ClassMeans, "the plain mean over labels"]
    weighted: Annotated[ClassMeans, "the mean over labels, weighted by their rows"]


@dataclass(frozen=True, slots=True)
class TextQuality:
    rouge1: Annotated[Interval, "shared words with the reference, F-measure"]
    rouge2: Annotated[Interval, "shared pairs of words, F-measure"]
    rougeL: Annotated[Interval, "longest common subsequence of words, F-measure"]
    bleu: Annotated[Interval, "BLEU of the corpus as sacreBLEU has it, 0 to 100"]
    chrf: Annotated[Interval, "chrF of the corpus as sacreBLEU has it, 0 to 100"]
    readability: Annotated[Interval, "the school grade that the outputs ask of a reader of English (Coleman and Liau)"]
    words: Annotated[float, "words of an output, mean"]
    rules: Annotated[Mapping[str, Share], "by rule of the task: the output keeps it"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelScores:
    exact_match: Annotated[Share, "as above, of the rows with this label"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one model's outputs on a set of rows are worth; what has no rows is None or empty."""

    rows: Annotated[int, "rows that the model answered"]
    exact_match: Annotated[Share, "the output is the reference: by value for JSON, else to the letter"]
    valid: Annotated[Share, "the output keeps the contract of its task: schema, labels or rules"]
    output_tokens: Annotated[float, "tokens of an output, mean, the stop token included"]
    json_valid: Annotated[Share | None, "the output is JSON"] = None
    schema_valid: Annotated[Share | None, "the output fits the schema"] = None
    field_match: Annotated[Interval | None, "the mean share of a reference's fields that the output has right"] = None
    label_accuracy: Annotated[Share | None, "the label in the output is the row's label"] = None
    perplexity: Annotated[Interval | None, "of the references, a token"] = None
    custom: Annotated[Share | Interval | None, "task.metric: the share of true, or the mean of its numbers"] = None
    classification: Annotated[Classification | None, "of classification tasks"] = None
    text: Annotated[TextQuality | None, "of text tasks"] = None
    fields: Annotated[Mapping[str, Share], "by field of the reference: the output has the same value"]
    labels: Annotated[Mapping[str, LabelScores], "by label of the row"]
    tasks: Annotated[Mapping[str, "Scores"], "by task, where there are several"]


@dataclass(frozen=True, slots=True)
class F1Shift:
    f1: Annotated[Shift, "change of F1"]


@dataclass(frozen=True, slots=True)
class ClassComparison:
    macro: Annotated[F1Shift, "the plain mean over labels"]
    weighted: Annotated[F1Shift, "weighted by rows"]


@dataclass(frozen=True, slots=True)
class TextComparison:
    rougeL: Annotated[Shift, "change of ROUGE-L"]
    bleu: Annotated[Shift, "change of BLEU"]
    chrf: Annotated[Shift, "change of chrF"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed between two models that answered the same rows."""

    rows: Annotated[int, "rows that both answered"]
    exact_match: Annotated[Change, "change of exact match"]
    schema_valid: Annotated[Change | None, "change of schema validity"] = None
    field_match: Annotated[Shift | None, "change of the share of fields"] = None
    label_accuracy: Annotated[Change | None, "change of label accuracy"] = None
    perplexity: Annotated[Ratio | None, "perplexity after by before"] = None
    custom: Annotated[Change | Shift | None, "change of task.metric"] = None
    classification: Annotated[ClassComparison | None, "of classification tasks"] = None
    text: Annotated[TextComparison | None, "of text tasks"] = None
    tasks: Annotated[Mapping[str, "Comparison"], "by task, where there are several"] = field(default_factory=dict)


def as_json(value: Any) -> Any:
    """Nested mappings and numbers, as the files hold them; what is None or empty is left out."""
    if isinstance(value, Share):
        return {"value": value.value, "low": value.low, "high": value.high, "count": value.count, "n": value.n}
    if is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        pairs = ((key, as_json(one)) for key, one in value.items() if one is not None)
        return {key: one for key, one in pairs if one != {}}
    return value
