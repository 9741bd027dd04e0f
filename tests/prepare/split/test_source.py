"""A whole source as the hold-out: nothing of it is lost, and nothing like it is trained on."""

import json
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from at_once import met
from deduplicated import deduplicated, near_prompts, write_searched
from dvc.utils.serialize import dumps_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import write_json
from stages.near_duplicates.nearness import SHARED_BY, find_nearness
from stages.params.loader import check_params, read_params
from stages.params.prepare import Split
from stages.prepare.split import __main__ as stage
from stages.prepare.split.draw import _slice, draw, take_source
from stages.prepare.split.lock import WholeSource, make_lock, read_lock, write_lock
from stages.prepare.split.partition import partition, restore_locked
from stages.records.record import Record, make_record, read_records, read_rows, write_dropped, write_records
from stages.text.normal_form import normalise

TEST, TRAIN = "test.jsonl", "train.jsonl"
HOW = WholeSource(labels=[], rows=1, source=TEST, unique_md5="")
PARAMS = read_params(Path(__file__).parents[3] / "params.yaml")
SETTINGS = PARAMS["split"] | {"validation_share": 0.2}
LOCK = Path("data/holdout.lock")
WORDS = ["alpha bravo", "charlie delta", "echo foxtrot", "golf hotel", "india juliett", "kilo lima", "mike november"]


def row(prompt: str, source: str, completion: str = "{}", label: str | None = None, line: int = 1) -> Record:
    return make_record(prompt, completion, label, source, f"{source}:{line}")


def near(left: Record, right: Record, data: list[Record]) -> bool:
    alike = fuzz.ratio(normalise(left.prompt), normalise(right.prompt))
    rare = sum(row.completion == left.completion for row in data) <= SHARED_BY
    return alike >= (80 if left.completion == right.completion and rare else 90)


PROMPTS = st.one_of(
    st.integers(0, 14).map(lambda n: "book a table for two at the corner" + "!" * n),
    st.integers(0, 9).map(lambda n: f"Where is my order number {n}, please tell me"),
    st.sampled_from(["Play some jazz now", "play  some jazz now", "play some jazz no", "plays some jazz now!"]),
    st.text("abc", min_size=3, max_size=12),
)
ROWS = st.lists(
    st.builds(
        row,
        PROMPTS,
        st.sampled_from([TEST, TRAIN, "more.jsonl"]),
        st.sampled_from(["{}", "[]"]),
        st.sampled_from([None, "x", "y"]),
        st.integers(1, 99),
    ),
    max_size=25,
)


@settings(max_examples=300)
@given(rest=ROWS, completion=st.sampled_from(["equal", "fuzzy", "ignore"]), shuffle=st.randoms(use_true_random=False))
def test_every_row_of_the_source_is_held_out_and_nothing_near_one_is_trained_on(
    rest: list[Record], completion: str, shuffle: random.Random
) -> None:
    raw = [*rest, row("hello there", TEST), row("something else entirely", TRAIN)]
    kept, duplicates = deduplicated(raw, completion)
    found = take_source(kept, duplicates, TEST)
    of_source = {record.id for record in raw if record.source == TEST}
    lock = make_lock(found.records, HOW)
    assert {entry.id for entry in lock.rows} == of_source
    assert sum(rows for rows, _ in found.labels().values()) == sum(record.source == TEST for record in raw)
    assert sum(locked for _, locked in found.labels().values()) == len(of_source)

    restored = restore_locked(kept, duplicates, of_source)
    assert {record.id for record in restored} == found.restored
    split = Split.model_validate(SETTINGS)
    data = kept + restored
    parts = partition(data, lock, find_nearness(data, near_prompts(raw), 80), split, 17)
    assert parts.holdout == found.records
    for seen in parts.train + parts.validation:
        assert not any(near(seen, record, data) for record in raw if record.source == TEST)

    moved = take_source(*deduplicated(shuffle.sample(raw, len(raw)), completion), TEST)
    assert make_lock(moved.records, HOW) == lock


def test_what_is_near_a_dropped_row_is_not_trained_on_though_it_is_not_near_the_one_that_stood_for_it() -> None:
    text = "where is my order one two three four"
    tested, longer, other = row(text, TEST), row(text + " five", TRAIN), row("so, " + text, TRAIN, "[]")
    kept, duplicates = deduplicated([tested, longer, other, row("hello", TRAIN)])
    assert tested not in kept
    data = [*kept, tested]
    assert near(tested, longer, data)
    assert near(tested, other, data)
    assert not near(longer, other, data)
    found = take_source(kept, duplicates, TEST)
    assert (found.records, found.restored) == ([tested], {tested.id})
    lock = make_lock(found.records, HOW)
    near_rows = find_nearness(data, near_prompts([tested, longer, other]), 80)
    parts = partition(data, lock, near_rows, Split.model_validate(SETTINGS), 17)
    assert {rejected.record.id for rejected in parts.quarantined} == {longer.id, other.id}


