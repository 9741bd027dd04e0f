"""The metrics that the report knows: their names, what is good, and where the metrics files have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric as SCORES name it (stages.scoring). `better` is 1 for more, -1 for less, 0 for neither.

    `share` is a proportion, to be shown in per cent. A `brief` metric is in the short version too.
    A COMPARISON has its change under the same path.
    """

    path: str
    name: str
    group: str
    better: int = 1
    share: bool = True
    brief: bool = False


ALL = "All answers"
_JSON, _CLASSES, _TEXT = "Structured answers", "Classification", "Text"
METRICS = (
    Metric("exact_match", "Exact match", ALL, brief=True),
    Metric("schema_valid", "Fits the schema", _JSON, brief=True),
    Metric("json_valid", "Valid JSON", _JSON),
    Metric("field_match", "Fields right", _JSON),
    Metric("classification.accuracy", "Accuracy", _CLASSES),
    Metric("classification.macro.f1", "F1, mean of the classes", _CLASSES, brief=True),
    Metric("classification.macro.precision", "Precision, mean of the classes", _CLASSES),
    Metric("classification.macro.recall", "Recall, mean of the classes", _CLASSES),
    Metric("classification.weighted.f1", "F1, weighted by class", _CLASSES),
    Metric("classification.weighted.precision", "Precision, weighted by class", _CLASSES),
    Metric("classification.weighted.recall", "Recall, weighted by class", _CLASSES),
    Metric("text.rougeL", "ROUGE-L", _TEXT, share=False, brief=True),
    Metric("text.rouge1", "ROUGE-1", _TEXT, share=False),
    Metric("text.rouge2", "ROUGE-2", _TEXT, share=False),
    Metric("text.bleu", "BLEU", _TEXT, share=False),
    Metric("text.chrf", "chrF", _TEXT, share=False),
    Metric("text.rules.max_words", "Keeps the word limit", _TEXT),
    Metric("text.rules.required_phrases", "Has the required phrases", _TEXT),
    Metric("text.rules.forbidden_phrases", "Has no forbidden phrase", _TEXT),
    Metric("text.readability", "Readability", _TEXT, better=0, share=False),
    Metric("text.words", "Mean words an answer", _TEXT, better=0, share=False),
    Metric("valid", "Keeps the contract of its task", ALL),
    Metric("perplexity", "Perplexity of the references", ALL, better=-1, share=False, brief=True),
    Metric("output_tokens", "Mean tokens an answer", ALL, better=0, share=False),
)
_BY_PATH = {metric.path: metric for metric in METRICS}


def main_metric(scores: Mapping[str, Any]) -> Metric:
    """The metric that speaks for the model: the share of right answers, or ROUGE-L where all is free text."""
    only_text = "text" in scores and "classification" not in scores and "schema_valid" not in scores
    return _BY_PATH["text.rougeL" if only_text else "exact_match"]


def look_up(node: Any, path: str) -> Any:
    """What is at the dotted path, or None."""
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
