"""baseline: the untouched base model on hold-out and probes, and a linear model of the same training rows.

The linear model is TF-IDF of word and character n-grams with logistic regression, the baseline that fine-tuning has to
beat where a task has a label (compare Wang & Manning, "Baselines and bigrams", ACL 2012). No draw is made.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Annotated, Any

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.core.run_notes import measured
from stages.params.loader import Params, load_params
from stages.records.prompt import asked
from stages.records.record import REPLAY, Record, read_records, write_rows
from stages.scoring.intervals import share
from stages.scoring.metrics import Scores, Share, as_json
from stages.scoring.own_metric import scorer
from stages.scoring.summary import summarise


@dataclass(frozen=True, slots=True)
class LinearScores:
    """The linear baseline on the hold-out rows that have a label."""

    trained_rows: Annotated[int, "training rows with a label"]
    trained_labels: Annotated[int, "labels among them"]
    label_accuracy: Annotated[Share, "the label is that of the row"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """metrics/baseline.json."""

    base: Annotated[Scores, "the untouched base model on the hold-out"]
    linear: Annotated[LinearScores | None, "a linear model of the labels, where there are labels"] = None


def main() -> None:
    params = load_params("generation", "probes", "scoring", "task")
    score_rows, holdout = scorer(params.task), read_records(paths.HOLDOUT)
    train = [row for row in read_records(paths.TRAIN) if row.source != REPLAY]
    fitted = fitted_beside(train, holdout)
    with measured("baseline") as notes:
        rows, probes, notes["generation"] = base_answers(params, holdout)
        linear = fitted()
    base = summarise(score_rows(rows), params.scoring)
    write_rows(paths.BASE_GENERATIONS, rows)
    write_rows(paths.BASE_PROBES, probes)
    write_json(paths.LINEAR_ANSWERS, {"answers": linear})
    scores = Baseline(base, linear_scores(train, linear, params.scoring.confidence))
    write_json(paths.BASELINE_METRICS, as_json(scores))


def base_answers(params: Params, holdout: Sequence[Record]) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """The base model's rows of hold-out and probes, and what they took."""
    from stages.model.answers import rows_with_likelihood  # late: seconds of imports, while the linear model is fitted
    from stages.model.chat import task_chat
    from stages.model.loading import Weights, load_tokenizer
    from stages.model.questions import ask_probes, read_probes

    questions, model = read_probes(params.probes), Weights(paths.BASE)
    chat = task_chat(load_tokenizer(paths.BASE), params.task)
    rows = rows_with_likelihood(model, chat, holdout, params.generation, "baseline")
    return rows, ask_probes(model, chat, questions, params.probes.refusal_tokens, "probes"), model.spent


def fitted_beside(train: Sequence[Record], holdout: Sequence[Record]) -> Callable[[], list[dict[str, Any]]]:
    """Begin `linear_answers` in a process of its own, forked while this one is small; the function waits for them.

    A core is at it while libraries are loaded and a card answers. Raises RuntimeError when that process fails.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=lambda: sender.send_bytes(json.dumps(linear_answers(train, holdout)).encode()), daemon=True
    )
    process.start()
    sender.close()

    def answers() -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = json.loads(receiver.recv_bytes())
        except EOFError:
            raise RuntimeError("the process of the linear model ended without an answer") from None
        return found

    return answers


def linear_answers(train: Sequence[Record], holdout: Sequence[Record]) -> list[dict[str, Any]]:
    """{"id", "label", "predicted", "right"} of each labelled hold-out row; nothing where `train` has no two labels."""
    rows = [row for row in train if row.label is not None]
    labelled = [row for row in holdout if row.label is not None]
    if len({row.label for row in rows}) < 2 or not labelled:
        return []
    return [
        {"id": row.id, "label": row.label, "predicted": predicted, "right": predicted == row.label}
        for row, predicted in zip(labelled, fit_linear(rows)(labelled), strict=True)
    ]


def fit_linear(rows: Sequence[Record]) -> Callable[[Sequence[Record]], list[str]]:
    """The model fitted to rows that all have a label, of two labels at least: it gives one label a record."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # late: seconds of imports
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    model = make_pipeline(features, LogisticRegression(C=10.0, max_iter=1000))
    model.fit([asked(row) for row in rows], [row.label for row in rows])
    return lambda records: [str(one) for one in model.predict([asked(row) for row in records])] if records else []


def linear_scores(
    train: Sequence[Record], answers: Sequence[Mapping[str, Any]], confidence: float
) -> LinearScores | None:
    if not answers:
        return None
    labels = [row.label for row in train if row.label is not None]
    return LinearScores(len(labels), len(set(labels)), share((one["right"] for one in answers), confidence))


if __name__ == "__main__":
    run(main)
