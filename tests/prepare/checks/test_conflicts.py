import random
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stages.near_duplicates.pairs import near_pairs
from stages.near_duplicates.rule import is_near
from stages.params.loader import check_params, read_params
from stages.prepare.checks.conflicts_and_sources import conflicts as conflicts_among
from stages.prepare.checks.conflicts_and_sources import label_of, outcomes
from stages.records.prompt import compared, digest
from stages.records.record import Record, make_record

TEXT = "Where is my order number {}, please tell me"


def row(prompt: str, label: str | None, completion: str = "text") -> Record:
    return make_record(prompt, completion, label, "raw", "raw.jsonl:1")


def conflicts(rows: list[Record]) -> list[dict[str, Any]]:
    texts = sorted(set(map(compared, rows)))
    names = list(map(digest, texts))
    near = [(names[pair.left], names[pair.right], pair.score) for pair in near_pairs(texts, 90)]
    return conflicts_among(rows, [row.label for row in rows], near)


def find(rows: list[Record]) -> list[list[str]]:
    return [[member["label"] for member in cluster["rows"]] for cluster in conflicts(rows)]


def test_a_planted_conflict_is_found_with_the_odd_one_first() -> None:
    rows = [row(TEXT.format(n), "tracking") for n in range(4)] + [
        row(TEXT.format("7"), "refund"),
        row("hello", "other"),
    ]
    (cluster,) = conflicts(rows)
    assert cluster["labels"] == {"refund": 1, "tracking": 4}
    assert cluster["rows"][0]["prompt"] == TEXT.format("7")
    assert [member["label"] for member in cluster["rows"]] == ["refund"] + 4 * ["tracking"]


def test_the_same_prompt_with_two_labels_is_a_conflict() -> None:
    assert find([row("Where is it?", "a"), row("where is  IT?", "b", "other")]) == [["a", "b"]]


def test_agreement_and_rows_without_a_label_are_no_conflict() -> None:
    assert find([row(TEXT.format(n), "tracking") for n in range(4)]) == []
    assert find([row(TEXT.format(1), "tracking"), row(TEXT.format(2), None)]) == []


def test_labels_may_differ_over_a_chain_whose_ends_are_not_near() -> None:
    words = ["a" * 20, "a" * 17 + "bbb", "a" * 15 + "bbbbb"]
    assert is_near(words[1], words[2], 85)
    assert find([row(words[0], "x"), row(words[1], "x"), row("z" * 20, "y")]) == []


@given(
    rows=st.lists(
        st.builds(row, st.integers(0, 14).map(lambda n: "book a table" + "!" * n), st.sampled_from(["a", "b", None])),
        max_size=12,
        unique_by=lambda r: (r.id, r.label),
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_row_that_contradicts_a_near_one_is_in_a_cluster(rows: list[Record], shuffle: random.Random) -> None:
    found = conflicts(rows)
    inside = {(member["id"], member["label"]) for cluster in found for member in cluster["rows"]}
    for one in rows:
        for other in rows:
            if one.label and other.label and one.label != other.label and is_near(one.prompt, other.prompt, 90):
                assert (one.id, one.label) in inside
    assert all(len(cluster["labels"]) > 1 for cluster in found)
    moved = shuffle.sample(rows, len(rows))
    assert conflicts(moved) == found


def test_the_label_is_what_the_completion_teaches() -> None:
    values = read_params(Path(__file__).parents[3] / "params.yaml")
    values["task"]["tags"] = {"triage": {"kind": "classification", "labels": ["x"]}, "chat": {"kind": "text"}}
    task = check_params(values).task

    def label(completion: str, label: str | None = "refund", tag: str | None = None) -> str | None:
        return label_of(make_record("a", completion, label, "raw", "raw.jsonl:1", task=tag), task)

    assert label('{"intent": "account"}') == "account"
    assert label('{"intent": ["b", 1]}') == '["b", 1]'
    assert label('{"other": 1}') == "refund"
    assert label("no json") == "refund"
    assert label("[1]", None) is None
    assert label("x ", tag="triage") == "x"
    assert label("Hello!", tag="chat") == "refund"
    assert outcomes([row("a", None, "[1,  2]"), row("b", None)], [None, "x"]) == ["[1,2]", "x"]


def test_the_same_text_for_another_task_is_no_conflict() -> None:
    texts = ["Where is it?", "The ferry to the northern islands left the harbour at seven, an hour late for the fog."]
    rows = [
        make_record(text, answer, answer, "raw", "raw.jsonl:1", task=task)
        for text in texts
        for task, answer in (("tone", "yes"), ("price", "no"), (None, "maybe"))
    ]
    questions = ("Was it late?", "Was it early?", "Was there fog?")
    rows += [row(f"{texts[1]} {question}", label) for question, label in zip(questions, "yny", strict=True)]
    assert find(rows) == []
    assert find([*rows, row(f"{texts[1]} Was it late", "n")]) == [["n", "y"]]
