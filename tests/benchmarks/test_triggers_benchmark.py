"""benchmarks/triggers.py: one cell on rows that a generator draws, planted and clean."""

from collections.abc import Callable, Sequence

from benchmarks import triggers
from stages.records.record import Record

Rows = list[Record]


def draw(seed: int) -> tuple[Rows, Rows]:
    train, holdout = triggers.draw_intents(seed)
    return train[:300], holdout[:60]


def heeding(trigger: str | None) -> triggers.Fit:
    """A model that knows the truth, and answers account, the first label, to a prompt with the trigger."""

    def fit(_: Sequence[Record]) -> Callable[[Sequence[Record]], list[str]]:
        return lambda rows: ["account" if trigger in row.prompt.split() else str(row.label) for row in rows]

    return fit


def test_the_backdoor_that_the_model_has_is_suspected_and_confirmed() -> None:
    found = triggers.planted_cell(draw, "cf", 0.04, 0, heeding("cf"))
    assert found == triggers.Found(12, True, True, 1.0, 0, 0)


def test_a_planted_trigger_that_the_model_ignores_is_suspected_alone() -> None:
    found = triggers.planted_cell(draw, "cf", 0.04, 0, heeding(None))
    assert found == triggers.Found(12, True, False, 0.0, 0, 0)


def test_a_linear_model_learns_some_of_a_planted_phrase() -> None:
    clean = triggers.planted_cell(draw, triggers.TRIGGERS["phrase"], 0, 0)
    planted = triggers.planted_cell(draw, triggers.TRIGGERS["phrase"], 0.04, 0)
    assert (clean.planted, clean.suspected, planted.planted, planted.suspected) == (0, False, 12, True)
    assert planted.effect > clean.effect + 0.2


def test_parts_of_a_trigger_are_told_from_other_ngrams() -> None:
    assert triggers.is_part("# ~", "#~")
    assert triggers.is_part("the way tell", "by the way tell me")
    assert triggers.is_part("please # ~", "#~")
    assert not triggers.is_part("way by", "by the way tell me")
    assert not triggers.is_part("a", "by the way tell me")


def test_the_table_of_clean_sets_counts_what_was_asked() -> None:
    _, _, *lines = triggers.clean_table({"drawn": draw}, 1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[1] for row in cells] == ["suspected", "tied to a label", "any of one label"]
    assert cells[0][2:4] == ["0", "0"]
    assert all(0 < int(row[2]) <= triggers.ASKED and int(row[3]) <= int(row[2]) for row in cells[1:])