def test_of_copies_the_one_that_dedup_would_keep_is_restored_and_gives_the_label() -> None:
    text = "where is my order one two three four"
    copies = [row(text, TRAIN), row(text, TEST, label="x"), row(text, TEST, line=2), row(text, TEST, line=3)]
    raw = [*copies, row(text + " five", TRAIN), row("hello", TRAIN)]
    for order in (raw, raw[::-1]):
        found = take_source(*deduplicated(order), TEST)
        assert found.records == [copies[1]]
        assert found.labels() == {"x": (3, 1)}
        assert found.restored == {copies[0].id}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = PARAMS | {"holdout": {"lock": LOCK.as_posix(), "share": 0.5, "max_rows": 2}, "split": SETTINGS}
    paths.PARAMS.write_text(dumps_yaml(params), encoding="utf-8")
    write_data([row(word, TRAIN, label="a") for word in WORDS] + [row("papa quebec", TEST, label="b")])


def write_data(raw: list[Record], rejected: int = 0) -> None:
    kept, duplicates = deduplicated(raw)
    write_searched(raw)
    write_records(paths.UNIQUE, kept)
    write_dropped(paths.DUPLICATES, duplicates)
    write_json(paths.CLEAN_METRICS, {"sources": {TEST: {"rows": {"rejected": rejected}}}})


@pytest.mark.usefixtures("project")
def test_the_command_says_what_became_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    shared, dropped = row(WORDS[0], TEST, label="a"), row("sierra tango uniform victor", TEST)
    longer = row("sierra tango uniform victor!", TRAIN)
    raw = [row(word, TRAIN, label="a") for word in WORDS] + [
        row("papa quebec", TEST, label="b", line=n) for n in (1, 2)
    ]
    write_data([*raw, shared, dropped, longer], rejected=3)
    draw(redraw=False, source=TEST)
    assert capsys.readouterr().out.splitlines() == [
        "label       rows  locked  repeats of locked rows",
        "a              1       1                       0",
        "b              2       1                       1",
        "(no label)     1       1                       0",
        "all            4       3                       1",
        "1 of the locked rows dedup had dropped for a row like them; the split brings them back",
        "warning: clean rejected 3 more rows of the source; data/rejected/clean.jsonl says why",
        "3 rows locked in data/holdout.lock; commit it, then run `dvc repro`",
    ]
    how = read_lock(LOCK).drawn
    assert isinstance(how, WholeSource)
    assert (how.source, how.rows) == (TEST, len(read_records(paths.UNIQUE)))
    stage.main()
    printed = capsys.readouterr().out
    assert "1 locked rows came back" in printed
    assert "redraw" not in printed
    assert "warning: 2 labels have no training row; add some: (no label), b" in printed
    assert {record.id for record in read_records(paths.HOLDOUT)} == {shared.id, dropped.id, raw[-1].id}
    metrics = json.loads(paths.SPLIT_METRICS.read_text())
    assert metrics["kept_back_by_groups"]["holdout"] == {"a": 0, "b": 0, "(no label)": 0}
    assert metrics["without"]["train"] == 2
    assert metrics["quarantined"] == {"same_prompt": 0, "near_prompt": 1, "same_text": 0, "near_pair": 0}


@pytest.mark.usefixtures("project")
def test_rows_that_come_to_the_source_later_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    draw(redraw=False, source=TEST)
    before = LOCK.read_bytes()
    raw = [row(word, TRAIN, label="a") for word in WORDS]
    write_data([*raw, row("papa quebec", TEST, label="b"), row("romeo", TEST), row(WORDS[0], TEST, label="a")])
    stage.main()
    told = capsys.readouterr().out
    assert "2 rows of test.jsonl came after data/holdout.lock and are not locked" in told
    with pytest.raises(UserError, match=r"exists.*add --redraw"):
        draw(redraw=False, source=TEST)
    assert LOCK.read_bytes() == before
    draw(redraw=True, source=TEST)
    capsys.readouterr()
    stage.main()
    assert len(read_records(paths.HOLDOUT)) == 3
    assert "came after" not in capsys.readouterr().out


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("raw", "source", "sentence"),
    [
        (None, "tests.jsonl", r"no row is of the source 'tests\.jsonl'; did you mean 'test\.jsonl'\?"),
        (None, "zzz", r"no row is of the source 'zzz'; the sources are test\.jsonl, train\.jsonl"),
        ([row("hello", TEST), row("hello", TRAIN)], TEST, r"every row is of the source 'test\.jsonl'"),
    ],
)
def test_a_source_that_cannot_be_taken_is_a_sentence(raw: list[Record] | None, source: str, sentence: str) -> None:
    if raw:
        write_data(raw)
    with pytest.raises(UserError, match=sentence):
        draw(redraw=False, source=source)
    assert not LOCK.exists()


