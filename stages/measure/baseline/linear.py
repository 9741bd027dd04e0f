"""The cheap way: a linear model of words and characters that learns the label from the same training rows.

TF-IDF of word and character n-grams with logistic regression, the baseline that fine-tuning has to beat where a task
has a label (compare Wang & Manning, "Baselines and bigrams", ACL 2012). Deterministic: no draw is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from stages.records.prompt import asked
from stages.records.record import Record
from stages.scoring.intervals import share
from stages.scoring.metrics import Share


@dataclass(frozen=True, slots=True)
class LinearScores:
    """The linear baseline on the hold-out rows that have a label."""

    trained_rows: Annotated[int, "training rows with a label"]
    trained_labels: Annotated[int, "labels among them"]
    label_accuracy: Annotated[Share, "the label is that of the row"]


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
