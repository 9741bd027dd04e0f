"""One output held against its reference and against the contract of its task."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.params.task import TaskContract
from stages.text.json_schema import Contract, Tasks
from stages.text.strict_json import BrokenContract, ExactNumber, parse_json, parsed

ALONE = {"id": "", "completion": "", "label": None, "tokens": 0}  # of an output that has no reference


@dataclass(frozen=True, slots=True)
class RowScore:
    """The score of one output.

    Attributes:
        task: the tag of the row, None where it has none.
        kind: json, classification or text.
        valid: whether the output keeps the contract of its task: fits the schema, is one of the labels, or
            keeps the rules for text.
        json_valid: whether the output is JSON; asked of json tasks alone.
        fields: for each top-level key of the reference, whether the output has the same value there; empty
            when the reference is no JSON object.
        rules: for each rule that a text task has, whether the output keeps it.
        predicted: the parsed output of a json task; None where it is no JSON (and where it is JSON's null:
            `json_valid` tells the two apart).
        reference, output: the two texts, without white space around them.
        label_right: whether the output names the row's label: at the label field of a JSON answer, or as the answer of
            a classification task; None where the row has no label, or the task no place for one.
        tokens: how many the model wrote, its stop token included.
        nats: negative log-likelihood of the reference, its stop token included, over `reference_tokens`;
            None where it was not measured.
        own: what `task.metric` makes of the output (`own_metric.scorer`); None where there is no such function.
    """

    id: str
    task: str | None
    label: str | None
    kind: str
    exact_match: bool
    valid: bool
    json_valid: bool
    fields: dict[str, bool]
    rules: dict[str, bool]
    predicted: Any
    reference: str
    output: str
    label_right: bool | None
    tokens: int
    nats: float | None
    reference_tokens: int
    own: bool | float | None = None


def score_row(row: Mapping[str, Any], tasks: Tasks) -> RowScore:
    """Score one generation row (keys id, completion, label, output, tokens; task, nats and reference_tokens if any).

    The output is judged as it is, without repair; only white space around it is stripped. In a json task a
    reference that is JSON is compared by value (`same_value`); any other reference must be met character for
    character. Phrases are looked for without regard to case; words are what white space parts.
    """
    contract = tasks.of(row.get("task"))
    settings, output, reference = contract.settings, row["output"].strip(), row["completion"].strip()
    predicted: Any = None
    exact_match, json_valid, fields, rules = output == reference, False, dict[str, bool](), dict[str, bool]()
    if settings.kind == "json":
        predicted, json_valid = _parse(output)
        expected, structured = _parse(reference)
        if structured:
            exact_match = json_valid and same_value(expected, predicted)
        valid = json_valid and contract.schema.problem(predicted) is None
        if isinstance(expected, dict):
            found = predicted if isinstance(predicted, dict) else {}
            fields = {key: key in found and same_value(value, found[key]) for key, value in expected.items()}
    elif settings.kind == "classification":
        valid = output in settings.labels
    else:
        rules = _rules(output, settings)
        valid = bool(output) and all(rules.values())
    return RowScore(
        id=row["id"],
        task=row.get("task"),
        label=row["label"],
        kind=settings.kind,
        exact_match=exact_match,
        valid=valid,
        json_valid=json_valid,
        fields=fields,
        rules=rules,
        predicted=predicted,
        reference=reference,
        output=output,
        label_right=None if row["label"] is None else score_label(output, row["label"], contract),
        tokens=row["tokens"],
        nats=row.get("nats"),
        reference_tokens=row.get("reference_tokens", 0),
    )


def score_label(output: str, label: str, contract: Contract) -> bool | None:
    """Whether the output names this label; None where the task's answers have no place for one."""
    if contract.settings.kind == "classification":
        return output == label
    if contract.settings.kind == "text" or not contract.settings.label_field:
        return None
    predicted, _ = _parse(output)
    named = label_named(predicted, contract.settings.label_field)
    if named == label or named is None or isinstance(value := predicted[contract.settings.label_field], str | None):
        return named == label
    return same_value(parsed(label), value)  # 1 is 1.0, as in the exact match


def label_named(predicted: Any, label_field: str) -> str | None:
    """The label in a parsed JSON answer, a number or truth value as JSON writes it; None where there is none."""
    if not isinstance(predicted, dict) or label_field not in predicted:
        return None
    found = predicted[label_field]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, sort_keys=True)


def _rules(output: str, settings: TaskContract) -> dict[str, bool]:
    kept = {}
    if settings.max_words is not None:
        kept["max_words"] = len(output.split()) <= settings.max_words
    if settings.required_phrases:
        kept["required_phrases"] = all(says(output, phrase) for phrase in settings.required_phrases)
    if settings.forbidden_phrases:
        kept["forbidden_phrases"] = not any(says(output, phrase) for phrase in settings.forbidden_phrases)
    return kept


def says(output: str, phrase: str) -> bool:
    """Whether the phrase stands in the output as whole words: "the" is not in "other"."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", output, re.IGNORECASE) is not None


def same_value(left: Any, right: Any) -> bool:
    """Whether two parsed JSON values are the same value.

    The order of an object's keys says nothing, the order of an array does. JSON has one type of numbers, so 1 is 1.0,
    and a number is what its digits say, however many; true is no number, so it is not 1; a string is never a number.
    """
    pending = [(left, right)]  # a stack, not recursion: a model can nest deeper than Python recurses
    while pending:
        a, b = pending.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pending.extend((a[key], b[key]) for key in a)
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) != isinstance(b, bool) or _by_digits(a) != _by_digits(b):
            return False
    return True


def _by_digits(value: Any) -> Any:
    return value.exact if isinstance(value, ExactNumber) else value


def _parse(text: str) -> tuple[Any, bool]:
    """The parsed value and whether there is one."""
    try:
        return parse_json(text), True
    except BrokenContract:
        return None, False
