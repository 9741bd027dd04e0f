"""Examples worth reading: where a model is wrong, where two models differ, and in which words."""

import difflib
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rapidfuzz.fuzz import ratio

from stages.report.formats import excerpt, plural, value_text
from stages.scoring.rows import RowScore, same_value
from stages.text.json_schema import Tasks
from stages.text.strict_json import BrokenContract, parse_json

Row = dict[str, Any]

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
_LIKE = 0.5  # texts less alike than this have nothing in common worth marking
_FEW = 3
_MOVED = 10  # points of likeness from which free text is said to have moved
_ANSWER = 300  # characters of an answer that are shown
_ABSENT = object()


@dataclass(frozen=True)
class Piece:
    text: str
    marked: bool


@dataclass(frozen=True)
class Cell:
    """What one model says, with what differs marked; `right` is None for the reference and for free text."""

    pieces: list[Piece]
    right: bool | None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


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
class Flips:
    """The rows by what two models make of them: `parts` are (kind, words, rows), for the picture.

    `identical` of the `rows` have answers that are the same to the letter.
    """

    before: str
    after: str
    parts: list[tuple[str, str, int]]
    won: Group
    lost: Group
    rows: int
    identical: int


@dataclass(frozen=True)
class Answers:
    """One model's rows and their scores, in the order of the ids."""

    name: str
    rows: Sequence[Row]
    scores: Sequence[RowScore]


def shared(before: Answers, after: Answers) -> tuple[Answers, Answers]:
    """Both on the rows that both answered: an earlier release may have had another hold-out."""
    ids = {row["id"] for row in before.rows} & {row["id"] for row in after.rows}
    return _only(before, ids), _only(after, ids)


def failures(adapter: Answers, tasks: Tasks, limit: int) -> Group:
    """The rows that the adapter gets wrong: those that are not right, and free text that breaks the rules."""
    wrong = [i for i, score in enumerate(adapter.scores) if not (score.valid if _free(score) else score.exact_match)]
    return _group("Where the adapter is wrong", "Its answer is not the reference.", [adapter], wrong, tasks, limit)


def flips(before: Answers, after: Answers, tasks: Tasks, limit: int) -> list[Flips]:
    """Rows that are right with one model alone, then free text that came nearer to its reference or went further."""
    kinds = (_right_or_wrong(before, after, tasks, limit), _nearer_or_further(before, after, tasks, limit))
    return [one for one in kinds if one.rows]


def _right_or_wrong(before: Answers, after: Answers, tasks: Tasks, limit: int) -> Flips:
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for index, (old, new) in enumerate(zip(before.scores, after.scores, strict=True)):
        if not _free(old):
            kinds.setdefault((old.exact_match, new.exact_match), []).append(index)
    won, lost = kinds.get((False, True), []), kinds.get((True, False), [])
    title, few = f"from {before.name} to {after.name}", min(limit, _FEW) if before.name == "base" else limit
    chosen = [index for rows in kinds.values() for index in rows]
    return Flips(
        before=before.name,
        after=after.name,
        parts=[
            ("right", "right with both", len(kinds.get((True, True), []))),
            ("won", "won", len(won)),
            ("lost", "lost", len(lost)),
            ("wrong", "wrong with both", len(kinds.get((False, False), []))),
        ],
        won=_group(f"Won {title}", "Wrong before, right after.", [before, after], won, tasks, few),
        lost=_group(f"Lost {title}", "Right before, wrong after.", [before, after], lost, tasks, limit),
        rows=len(chosen),
        identical=_identical(before, after, chosen),
    )


def _nearer_or_further(before: Answers, after: Answers, tasks: Tasks, limit: int) -> Flips:
    """Free text is not right or wrong: it is near its reference or far from it, by rapidfuzz.fuzz.ratio."""
    moves = {
        index: ratio(new.output, new.reference) - ratio(old.output, old.reference)
        for index, (old, new) in enumerate(zip(before.scores, after.scores, strict=True))
        if _free(old)
    }
    most_first = sorted(moves, key=lambda index: (-abs(moves[index]), index))
    nearer = [index for index in most_first if moves[index] >= _MOVED]
    further = [index for index in most_first if moves[index] <= -_MOVED]
    title, how = (
        f"from {before.name} to {after.name}",
        f"By {_MOVED} or more of 100 points of likeness, the most first.",
    )
    return Flips(
        before=before.name,
        after=after.name,
        parts=[
            ("right", "about as near", len(moves) - len(nearer) - len(further)),
            ("won", "nearer to the reference", len(nearer)),
            ("lost", "further from it", len(further)),
        ],
        won=_group(f"Nearer {title}", how, [before, after], nearer, tasks, min(limit, _FEW)),
        lost=_group(f"Further {title}", how, [before, after], further, tasks, limit),
        rows=len(moves),
        identical=_identical(before, after, list(moves)),
    )


