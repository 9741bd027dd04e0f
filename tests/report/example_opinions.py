"""What a judge and two reviewers would say of the example run, summed up by the stages that sum it up."""

from typing import Any

from stages.core import paths
from stages.core.files import write_json
from stages.engines.asked_models import Reply
from stages.measure.judge.__main__ import OFF, ask_about
from stages.measure.judge.__main__ import summarise as sum_up_judge
from stages.measure.review.__main__ import summarise as sum_up_reviews
from stages.measure.review.reviews import Review, output_hashes
from stages.params.loader import Params
from stages.records.record import Record
from stages.scoring.paired_answers import TUNED, Answers


def write_no_opinions(params: Params, rows: list[Answers]) -> None:
    """The judge is off and nobody has reviewed."""
    write_json(paths.JUDGE_METRICS, OFF)
    write_json(paths.REVIEW_METRICS, sum_up_reviews(rows, {}, params.scoring))


def write_opinions(params: Params, rows: list[Answers]) -> None:
    """A judge that likes the tuned model, at times what comes first, and is once unreadable; two reviewers."""
    questions = ask_about(rows, params.judge, params.task, params.seed)
    replies = {}
    for number, question in enumerate(questions):
        choice = "A" if question.tuned_first or number % 9 == 1 else "B"
        replies[question] = Reply("I cannot say" if number == 4 else choice, 311, 1)
    judged = sum_up_judge(rows, replies, params.judge.price, params.scoring)
    write_json(paths.JUDGE_METRICS, judged)
    reviews = {
        "ada": {row.id: _review(row, number % 6 != 5) for number, row in enumerate(rows[:20])},
        "<b>grace": {row.id: _review(row, number % 4 != 3) for number, row in enumerate(rows[:12])},
    }
    write_json(paths.REVIEW_METRICS, sum_up_reviews(rows, reviews, params.scoring))


def answers(rows: list[dict[str, Any]], outputs: dict[str, list[str]]) -> list[Answers]:
    """The rows as the judge reads them; `outputs` by the names of stages.scoring.paired_answers."""
    made = []
    for index, row in enumerate(rows):
        record = Record(row["id"], row["prompt"], row["completion"], row["label"], "tickets.jsonl", "tickets.jsonl:1")
        made.append(Answers(record, {model: texts[index] for model, texts in outputs.items()}))
    return made


def _review(row: Answers, likes: bool) -> Review:
    best = (TUNED,) if likes else ()
    comment = "" if likes else "Both are wrong"
    return Review(
        row=row.id,
        outputs=output_hashes(row),
        shown=tuple(row.outputs),
        best=best,
        comment=comment,
        scales={TUNED: {"accuracy": 5 if likes else 2}},
    )
