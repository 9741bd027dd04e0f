"""Examples worth reading: where a model is wrong, where two models differ, and in which words."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rapidfuzz.fuzz import ratio

from stages.report.formats import excerpt, plural, value_text
from stages.scoring.rows import RowScore, same_value
from stages.text.json_schema import Tasks
from stages.text.strict_json import parsed

Row = dict[str, Any]

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
_LIKE = 0.5  # texts less alike than this have nothing in common worth marking
_FEW = 3
_MOVED = 10  # points of likeness from which free text is said to have moved
_ANSWER = 300  # characters of an answer that are shown
_ABSENT = object()


class Answer(NamedTuple):
    """What one model says to a row, with its score."""

    row: Row
    score: RowScore

    @property
    def free(self) -> bool:
        return self.score.kind == "text"

    @property
    def likeness(self) -> float:
        return ratio(self.score.output, self.score.reference)


Answers = Mapping[str, Answer]  # by the row's id
Pair = tuple[Answer, Answer]


class Piece(NamedTuple):
    text: str
    marked: bool


class Cell(NamedTuple):
    """What one model says, with what differs marked; `right` is None for the reference and for free text."""

    pieces: list[Piece]
    right: bool | None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Example(NamedTuple):
    """One hold-out row. `lines` are (field, cells), a cell for the reference and one for each model."""

    id: str
    label: str | None
    prompt: str
    lines: list[tuple[str, list[Cell]]]
    notes: list[str]


class Group(NamedTuple):
    """Examples of one kind; `total` counts those that are not shown too."""

    title: str
    explanation: str
    models: list[str]
    total: int
    examples: list[Example]


class Flips(NamedTuple):
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


def failures(model: str, answers: Answers, tasks: Tasks, limit: int) -> Group:
    """The rows that the model gets wrong: those that are not right, and free text that breaks the rules."""
    wrong = [[one] for one in answers.values() if not (one.score.valid if one.free else one.score.exact_match)]
    return _group("Where the adapter is wrong", "Its answer is not the reference.", [model], wrong, tasks, limit)


def flips(models: tuple[str, str], before: Answers, after: Answers, tasks: Tasks, limit: int) -> list[Flips]:
    """Rows that are right with one model alone, then free text that came nearer to its reference or went further.

    Of the rows that both answered: an earlier release may have had another hold-out.
    """
    pairs = [(before[key], after[key]) for key in after if key in before]
    title, found = f"from {models[0]} to {models[1]}", []
    if fixed := [pair for pair in pairs if not pair[0].free]:
        kinds: dict[tuple[bool, bool], list[Pair]] = {}
        for old, new in fixed:
            kinds.setdefault((old.score.exact_match, new.score.exact_match), []).append((old, new))
        won, lost = kinds.get((False, True), []), kinds.get((True, False), [])
        parts = [("right", "right with both", len(kinds.get((True, True), [])))]
        parts += [("won", "won", len(won)), ("lost", "lost", len(lost))]
        parts.append(("wrong", "wrong with both", len(kinds.get((False, False), []))))
        few = min(limit, _FEW) if models[0] == "base" else limit
        gain = _group(f"Won {title}", "Wrong before, right after.", models, won, tasks, few)
        loss = _group(f"Lost {title}", "Right before, wrong after.", models, lost, tasks, limit)
        found.append(Flips(*models, parts, gain, loss, len(fixed), _identical(fixed)))
    if free := [pair for pair in pairs if pair[0].free]:
        # Free text is not right or wrong: it is near its reference or far from it.
        moves = sorted(((new.likeness - old.likeness, (old, new)) for old, new in free), key=lambda move: -abs(move[0]))
        nearer, further = ([pair for by, pair in moves if sign * by >= _MOVED] for sign in (1, -1))
        parts = [("right", "about as near", len(free) - len(nearer) - len(further))]
        parts += [("won", "nearer to the reference", len(nearer)), ("lost", "further from it", len(further))]
        how = f"By {_MOVED} or more of 100 points of likeness, the most first."
        gain = _group(f"Nearer {title}", how, models, nearer, tasks, min(limit, _FEW))
        loss = _group(f"Further {title}", how, models, further, tasks, limit)
        found.append(Flips(*models, parts, gain, loss, len(free), _identical(free)))
    return found


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


def _identical(pairs: Sequence[Pair]) -> int:
    return sum(old.row["output"] == new.row["output"] for old, new in pairs)


def _group(
    title: str,
    explanation: str,
    models: Sequence[str],
    chosen: Sequence[Sequence[Answer]],
    tasks: Tasks,
    limit: int,
) -> Group:
    examples = [_example(models, said, tasks) for said in chosen[:limit]]
    return Group(title, explanation, list(models), len(chosen), examples)


def _example(models: Sequence[str], said: Sequence[Answer], tasks: Tasks) -> Example:
    row = said[0].row
    notes = [f"{name}: {fault}" for name, one in zip(models, said, strict=True) for fault in _faults(one, tasks)]
    return Example(row["id"], row["label"], excerpt(row["prompt"]), _lines(row["completion"], said), notes)


def _faults(answer: Answer, tasks: Tasks) -> list[str]:
    (row, score), faults = answer, []
    if score.kind == "json" and not score.json_valid:
        faults.append("not valid JSON")
    elif score.kind == "json" and not score.valid:
        faults.append(excerpt(f"does not fit the schema ({tasks.of(score.task).schema.problem(score.predicted)})"))
    elif not score.valid:
        faults.append("none of the labels" if score.kind == "classification" else "breaks a rule of the task")
    if not row["stopped"]:
        faults.append(f"cut off after {plural(row['tokens'], 'token')}")
    return faults


def _lines(completion: str, said: Sequence[Answer]) -> list[tuple[str, list[Cell]]]:
    """The fields in which an answer differs; whole texts where an answer has no fields."""
    reference, predicted = parsed(completion), [one.score.predicted for one in said]
    if not isinstance(reference, dict) or not all(isinstance(value, dict) for value in predicted):
        found = [(excerpt(one.row["output"], _ANSWER), None if one.free else one.score.exact_match) for one in said]
        return [("answer", _cells(excerpt(completion, _ANSWER), found))]
    added = sorted({key for value in predicted for key in value} - reference.keys())
    lines = []
    for key in [*reference, *added]:
        expected = reference.get(key, _ABSENT)
        found = [(_text(value.get(key, _ABSENT)), _right(value.get(key, _ABSENT), expected)) for value in predicted]
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
