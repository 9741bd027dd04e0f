"""Which rows are reviewed, and the different texts of a row that a reviewer sees."""

from dataclasses import dataclass

from stages.records.content_order import rank
from stages.scoring.paired_answers import Answers, read_answers


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
