"""Examples worth reading: where a model is wrong, and where two models differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.completions import BrokenContract, Schema, parse_json
from stages.report.inputs import Row
from stages.report.wording import excerpt, plural, value_text
from stages.scoring import RowScore, same_value

_FEW = 3
_ANSWER = 300  # characters of an answer that are shown
_ABSENT = object()


@dataclass(frozen=True)
class Cell:
    """What one model says; `right` is None for the reference."""

    text: str
    right: bool | None


@dataclass(frozen=True)
class Example:
    """One hold-out row. `lines` are (field, cells), a cell for the reference and one for each model."""

    id: str
    label: str | None
    prompt: str
    lines: list[tuple[str, list[Cell]]]
    notes: list[str]


@dataclass(frozen=True)
class Group:
    """Examples of one kind; `total` counts those that are not shown too."""

    title: str
    explanation: str
    models: list[str]
    total: int
    examples: list[Example]


@dataclass(frozen=True)
class Answers:
    """One model's rows and their scores, in the order of the ids."""

    name: str
    rows: Sequence[Row]
    scores: Sequence[RowScore]


def example_groups(answers: Mapping[str, Answers], schema: Schema, limit: int) -> list[Group]:
    """The adapter's failures, then what changed from base to adapter and from adapter to each artefact."""
    base, adapter = answers["base"], answers["adapter"]
    artefacts = [one for name, one in answers.items() if name not in ("base", "adapter")]
    wrong = [index for index, score in enumerate(adapter.scores) if not score.exact_match]
    failures = _group("Where the adapter is wrong", "Its answer is not the reference.", [adapter], wrong, schema, limit)
    groups = [failures, *_flips(base, adapter, schema, min(limit, _FEW), limit)]
    for artefact in artefacts:
        groups += _flips(adapter, artefact, schema, limit, limit)
    return groups


def _flips(before: Answers, after: Answers, schema: Schema, won_limit: int, lost_limit: int) -> list[Group]:
    pairs = list(enumerate(zip(before.scores, after.scores, strict=True)))
    lost = [index for index, (old, new) in pairs if old.exact_match and not new.exact_match]
    won = [index for index, (old, new) in pairs if new.exact_match and not old.exact_match]
    both = [before, after]
    return [
        _group(
            f"Lost from {before.name} to {after.name}", "Right before, wrong after.", both, lost, schema, lost_limit
        ),
        _group(f"Won from {before.name} to {after.name}", "Wrong before, right after.", both, won, schema, won_limit),
    ]


def _group(
    title: str, explanation: str, models: Sequence[Answers], chosen: Sequence[int], schema: Schema, limit: int
) -> Group:
    examples = [_example([(m.name, m.rows[i], m.scores[i]) for m in models], schema) for i in chosen[:limit]]
    return Group(title, explanation, [model.name for model in models], len(chosen), examples)


def _example(answers: Sequence[tuple[str, Row, RowScore]], schema: Schema) -> Example:
    row = answers[0][1]
    faults = [(name, fault) for name, one, score in answers for fault in _faults(one, score, schema)]
    return Example(
        id=row["id"],
        label=row["label"],
        prompt=excerpt(row["prompt"]),
        lines=_lines(row["completion"], answers),
        notes=[f"{name}: {fault}" for name, fault in faults],
    )


def _faults(row: Row, score: RowScore, schema: Schema) -> list[str]:
    faults = []
    if not score.json_valid:
        faults.append("not valid JSON")
    elif not score.schema_valid:
        faults.append(excerpt(f"does not fit the schema ({schema.problem(score.predicted)})"))
    if not row["stopped"]:
        faults.append(f"cut off after {plural(row['tokens'], 'token')}")
    return faults


def _lines(completion: str, answers: Sequence[tuple[str, Row, RowScore]]) -> list[tuple[str, list[Cell]]]:
    """The fields in which an answer differs; whole texts where an answer has no fields."""
    reference = _object(completion)
    if reference is None or not all(isinstance(score.predicted, dict) for _, _, score in answers):
        cells = [Cell(excerpt(row["output"], _ANSWER), score.exact_match) for _, row, score in answers]
        return [("whole answer", [Cell(excerpt(completion, _ANSWER), None), *cells])]
    predicted = [score.predicted for _, _, score in answers]
    added = sorted({key for one in predicted for key in one} - reference.keys())
    lines = []
    for key in [*reference, *added]:
        expected = reference.get(key, _ABSENT)
        cells = [_cell(one.get(key, _ABSENT), expected) for one in predicted]
        if not all(cell.right for cell in cells):
            lines.append((excerpt(key), [Cell(_text(expected), None), *cells]))
    return lines


def _cell(value: Any, expected: Any) -> Cell:
    absent = value is _ABSENT or expected is _ABSENT
    return Cell(_text(value), value is expected if absent else same_value(value, expected))


def _text(value: Any) -> str:
    return "(absent)" if value is _ABSENT else value_text(value)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text)
    except BrokenContract:
        return None
    return value if isinstance(value, dict) else None
