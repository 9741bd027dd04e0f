"""What a model's outputs are worth: every row scored alone, then summed up or compared in pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.completions import BrokenContract, Schema, parse_json
from stages.errors import UserError
from stages.statistics import clopper_pearson, mcnemar


@dataclass(frozen=True, slots=True)
class RowScore:
    """The score of one output.

    `fields` tells for each top-level key of the reference whether the output has the same value there;
    it is empty when the reference is no JSON object. `predicted` is the parsed output, None where it is
    no JSON (and where it is JSON's null: `json_valid` tells the two apart).
    """

    id: str
    label: str | None
    json_valid: bool
    schema_valid: bool
    exact_match: bool
    fields: dict[str, bool]
    predicted: Any


def score_row(row: Mapping[str, Any], schema: Schema) -> RowScore:
    """Score one generation row (keys id, completion, label, output).

    The output is judged as it is, without repair; only white space around it is stripped. A reference
    that is JSON is compared by value (`same_value`); any other reference must be met character for
    character. JSON and schema are asked of every output, whatever its reference is.
    """
    output = row["output"].strip()
    predicted, json_valid = _parse(output)
    reference, structured = _parse(row["completion"])
    same_text = output == row["completion"].strip()
    return RowScore(
        id=row["id"],
        label=row["label"],
        json_valid=json_valid,
        schema_valid=json_valid and schema.problem(predicted) is None,
        exact_match=json_valid and same_value(reference, predicted) if structured else same_text,
        fields=_fields(reference, predicted),
        predicted=predicted,
    )


def same_value(left: Any, right: Any) -> bool:
    """Whether two parsed JSON values are the same value.

    The order of an object's keys says nothing, the order of an array does. JSON has one type of
    numbers, so 1 is 1.0; true is no number, so it is not 1; a string is never a number.
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
        elif isinstance(a, bool) != isinstance(b, bool) or a != b:
            return False
    return True


def summarise(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[RowScore], perplexity: float, confidence: float
) -> dict[str, Any]:
    """The metrics of one model on the hold-out.

    `scores` belong to `rows` in the same order; `perplexity` is the model's on the reference
    completions. A proportion is {"value", "low", "high", "count", "of"} with its Clopper-Pearson
    interval at `confidence`; that of a field counts the rows whose reference has the field, and that
    of a label the rows with the label.

    SCORES are being widened to this shape (P is such a proportion, I a bootstrap interval {value, low, high}):
        rows, exact_match: P, labels: {LABEL: {exact_match: P}}, perplexity: I, output_tokens: number    of all rows
        json_valid: P, schema_valid: P, fields: {FIELD: P}, field_match: I     of the rows of json tasks
        classification: {accuracy: P, valid: P, macro: {precision, recall, f1: I}, weighted: the same}
        text: {rouge1, rouge2, rougeL, bleu, chrf: I, words: number, readability: I,
               rules: {max_words, required_phrases, forbidden_phrases: P of outputs that keep the rule}}
        tasks: {TAG: SCORES}     only where the rows have more than one task
    What has no rows is left out.

    Raises:
        UserError: when there are no rows.
        ValueError: when `scores` are not those of `rows`.
    """
    if not rows:
        raise UserError(
            "the hold-out has no rows, so there is nothing to measure; draw it with `tunetrail holdout draw`"
        )
    if [row["id"] for row in rows] != [score.id for score in scores]:
        raise ValueError("the scores are not those of the rows")
    labels = sorted({score.label for score in scores if score.label is not None})
    fields = sorted({field for score in scores for field in score.fields})
    return {
        "rows": len(rows),
        "json_valid": _proportion([score.json_valid for score in scores], confidence),
        "schema_valid": _proportion([score.schema_valid for score in scores], confidence),
        "exact_match": _proportion([score.exact_match for score in scores], confidence),
        "fields": {
            field: _proportion([score.fields[field] for score in scores if field in score.fields], confidence)
            for field in fields
        },
        "labels": {
            label: {"exact_match": _proportion([s.exact_match for s in scores if s.label == label], confidence)}
            for label in labels
        },
        "perplexity": perplexity,
        "output_tokens": sum(row["tokens"] for row in rows) / len(rows),
    }


def compare(before: Sequence[RowScore], after: Sequence[RowScore]) -> dict[str, Any]:
    """What changed from `before` to `after` on the same rows, in any order.

    `won` counts rows that are right only after, `lost` rows that were right only before;
    `difference` is the change of the proportion, `p_value` the exact McNemar test.

    COMPARISON is being widened: rows; exact_match, schema_valid: {difference, low, high, won, lost, p_value};
    field_match: {difference, low, high}; perplexity: {ratio, low, high}; classification: {macro_f1: {difference,
    low, high}}; text: {rougeL, bleu, chrf: {difference, low, high}}; tasks: {TAG: COMPARISON}.

    Raises:
        ValueError: when the two are not scores of the same rows, each row once.
    """
    old = {score.id: score for score in before}
    new = {score.id: score for score in after}
    if not old or old.keys() != new.keys() or not len(old) == len(before) == len(after):
        raise ValueError("the two sets of scores are not of the same rows")
    return {
        "exact_match": _change([(old[key].exact_match, new[key].exact_match) for key in old]),
        "schema_valid": _change([(old[key].schema_valid, new[key].schema_valid) for key in old]),
    }


def _parse(text: str) -> tuple[Any, bool]:
    """The parsed value and whether there is one."""
    try:
        return parse_json(text), True
    except BrokenContract:
        return None, False


def _fields(reference: Any, predicted: Any) -> dict[str, bool]:
    if not isinstance(reference, dict):
        return {}
    found = predicted if isinstance(predicted, dict) else {}
    return {key: key in found and same_value(value, found[key]) for key, value in reference.items()}


def _proportion(answers: Iterable[bool], confidence: float) -> dict[str, float | int]:
    right = list(answers)
    count, of = sum(right), len(right)
    low, high = clopper_pearson(count, of, confidence)
    return {"value": count / of, "low": low, "high": high, "count": count, "of": of}


def _change(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float | int]:
    won = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    return {"difference": (won - lost) / len(pairs), "won": won, "lost": lost, "p_value": mcnemar(won, lost)}
