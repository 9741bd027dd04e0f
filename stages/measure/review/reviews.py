"""Which rows are reviewed, and what reviewers said of them.

reviews/NAME.jsonl, one answer a line in the order of the rows' ids, for git to compare:

{"row": record id,
 "outputs": {"base": SHA-256 of the text that was shown, "tuned": ..., "previous": ... when there is one},
 "shown": ["tuned", "base"],      the order on the page; models with one text stand together: "base+tuned"
 "best": ["tuned"],               the models whose text is best; several are a tie, none means that all are bad
 "comment": "...",
 "scales": {"tuned": {"accuracy": 4}, ...}}     from 1 to 5, where the reviewer rated; left out where not
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core.errors import UserError
from stages.core.files import changing
from stages.params.loader import Params
from stages.records.record import rank, read_rows, write_rows
from stages.scoring.paired_answers import Answers, read_answers

MAX_COMMENT = 2000
Scale = Literal["relevance", "accuracy", "coherence", "style"]
Ratings = dict[Scale, Annotated[int, Field(ge=1, le=5)]]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


class Review(BaseModel):
    """One reviewer's answer to one row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    outputs: dict[str, str]
    shown: tuple[str, ...]
    best: tuple[str, ...]
    comment: str
    scales: dict[str, Ratings] = {}

    @model_validator(mode="after")
    def _best_was_shown(self) -> "Review":
        if not {*self.best, *self.scales} <= self.outputs.keys():
            raise ValueError("what is best or rated is among those that were shown")
        return self


def is_of(review: Review, row: Answers) -> bool:
    """Whether the reviewer saw the very texts that all models say now."""
    return review.outputs == output_hashes(row)


def output_hashes(row: Answers) -> dict[str, str]:
    return {model: hashlib.sha256(text.encode()).hexdigest() for model, text in sorted(row.outputs.items())}


def review_file(folder: Path, reviewer: str, who: str = "reviewer") -> Path:
    """Raises UserError for a name that makes no plain file name."""
    if not _NAME.fullmatch(reviewer):
        raise UserError(f"{who} {reviewer!r}: use a to z, 0 to 9, dot, dash and underscore, at most 40 of them")
    return folder / f"{reviewer}.jsonl"


def read_reviews(folder: Path) -> dict[str, dict[str, Review]]:
    """The answers by reviewer and row."""
    return {path.stem: read_review_file(path) for path in sorted(folder.glob("*.jsonl"))}


def read_review_file(path: Path) -> dict[str, Review]:
    """One reviewer's answers by row; none when there is no file yet.

    Raises UserError with file and line for what is no answer, as after a merge gone wrong.
    """
    answers: dict[str, Review] = {}
    for number, row in enumerate(read_rows(path) if path.exists() else (), start=1):
        try:
            review = Review.model_validate(row)
        except ValidationError:
            raise UserError(
                f"{path}, line {number}: not an answer of `tunetrail review`; restore the file from git"
            ) from None
        if review.row in answers:
            raise UserError(f"{path}, line {number}: a second answer to row {review.row}; keep one of the two")
        answers[review.row] = review
    return answers


def write_review_file(path: Path, answers: Mapping[str, Review]) -> None:
    write_rows(path, (answers[row].model_dump(mode="json", exclude_defaults=True) for row in sorted(answers)))


@dataclass(frozen=True, slots=True)
class Card:
    """One text on the page, and the models that said it."""

    text: str
    models: tuple[str, ...]


def rows_to_review(limit: int | None, seed: int) -> list[Answers]:
    """A seeded draw of `limit` rows, or all, in the order in which every reviewer gets them."""
    return sorted(read_answers(), key=lambda row: rank(seed, "review", row.id))[:limit]


def differ(row: Answers) -> bool:
    return len(set(row.outputs.values())) > 1


def cards(row: Answers, reviewer: str, seed: int) -> list[Card]:
    """The different texts in an order that follows from row and reviewer and tells nothing of the models."""
    models: dict[str, list[str]] = {}
    for model, text in row.outputs.items():
        models.setdefault(text, []).append(model)
    made = [Card(text, tuple(sorted(names))) for text, names in models.items()]
    return sorted(made, key=lambda card: rank(seed, f"review of {row.id} by {reviewer}", card.models[0]))


class Message(BaseModel):
    """What a page sends: the arguments of what is called with it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Choice(Message):
    number: int
    best: list[int] | None
    comment: str
    scales: list[Ratings] = []  # by the place of the card


class Session:
    """Rows are known to the page by their number alone, cards by their place; whose they are stays here."""

    files: ClassVar[dict[str, str]] = {"": "page.html", **{name: name for name in ("page.css", "shared.js", "page.js")}}

    def __init__(self, reviewer: str, file: Path, params: Params) -> None:
        self.file = file
        self.rows = [row for row in rows_to_review(params.review.rows, params.seed) if differ(row)]
        self._cards = [cards(row, reviewer, params.seed) for row in self.rows]
        self._instructions = [row.instruction(params.task) for row in self.rows]
        self._reviewer = reviewer
        read_review_file(file)  # a broken file is said before the first answer, not after it

    def messages(self) -> dict[str, tuple[type[BaseModel], Callable[..., Any]]]:
        return {"answer": (Choice, self.save)}

    def state(self) -> dict[str, Any]:
        """All that the page shows. Answers about other texts than those of now are not among the answers."""
        answers = read_review_file(self.file)
        return {
            "reviewer": self._reviewer,
            "rows": [
                {
                    "instruction": self._instructions[number],
                    "prompt": row.conversation(),
                    "reference": row.record.completion,
                    "cards": [card.text for card in self._cards[number]],
                    "answer": self._answer(number, answers.get(row.id)),
                }
                for number, row in enumerate(self.rows)
            ],
        }

    def save(self, number: int, best: Sequence[int] | None, comment: str, scales: Sequence[Ratings] = ()) -> None:
        """Put down the places of the best cards, none of them when all are bad, and the ratings of each card.

        A `best` of None takes the answer back. Raises ValueError for a row or a card that is not there, or a comment
        that is too long.
        """
        if not 0 <= number < len(self.rows) or len(comment) > MAX_COMMENT:
            raise ValueError("no such row, or too long a comment")
        row, shown = self.rows[number], self._cards[number]
        if (best is not None and not set(best) <= set(range(len(shown)))) or len(scales) not in (0, len(shown)):
            raise ValueError("no such card")
        with changing(self.file.parent):
            answers = read_review_file(self.file)  # anew: git may have brought another
            answers.pop(row.id, None)
            if best is not None:
                answers[row.id] = Review(
                    row=row.id,
                    outputs=output_hashes(row),
                    shown=tuple("+".join(card.models) for card in shown),
                    best=tuple(sorted(model for place in set(best) for model in shown[place].models)),
                    comment=comment,
                    scales={m: s for s, card in zip(scales, shown, strict=False) if s for m in sorted(card.models)},
                )
            write_review_file(self.file, answers)

    def progress(self) -> str:
        answers = read_review_file(self.file)
        done = sum(self._answer(number, answers.get(row.id)) is not None for number, row in enumerate(self.rows))
        return f"{done} of {len(self.rows)} rows answered by {self._reviewer}"

    def _answer(self, number: int, review: Review | None) -> dict[str, Any] | None:
        if review is None or not is_of(review, self.rows[number]):
            return None
        best = [place for place, card in enumerate(self._cards[number]) if card.models[0] in review.best]
        scales = [review.scales.get(card.models[0], {}) for card in self._cards[number]]
        return {"best": best, "comment": review.comment, "scales": scales}