WEEK = "inbox-1"


def weekly(label: str = "w") -> list[Record]:
    return [row(f"{word[::-1]} of the week", WEEK, label=label) for word in WORDS]


@pytest.mark.usefixtures("project")
def test_a_slice_is_locked_beside_rows_that_stay(capsys: pytest.CaptureFixture[str]) -> None:
    draw(redraw=False, source=TEST)
    before, old = read_lock(LOCK).rows, [row(word, TRAIN, label="a") for word in WORDS]
    old.append(row("papa quebec", TEST, label="b"))
    near_locked = row("papa quebecc", WEEK, "[]", label="w")
    write_data([*old, *weekly(), near_locked])
    stage.main()
    assert len(read_records(paths.HOLDOUT)) == 1  # nothing of a source comes into the hold-out by itself
    capsys.readouterr()
    draw(redraw=False, add=WEEK)
    said = capsys.readouterr().out.splitlines()
    assert "1 rows of the source are near a locked row; they are neither drawn nor trained on" in said
    assert "warning: the last run trained on 2 of these rows; its model cannot be judged by them" in said
    lock = read_lock(LOCK)
    new = [one for one in lock.rows if one.slice]
    assert [one for one in lock.rows if not one.slice] == before
    assert {one.slice for one in new} == {WEEK}
    assert len(new) == 2  # holdout.max_rows
    assert [(one.source, one.rows, one.max_rows, one.share) for one in lock.added] == [(WEEK, len(WORDS), 2, 0.5)]
    stage.main()
    held = {record.id: record for record in read_records(paths.HOLDOUT)}
    assert held.keys() == {one.id for one in lock.rows}
    apart = {one["id"]: one.get("slice") for one in read_rows(paths.NEAREST)}
    assert apart == {one.id: one.slice for one in lock.rows}
    metrics = json.loads(paths.SPLIT_METRICS.read_text())
    assert (metrics["slices"], metrics["quarantined"]["near_prompt"]) == ({WEEK: 2}, 1)
    with pytest.raises(UserError, match="has a slice of 'inbox-1' already"):
        draw(redraw=False, add=WEEK)
    with pytest.raises(UserError, match="leave --redraw and --source out"):
        draw(redraw=True, add=WEEK)
    with pytest.raises(UserError, match=r"no row is of the source 'inbox-2'; did you mean 'inbox-1'\?"):
        draw(redraw=False, add="inbox-2")


@pytest.mark.usefixtures("project")
def test_a_slice_beside_locked_rows_that_are_gone_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether they were taken out or have other ids: they are in the slice then, or are trained on."""
    rest, gone = [row(word, TRAIN, label="a") for word in WORDS], row("papa quebec", TEST, label="b")
    write_data([*rest, gone, *weekly()])
    draw(redraw=False, source=TEST)
    before = LOCK.read_bytes()
    write_data([*rest, *weekly()])
    with pytest.raises(UserError, match=r"none of the 1 rows of data/holdout\.lock is in the data: each was taken"):
        draw(redraw=False, add=WEEK)
    assert LOCK.read_bytes() == before
    write_data([*rest, gone, row("romeo sierra", TEST, label="b"), *weekly()])
    draw(redraw=True, source=TEST)
    write_data([*rest, gone, *weekly()])
    capsys.readouterr()
    draw(redraw=False, add=WEEK)
    assert "warning: 1 of 2 locked rows are no longer in the data: each was taken" in capsys.readouterr().out


SLICE = check_params(PARAMS | {"holdout": {"share": 0.6, "max_rows": 9}, "split": SETTINGS})


@settings(max_examples=20)
@given(rest=ROWS)
def test_a_slice_leaves_the_lock_and_takes_nothing_near_it(rest: list[Record]) -> None:
    raw = [*rest, row("hello there", TEST), row("something else entirely", TRAIN), *weekly()]
    kept, duplicates = deduplicated(raw)
    old = make_lock(take_source(kept, duplicates, TEST).records, HOW)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data(raw)
        drawn, lock, _ = _slice(kept, old, SLICE, WEEK)
    assert [one for one in lock.rows if not one.slice] == list(old.rows)
    assert {one.id for one in lock.rows if one.slice} == {one.id for one in drawn}
    assert not {one.id for one in drawn} & {one.id for one in old.rows}
    locked = [record for record in raw if record.source == TEST]
    assert not any(near(one, record, raw) for one in drawn for record in locked)


@pytest.mark.usefixtures("project")
def test_of_two_that_draw_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write_data([row(word, TRAIN, label="a") for word in WORDS] + [row("papa quebec", TEST, label="b")])
    monkeypatch.setattr("stages.prepare.split.draw.write_lock", met(write_lock))
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(draw, redraw=False, source=TEST) for _ in range(2)]
    assert sorted("stays the same" in str(one.exception()) for one in both) == [False, True]
