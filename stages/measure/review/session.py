"""One reviewer's sitting: the rows, the cards as they are shown, and the answers, each on the disk at once."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.measure.review.reviews import (
    Review,
    cards,
    differ,
    is_of,
    output_hashes,
    read_review_file,
    rows_to_review,
    write_review_file,
)
from stages.params.loader import Params

MAX_COMMENT = 2000


class Session:
    """Rows are known to the page by their number alone, cards by their place; whose they are stays here."""

    def __init__(self, reviewer: str, file: Path, params: Params) -> None:
        self.file = file
        self.rows = [row for row in rows_to_review(params.review.rows, params.seed) if differ(row)]
        self._cards = [cards(row, reviewer, params.seed) for row in self.rows]
        self._instructions = [row.instruction(params.task) for row in self.rows]
        self._reviewer = reviewer
        self._lock = threading.Lock()
        read_review_file(file)  # a broken file is said before the first answer, not after it

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

    def save(self, number: int, best: Sequence[int] | None, comment: str) -> None:
        """Put down the places of the best cards, none of them when all are bad; None takes the answer back.

        Raises:
            ValueError: for a row or a card that is not there, or a comment that is too long.
        """
        if not 0 <= number < len(self.rows) or len(comment) > MAX_COMMENT:
            raise ValueError("no such row, or too long a comment")
        row, shown = self.rows[number], self._cards[number]
        if best is not None and not set(best) <= set(range(len(shown))):
            raise ValueError("no such card")
        with self._lock:
            answers = read_review_file(self.file)  # anew: git may have brought another
            answers.pop(row.id, None)
            if best is not None:
                answers[row.id] = Review(
                    row=row.id,
                    outputs=output_hashes(row),
                    shown=tuple("+".join(card.models) for card in shown),
                    best=tuple(sorted(model for place in set(best) for model in shown[place].models)),
                    comment=comment,
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
        return {"best": best, "comment": review.comment}