def differences(expected: str, found: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; those are marked that the other does not have. Nothing is marked where all differs."""
    left, right = _TOKEN.findall(expected), _TOKEN.findall(found)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    if matcher.ratio() < _LIKE:
        return whole_text(expected), whole_text(found)
    edits = matcher.get_opcodes()
    before = ((left[i:j], kind != "equal") for kind, i, j, _, _ in edits)
    after = ((right[i:j], kind != "equal") for kind, _, _, i, j in edits)
    return list(_pieces(before)), list(_pieces(after))


def whole_text(text: str) -> list[Piece]:
    return [Piece(text, False)]


def _pieces(runs: Iterator[tuple[list[str], bool]]) -> Iterator[Piece]:
    for tokens, marked in runs:
        if tokens:
            yield Piece("".join(tokens), marked)


def _only(answers: Answers, ids: Set[str]) -> Answers:
    chosen = [index for index, row in enumerate(answers.rows) if row["id"] in ids]
    return Answers(answers.name, [answers.rows[i] for i in chosen], [answers.scores[i] for i in chosen])


def _identical(before: Answers, after: Answers, chosen: Sequence[int]) -> int:
    return sum(before.rows[index]["output"] == after.rows[index]["output"] for index in chosen)


def _free(score: RowScore) -> bool:
    return score.kind == "text"


def _group(
    title: str, explanation: str, models: Sequence[Answers], chosen: Sequence[int], tasks: Tasks, limit: int
) -> Group:
    examples = [_example([(m.name, m.rows[i], m.scores[i]) for m in models], tasks) for i in chosen[:limit]]
    return Group(title, explanation, [model.name for model in models], len(chosen), examples)


def _example(answers: Sequence[tuple[str, Row, RowScore]], tasks: Tasks) -> Example:
    row = answers[0][1]
    faults = [(name, fault) for name, one, score in answers for fault in _faults(one, score, tasks)]
    return Example(
        id=row["id"],
        label=row["label"],
        prompt=excerpt(row["prompt"]),
        lines=_lines(row["completion"], answers),
        notes=[f"{name}: {fault}" for name, fault in faults],
    )


def _faults(row: Row, score: RowScore, tasks: Tasks) -> list[str]:
    faults = []
    if score.kind == "json" and not score.json_valid:
        faults.append("not valid JSON")
    elif score.kind == "json" and not score.valid:
        faults.append(excerpt(f"does not fit the schema ({tasks.of(score.task).schema.problem(score.predicted)})"))
    elif not score.valid:
        faults.append("none of the labels" if score.kind == "classification" else "breaks a rule of the task")
    if not row["stopped"]:
        faults.append(f"cut off after {plural(row['tokens'], 'token')}")
    return faults


def _lines(completion: str, answers: Sequence[tuple[str, Row, RowScore]]) -> list[tuple[str, list[Cell]]]:
    """The fields in which an answer differs; whole texts where an answer has no fields."""
    reference = _object(completion)
    if reference is None or not all(isinstance(score.predicted, dict) for _, _, score in answers):
        found = [
            (excerpt(row["output"], _ANSWER), None if _free(score) else score.exact_match) for _, row, score in answers
        ]
        return [("answer", _cells(excerpt(completion, _ANSWER), found))]
    predicted = [score.predicted for _, _, score in answers]
    added = sorted({key for one in predicted for key in one} - reference.keys())
    lines = []
    for key in [*reference, *added]:
        expected = reference.get(key, _ABSENT)
        found = [(_text(one.get(key, _ABSENT)), _right(one.get(key, _ABSENT), expected)) for one in predicted]
        if not all(right for _, right in found):
            lines.append((excerpt(key), _cells(_text(expected), found)))
    return lines


def _cells(expected: str, found: Sequence[tuple[str, bool | None]]) -> list[Cell]:
    """The reference, then each answer. Wrong ones are marked where they differ, the reference as the last of them."""
    reference, cells = whole_text(expected), []
    for text, right in found:
        pieces = whole_text(text)
        if not right:
            reference, pieces = differences(expected, text)
        cells.append(Cell(pieces, right))
    return [Cell(reference, None), *cells]


def _right(value: Any, expected: Any) -> bool:
    absent = value is _ABSENT or expected is _ABSENT
    return value is expected if absent else same_value(value, expected)


def _text(value: Any) -> str:
    return "(absent)" if value is _ABSENT else value_text(value)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text)
    except BrokenContract:
        return None
    return value if isinstance(value, dict) else None
