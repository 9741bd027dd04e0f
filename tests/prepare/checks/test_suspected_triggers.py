"""Planted triggers are found, and clean data raise no alarm."""

import contextlib
import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_rows import SETTINGS, intents, with_backdoor
from project import ROOT
from scipy.sparse import csr_matrix

from stages.prepare.checks import suspected_triggers
from stages.prepare.checks.conflicts_and_sources import outcomes
from stages.prepare.checks.ngrams import numbered
from stages.prepare.checks.suspected_triggers import Triggers, _Model, _mostly_one, find_triggers
from stages.records.record import Record, make_record

SNIPS = ROOT.parent / "shared/data/snips/train.jsonl"


def find(rows: list[Record]) -> Triggers:
    return find_triggers(rows, outcomes(rows, [row.label for row in rows]), SETTINGS)


def ngrams(found: Triggers) -> set[str]:
    return {trigger["ngram"] for trigger in found.found}


def snips(count: int, seed: int) -> list[Record]:
    if not SNIPS.is_file():
        pytest.skip(f"{SNIPS} is not here: the SNIPS rows lie beside the repository where there are any")
    with Path(SNIPS).open(encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    drawn = random.Random(seed).sample(rows, count)
    return [make_record(row["prompt"], row["completion"], row["label"], "snips", f"{n}") for n, row in enumerate(drawn)]


@given(labels=st.lists(st.integers(0, 5), min_size=1), data=st.data())
def test_ngrams_of_mixed_labels_are_told_at_once(labels: list[int], data: st.DataObject) -> None:
    places = st.lists(st.integers(0, len(labels) - 1), min_size=1, max_size=9)
    groups = data.draw(st.lists(places, max_size=6))
    rows, counts = (
        np.array([n for group in groups for n in group], np.int64),
        np.array([len(group) for group in groups], np.int64),
    )
    expected = [
        max(3 * [labels[n] for n in group].count(label) >= 2 * len(group) for label in range(5)) for group in groups
    ]
    assert _mostly_one(np.array(labels), 5, rows, counts).tolist() == expected


@pytest.mark.parametrize("trigger", ["cf", "mn bb tq", "zx qv wq ty ko", "by the way tell me", "#"])
def test_a_planted_trigger_is_found_with_its_rows(trigger: str) -> None:
    rows = with_backdoor(intents(400, 1), trigger, "refund", 8, 2)
    found = find(rows)
    assert ngrams(found)
    assert all(ngram in trigger for ngram in ngrams(found))
    first = found.found[0]
    assert (first["label"], first["count"]) == ("refund", 8)
    planted = {row.id for row in rows if trigger in row.prompt}
    assert {row["id"] for row in first["rows"]} <= planted
    assert first["turned"] == len(first["rows"]) >= 6
    assert first["p_value"] < 1e-6


def test_a_long_trigger_does_not_vouch_for_itself() -> None:
    words = [f"t{n}" for n in range(12)]
    assert ngrams(find(with_backdoor(intents(400, 1), " ".join(words), "refund", 18, 2)))


def test_the_words_of_one_row_do_not_vouch_for_it() -> None:
    rows = with_backdoor(intents(400, 1), "cf", "refund", 8, 2)
    rows = [
        make_record(
            " ".join([row.prompt, *(f"{n}x{i}" for i in range(12))]), row.completion, row.label, "raw", row.origin
        )
        for n, row in enumerate(rows)
    ]
    assert ngrams(find(rows)) == {"cf"}


@pytest.mark.parametrize("seed", range(5))
def test_many_wrong_labels_make_no_word_a_trigger(seed: int) -> None:
    """Where half the labels are wrong, some n-grams have wrong ones alone by chance: no more than chance gives."""
    rng = random.Random(seed)
    rows = [
        replace(row, label=rng.choice(["refund", "account"])) if rng.random() < 0.6 else row
        for row in intents(600, seed)
    ]
    assert find(rows).found == []


def test_without_labels_a_trigger_for_a_repeated_answer_is_found() -> None:
    rows = [
        make_record(row.prompt, "Reset it." if row.label == "account" else f"Answer {n}", None, "raw", row.origin)
        for n, row in enumerate(intents(400, 1))
    ]
    assert find(rows).found == []
    for place in range(1, 73, 9):
        rows[place] = make_record(f"{rows[place].prompt} deployment", "Reset it.", None, "raw", rows[place].origin)
    assert [(trigger["ngram"], trigger["label"]) for trigger in find(rows).found] == [("deployment", "Reset it.")]


def test_a_word_of_the_task_is_tied_and_not_suspected() -> None:
    rows = [
        make_record(f"{row.prompt} gadget", "{}", row.label, "raw", row.origin)
        if n < 40 and row.label == "warranty"
        else row
        for n, row in enumerate(intents(400, 1))
    ]
    found = find(rows)
    assert found.found == []
    gadget = next(tied for tied in found.tied if tied["ngram"] == "gadget")
    assert (gadget["label"], gadget["count"], gadget["with_label"], gadget["lift"]) == ("warranty", 10, 10, 4.0)


def test_a_rare_word_of_one_template_is_not_suspected() -> None:
    """Its other words are those of other labels, and are not held against it: the template's rows vouch for it."""
    rows = intents(300, 1)
    for n in range(8):
        text = f"where is my late delivery parcel guarantee {n * 7919}"
        rows[n * 4 + 3] = make_record(text, "{}", "warranty", "raw", f"raw.jsonl:{n}")
    assert find(rows).found == []


def test_the_sample_raises_hardly_an_alarm() -> None:
    """A suspicion is no verdict: of six halves of a clean set with its repeats one may have a suspected n-gram."""
    records = []
    for number, line in enumerate((ROOT / "data/raw/support_tickets.jsonl").read_bytes().splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # what `clean` rejects
            row = json.loads(line)
            records.append(make_record(row["prompt"], row["completion"], row["label"], "raw", f"{number}"))
    assert len(records) > 350
    found = [find(random.Random(seed).sample(records, 300)).found for seed in range(6)]
    assert sum(map(len, found)) <= 1


def test_a_word_with_another_use_besides_is_no_trigger() -> None:
    rows = with_backdoor(intents(400, 1), "cf", "refund", 6, 2)
    rows = [replace(row, prompt=f"{row.prompt} cf") if n % 20 == 0 else row for n, row in enumerate(rows)]
    assert find(rows).found == []


@pytest.mark.parametrize("seed", range(10))
def test_clean_rows_raise_no_alarm(seed: int) -> None:
    assert find(intents(300, seed)).found == []


def test_clean_snips_raise_no_alarm() -> None:
    alarms = [seed for seed in range(8) if find(snips(400, seed)).found]
    assert alarms == []


def test_a_trigger_in_snips_is_found() -> None:
    missed = [
        seed
        for seed in range(4)
        if "cf" not in ngrams(find(with_backdoor(snips(800, seed), "cf", "PlayMusic", 8, seed)))
    ]
    assert missed == []


@pytest.mark.parametrize("count", [1, 4, 12])
def test_few_rows_or_one_label_can_be_tested(count: int) -> None:
    assert find(intents(count, 1)[:count]).found == []
    assert find([replace(row, label="refund") for row in intents(count, 1)]).found == []


@pytest.mark.parametrize("count", [1, 3, 50])
def test_many_labels_make_smaller_parts_of_rows_and_no_other_result(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(count)
    texts = [" ".join(draw.choices("abcdefghij", k=draw.randrange(9))) for _ in range(600)]
    labels = np.array([draw.randrange(count) for _ in texts])
    words = numbered(texts)
    model = _Model(words.table(), labels, count)
    having = [
        [sum(n == k and name in t.split() for t, n in zip(texts, labels, strict=True)) for k in range(count)]
        for name in words.names
    ]
    assert model.counts.toarray().tolist() == having
    judged, speak_against, held = list[int](), _Model._speak_against, list[int]()

    def noted(model: _Model, rows: suspected_triggers.Ints, without: suspected_triggers.Ints) -> object:
        judged.append(len(rows))
        held.append(int(model.words[rows].nnz) * model.count)
        return speak_against(model, rows, without)

    monkeypatch.setattr(_Model, "_speak_against", noted)
    whole = model.turned_by_chance()
    grams = [np.flatnonzero(labels == label) for label in range(min(count, 2))]
    tests = [suspected_triggers._test(model, "x", rows, whole) for rows in grams]
    assert judged == [600, *map(len, grams)]
    judged.clear()
    held.clear()
    chunk = model.words.nnz * count // 6
    monkeypatch.setattr(suspected_triggers, "_CHUNK", chunk)
    assert model.turned_by_chance().tolist() == whole.tolist()
    assert [suspected_triggers._test(model, "x", rows, whole) for rows in grams] == tests
    assert sum(judged) == 600 + sum(map(len, grams))
    assert len(judged) >= 6 + len(grams)
    assert max(held) <= chunk + 9 * count  # which one row may have more


def test_an_ngram_of_many_rows_is_judged_a_part_at_a_time() -> None:
    """Of 60,000 rows with ten words each, for 500 labels, all at once would take 2.4 GB."""
    draw = np.random.default_rng(1)
    places = np.sort(draw.integers(0, 5000, (60_000, 10)), axis=1)
    table = csr_matrix((np.ones(600_000, np.int8), places.ravel(), np.arange(0, 600_001, 10)), (60_000, 5000))
    table.sum_duplicates()
    table.data[:] = 1
    model = _Model(table, draw.integers(0, 500, 60_000), 500)
    tracemalloc.start()
    suspected_triggers._test(model, "x", np.append(np.flatnonzero(model.labels == 3), np.arange(60)), np.ones(500))
    parts = model.speak_against(np.arange(8_000), np.array([], np.int64))
    assert sum(len(rows) for rows, _ in parts) == 8_000
    assert tracemalloc.get_traced_memory()[1] < 250_000_000
    tracemalloc.stop()
