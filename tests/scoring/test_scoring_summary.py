"""The metrics of many rows against counting by hand, scikit-learn, sacreBLEU and the published formulas."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from scored import REFERENCE, SCORING, generation, make_score, make_tasks
from sklearn.metrics import precision_recall_fscore_support

from stages.core.errors import UserError
from stages.scoring import summary as summing
from stages.scoring.metrics import as_json
from stages.scoring.rows import score_row
from stages.scoring.summary import of_classes

TEXTS = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("A dog ran through the long wet grass!", "The dog ran in the wet grass."),
    ("Nothing of the kind", "It was raining all day long, and we stayed."),
    ("", "An answer was wanted here."),
]


def summarise(*args: Any) -> Any:
    """The summary as it is written."""
    return as_json(summing.summarise(*args))


def text_scores() -> list[Any]:
    return [
        make_score(str(number), kind="text", output=output, reference=reference)
        for number, (output, reference) in enumerate(TEXTS)
    ]


def test_summary_counts_rows_fields_and_labels(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    rows = [
        generation(REFERENCE, key="a"),
        generation('{"intent": "cancel", "order": 7}', key="b"),
        generation("no JSON", key="c", label="cancel"),
        generation("Good day.", completion="Good day.", key="d", label=None),
    ]
    summary = summarise([score_row(row, tasks) for row in rows], SCORING)
    proportions = ("json_valid", "schema_valid", "valid", "exact_match")
    assert {key: (summary[key]["count"], summary[key]["n"]) for key in proportions} == dict.fromkeys(
        proportions, (2, 4)
    )
    assert {key: (p["count"], p["n"]) for key, p in summary["fields"].items()} == {"intent": (1, 3), "order": (2, 3)}
    assert summary["field_match"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert summary["labels"]["refund"]["exact_match"]["value"] == 0.5
    assert summary["labels"]["cancel"]["exact_match"]["count"] == 0
    assert set(summary["labels"]) == {"refund", "cancel"}
    assert (summary["rows"], summary["output_tokens"]) == (4, 12)
    assert summary["exact_match"]["low"] < 0.5 < summary["exact_match"]["high"]
    assert not summary.keys() & {"perplexity", "tasks", "text", "classification"}


def test_summary_does_not_depend_on_the_order_of_the_rows() -> None:
    scores = [
        make_score(str(n), n % 3 > 0, fields={"a": n % 2 > 0}, nats=0.1 * n, reference_tokens=4) for n in range(9)
    ]
    forward, backward = (json.dumps(summarise(one, SCORING)["exact_match"]) for one in (scores, scores[::-1]))
    assert forward == backward


def test_summary_of_no_rows_names_the_hold_out() -> None:
    with pytest.raises(UserError, match="hold-out"):
        summarise([], SCORING)


def test_perplexity_is_of_all_tokens_not_of_rows() -> None:
    scores = [make_score("a", nats=2.0, reference_tokens=1), make_score("b", nats=1.0, reference_tokens=9)]
    found = summarise(scores, SCORING)["perplexity"]
    assert found["value"] == pytest.approx(math.exp(3 / 10))
    assert found["low"] <= found["value"] <= found["high"]
    assert "perplexity" not in summarise([*scores, make_score("c")], SCORING)


def test_tasks_are_summed_up_apart_and_together() -> None:
    scores = [
        make_score("a", True, task="x"),
        make_score("b", False, task="x"),
        make_score("c", True, kind="classification", reference="yes"),
    ]
    found = summarise(scores, SCORING)
    assert found["exact_match"]["count"] == 2
    assert {tag: one["exact_match"]["n"] for tag, one in found["tasks"].items()} == {"untagged": 1, "x": 2}
    assert (found["json_valid"]["n"], found["classification"]["accuracy"]["n"]) == (2, 1)
    assert "classification" not in found["tasks"]["x"]
    assert "tasks" not in found["tasks"]["x"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=30))
def test_classes_agree_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    scores = [
        make_score(str(n), actual == said, kind="classification", reference=actual, output=said)
        for n, (actual, said) in enumerate(pairs)
    ]
    corpora = of_classes(scores)
    actual, predicted = zip(*pairs, strict=True)
    for mean in ("macro", "weighted"):
        theirs = precision_recall_fscore_support(
            actual, predicted, labels=sorted(set(actual)), average=mean, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert corpora[mean, name].estimate() == pytest.approx(value)


def test_text_agrees_with_sacrebleu_and_rouge_by_hand() -> None:
    found = summarise(text_scores(), SCORING)["text"]
    outputs, references = [output for output, _ in TEXTS], [[reference for _, reference in TEXTS]]
    assert found["bleu"]["value"] == pytest.approx(BLEU().corpus_score(outputs, references).score)
    assert found["chrf"]["value"] == pytest.approx(CHRF().corpus_score(outputs, references).score)
    # Unigrams: all of 6; dog, ran, the, wet, grass of 8 and 7 words; none; none.
    assert found["rouge1"]["value"] == pytest.approx((1 + 2 * 5 / (8 + 7) + 0 + 0) / 4)
    assert found["words"] == (6 + 8 + 4 + 0) / 4
    for name in ("rouge1", "bleu", "chrf"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


def test_readability_is_coleman_and_liau() -> None:
    """119 words, 639 letters, 5 sentences: L = 537, S = 4.20, grade 14.5, a worked example on many pages."""
    text = " ".join(["a" * 5] * 75 + ["a" * 6] * 44).split()
    assert (len(text), sum(map(len, text))) == (119, 639)
    for end in (20, 50, 80, 100, 118):
        text[end] += "."
    found = summarise([make_score(kind="text", output=" ".join(text))], SCORING)["text"]["readability"]
    assert found["value"] == pytest.approx(0.0588 * 639 / 1.19 - 0.296 * 5 / 1.19 - 15.8)
    assert found["value"] == pytest.approx(14.5, abs=0.05)


def test_intervals_of_corpus_metrics_hold_the_truth_about_as_often_as_they_say() -> None:
    """Macro F1 over draws of a classifier whose long-run F1 is known from a very large draw."""
    random = np.random.default_rng(5)

    def draw(rows: int) -> list[Any]:
        actual = random.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2])
        said = np.where(random.random(rows) < 0.7, actual, random.choice(["a", "b", "c"], rows))
        return [
            make_score(str(n), a == b, kind="classification", reference=str(a), output=str(b))
            for n, (a, b) in enumerate(zip(actual, said, strict=True))
        ]

    truth = of_classes(draw(50_000))["macro", "f1"].estimate()
    inside = 0
    for _ in range(60):
        found = summarise(draw(120), SCORING.model_copy(update={"resamples": 300}))["classification"]["macro"]["f1"]
        inside += found["low"] <= truth <= found["high"]
    assert inside >= 52  # 95 % of 60 is 57; 51 or fewer has a chance of one in 300
