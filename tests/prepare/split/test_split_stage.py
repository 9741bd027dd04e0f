import json
from pathlib import Path
from typing import Any

import pytest
from deduplicated import write_searched
from dvc.utils.serialize import dumps_yaml

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.params.loader import read_params
from stages.params.prepare import Clean, PersonalData
from stages.params.task import Task
from stages.prepare.clean.cleaning import Rules, clean_pair
from stages.prepare.clean.shapes import Pair
from stages.prepare.split import __main__ as stage
from stages.prepare.split.draw import draw
from stages.prepare.split.lock import read_lock
from stages.records.record import (
    Dropped,
    Record,
    make_record,
    read_dropped,
    read_records,
    read_rows,
    write_dropped,
    write_records,
)

SPLIT = {
    "validation_share": 0.2,
    "pair_threshold": 80,
    "max_train_rows": None,
    "max_source_share": 1,
    "cross_validation": None,
    "fold": None,
}
PARAMS = read_params(Path(__file__).parents[3] / "params.yaml") | {
    "seed": 17,
    "dedup": {"threshold": 90, "completion": "equal", "giant_rows": 3},
    "holdout": {"lock": "data/holdout.lock", "share": 0.25, "max_rows": 48},
    "split": SPLIT,
}
NO_RUNS = {"rows": 0, "of": 0, "runs": 0}
LOCK = Path("data/holdout.lock")
WORDS = [
    *("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"),
    *("india", "juliett", "kilo", "lima", "mike", "november", "oscar", "papa"),
]
ROWS = [
    make_record(f"{word} {word[::-1]}", "{}", "even" if n % 2 else None, "raw", f"raw.jsonl:{n}")
    for n, word in enumerate(WORDS, 1)
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params({})
    write_unique(ROWS)


def write_params(changes: dict[str, Any]) -> None:
    paths.PARAMS.write_text(dumps_yaml(PARAMS | changes), encoding="utf-8")


def write_unique(rows: list[Record], duplicates: list[Dropped] | None = None) -> None:
    write_records(paths.UNIQUE, sorted(rows, key=lambda row: row.id))
    write_dropped(paths.DUPLICATES, duplicates or [])
    write_searched([*rows, *(duplicate.record for duplicate in duplicates or [])])


def test_draw_and_split(capsys: pytest.CaptureFixture[str]) -> None:
    draw(redraw=False)
    printed = capsys.readouterr().out
    assert "4 rows locked in data/holdout.lock" in printed
    assert "(no label)" in printed
    stage.main()
    train, validation, holdout = map(read_records, (paths.SPLIT_TRAIN, paths.VALIDATION, paths.HOLDOUT))
    assert [row.id for row in holdout] == [row.id for row in read_lock(LOCK).rows]
    assert sorted(row.id for row in train + validation + holdout) == sorted(row.id for row in ROWS)
    assert train == sorted(train, key=lambda row: row.id)
    locked = [{"id": row.id, "prompt_sha256": row.prompt_sha256} for row in read_lock(LOCK).rows]
    assert list(read_rows(paths.LOCKED)) == locked
    nearest = list(read_rows(paths.NEAREST))
    assert [row["id"] for row in nearest] == [row.id for row in holdout]
    assert {row["nearest_id"] for row in nearest} <= {row.id for row in train}
    assert all(0 < row["ratio"] < 90 for row in nearest)
    assert json.loads(paths.SPLIT_METRICS.read_text()) == {
        "rows": {"in": 16, "train": 10, "validation": 2, "holdout": 4, "quarantined": 0, "beyond_max": 0},
        "labels": {
            "(no label)": {"train": 5, "validation": 1, "holdout": 2},
            "even": {"train": 5, "validation": 1, "holdout": 2},
        },
        "without": {"train": 0, "validation": 0, "holdout": 0},
        "kept_back_by_groups": {
            "holdout": {"(no label)": 0, "even": 0},
            "validation": {"(no label)": 0, "even": 0},
        },
        "quarantined": {"same_prompt": 0, "near_prompt": 0, "same_text": 0, "near_pair": 0},
        "locked": {"rows": 4, "missing": 0, "restored": 0},
        "overlap": {"shared_ids": 0, "shared_prompts": 0},
        "shared_13_grams": {"prompt": NO_RUNS, "completion": NO_RUNS},
    }


def test_a_lock_has_one_row_a_line_and_sorted_keys() -> None:
    draw(redraw=False)
    text = LOCK.read_text(encoding="utf-8")
    values = json.loads(text)
    assert list(values) == sorted(values)
    lines = [line for line in text.splitlines() if '"id"' in line]
    assert [json.loads(line.strip().rstrip(",")) for line in lines] == values["rows"]
    assert lines == sorted(lines)
    assert values["drawn"]["rows"] == 16
    draw(redraw=True)
    assert LOCK.read_text(encoding="utf-8") == text


def test_a_lock_is_not_drawn_twice_unless_asked() -> None:
    draw(redraw=False)
    before = LOCK.read_bytes()
    write_params({"seed": 18})
    with pytest.raises(UserError, match=r"data/holdout\.lock exists.*--redraw"):
        draw(redraw=False)
    assert LOCK.read_bytes() == before
    draw(redraw=True)
    assert LOCK.read_bytes() != before


def test_draw_without_data_says_what_to_run() -> None:
    paths.UNIQUE.unlink()
    with pytest.raises(UserError, match="dvc repro dedup"):
        draw(redraw=False)
    write_unique(ROWS[:1])
    with pytest.raises(UserError, match="no row can be drawn from the 1"):
        draw(redraw=False)
    assert not LOCK.exists()


def spoil(**changes: Any) -> str:
    return json.dumps(json.loads(LOCK.read_text(encoding="utf-8")) | changes)


def test_a_lock_that_cannot_be_used_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"data/holdout\.lock is missing; .*tunetrail holdout draw"):
        stage.main()
    draw(redraw=False)
    rows = json.loads(LOCK.read_text(encoding="utf-8"))["rows"]
    wrong_hash = [rows[0] | {"prompt_sha256": "0" * 64}, *rows[1:]]
    for text, message in [
        ("<<<<<<< HEAD\n", "no hold-out lock"),
        (b"\xff".decode("latin-1"), "no hold-out lock"),
        (spoil(format=2), "no hold-out lock .format"),
        (spoil(rows=[]), "no hold-out lock .rows"),
        (spoil(rows=[{"id": "x"}]), r"no hold-out lock .rows\.0"),
        (spoil(more=1), "no hold-out lock .more"),
        (spoil(rows=rows * 2), "more than once"),
        (spoil(rows=rows[1:]), r"has 3 rows, but 4 were drawn"),
        (spoil(rows=[*rows, rows[0] | {"id": "0" * 64, "slice": "mail"}]), r"has 5 rows, but 4 were drawn"),
        (spoil()[:-1] + f', "rows": {json.dumps(rows[:1])}}}', "key 'rows' occurs more than once"),
        (spoil(normaliser_version=0), "normaliser 0"),
        (spoil(rows=wrong_hash), f"another prompt_sha256 .* {rows[0]['id']}"),
    ]:
        LOCK.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=message) as error:
            stage.main()
        assert "tunetrail holdout draw" in str(error.value)
    assert not paths.SPLIT_TRAIN.parent.exists()


def test_locked_rows_that_are_gone_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    draw(redraw=False)
    gone = read_lock(LOCK).rows[0].id
    write_unique([row for row in ROWS if row.id != gone])
    stage.main()
    assert json.loads(paths.SPLIT_METRICS.read_text())["locked"] == {"rows": 4, "missing": 1, "restored": 0}
    assert "1 of 4 locked rows are no longer in the data" in capsys.readouterr().out
    locked = {row.id for row in read_lock(LOCK).rows}
    write_unique([row for row in ROWS if row.id not in locked])
    with pytest.raises(UserError, match=r"none of the 4 rows .* a repair, mask or contract of `clean` was changed"):
        stage.main()


def test_a_mask_that_is_switched_off_is_told_where_locked_rows_are_missed(capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows have other ids. They were in training without a word of why the hold-out was smaller."""

    def cleaned(mask: list[PersonalData]) -> list[Record]:
        rules = Rules.of(Clean(mask_personal_data=mask, check_contract=False), Task(kind="text", instruction="x"), "{}")
        pairs = [Pair("prompt_completion", f"{row.prompt} {row.prompt[:4]}@example.com", "{}") for row in ROWS]
        return [clean_pair(pair, "raw", f"raw.jsonl:{n}", rules).record for n, pair in enumerate(pairs)]

    write_unique(cleaned(["email"]) + ROWS)
    draw(redraw=False)
    locked = {row.id for row in read_lock(LOCK).rows}
    assert (masked := {row.id for row in cleaned(["email"])} & locked)
    assert masked < locked
    before = LOCK.read_bytes()
    write_unique(cleaned([]) + ROWS)
    stage.main()
    said = capsys.readouterr().out
    assert (
        f"warning: {len(masked)} of {len(locked)} locked rows are no longer in the data: each was taken out, or" in said
    )
    assert "has another id since a repair, mask or contract of `clean` was changed" in said
    assert LOCK.read_bytes() == before


def test_a_locked_row_comes_back_from_the_duplicates(capsys: pytest.CaptureFixture[str]) -> None:
    draw(redraw=False)
    stage.main()
    before = paths.HOLDOUT.read_bytes()
    locked = {row.id for row in read_lock(LOCK).rows}
    old = next(row for row in ROWS if row.id in locked)
    new = make_record(old.prompt + "!", old.completion, old.label, "raw", "raw.jsonl:99")
    duplicate = Dropped("near", "", new.id, 95.0, old)
    write_unique([row for row in ROWS if row != old] + [new], [duplicate])
    capsys.readouterr()
    stage.main()
    assert paths.HOLDOUT.read_bytes() == before
    assert [(row.record, row.witness) for row in read_dropped(paths.QUARANTINE)] == [(new, old.id)]
    metrics = json.loads(paths.SPLIT_METRICS.read_text())
    assert metrics["locked"] == {"rows": 4, "missing": 0, "restored": 1}
    assert metrics["rows"]["in"] == 17
    assert "1 locked rows came back" in capsys.readouterr().out


def test_max_train_rows_conserves_rows() -> None:
    draw(redraw=False)
    write_params({"split": SPLIT | {"max_train_rows": 3}})
    stage.main()
    rows = json.loads(paths.SPLIT_METRICS.read_text())["rows"]
    assert (rows["train"], rows["beyond_max"]) == (3, 7)
    assert [row.reason for row in read_dropped(paths.QUARANTINE)] == ["beyond_max"] * 7


def test_folds_are_written_and_one_can_be_trained_on() -> None:
    draw(redraw=False)
    write_params({"split": SPLIT | {"cross_validation": 3}})
    stage.main()
    pool = sorted(row.id for path in (paths.SPLIT_TRAIN, paths.VALIDATION) for row in read_records(path))
    folds = paths.SPLIT_TRAIN.parent / "folds"
    validations = []
    for number in (1, 2, 3):
        train, validation = (read_records(folds / str(number) / f"{part}.jsonl") for part in ("train", "validation"))
        assert sorted(row.id for row in train + validation) == pool
        validations += [row.id for row in validation]
    assert sorted(validations) == pool
    metrics = json.loads(paths.SPLIT_METRICS.read_text())
    assert metrics["rows"]["train"] == 10
    assert [fold["rows"] for fold in metrics["folds"].values()] == [4, 4, 4]
    assert metrics["folds"]["2"] == {"rows": 4, "labels": {"(no label)": 2, "even": 2}}

    write_params({"split": SPLIT | {"cross_validation": 3, "fold": 2}})
    stage.main()
    assert read_records(paths.SPLIT_TRAIN) == read_records(folds / "2" / "train.jsonl")
    assert read_records(paths.VALIDATION) == read_records(folds / "2" / "validation.jsonl")
    assert {row.id for row in read_records(paths.HOLDOUT)} == {row.id for row in read_lock(LOCK).rows}
    assert json.loads(paths.SPLIT_METRICS.read_text())["rows"]["train"] == 8

    write_params({"split": SPLIT})
    stage.main()
    assert not folds.exists()


def test_a_fold_that_is_not_there() -> None:
    for settings, message in [({"fold": 1}, "fold 1 of none"), ({"cross_validation": 3, "fold": 4}, "fold 4 of 3")]:
        write_params({"split": SPLIT | settings})
        with pytest.raises(UserError, match=message):
            stage.main()


def test_the_lock_and_the_metrics_say_what_groups_prevented() -> None:
    rows = [make_record("book a table" + "!" * n, "{}", "booking", "raw", f"raw.jsonl:{n}") for n in range(8)]
    write_unique([*ROWS, *rows])
    draw(redraw=False)
    found = {label.label: (label.rows, label.quota, label.drawn) for label in read_lock(LOCK).drawn.labels}
    assert found == {"booking": (8, 2, 0), "even": (8, 2, 2), None: (8, 2, 2)}
    stage.main()
    assert json.loads(paths.SPLIT_METRICS.read_text())["kept_back_by_groups"] == {
        "holdout": {"booking": 2, "even": 0, "(no label)": 0},
        "validation": {"booking": 2, "even": 0, "(no label)": 0},
    }


def test_a_lock_of_an_earlier_version_is_read() -> None:
    draw(redraw=False)
    values = json.loads(LOCK.read_text(encoding="utf-8"))
    del values["drawn"]["labels"], values["drawn"]["pair_threshold"]
    LOCK.write_text(json.dumps(values))
    stage.main()
    assert json.loads(paths.SPLIT_METRICS.read_text())["kept_back_by_groups"]["holdout"] == {}


def test_a_changed_share_is_said_to_wait_for_a_redraw(capsys: pytest.CaptureFixture[str]) -> None:
    draw(redraw=False)
    stage.main()
    assert "--redraw" not in capsys.readouterr().out.split("locked in")[-1]
    write_params({"holdout": PARAMS["holdout"] | {"share": 0.5}})
    stage.main()
    assert "data/holdout.lock is of 0.25 and 48" in capsys.readouterr().out


def test_a_refused_split_leaves_the_former_files(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(redraw=False)
    stage.main()
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    monkeypatch.setattr("stages.prepare.split.partition.quarantine", lambda records, *_: (list(ROWS), []))
    with pytest.raises(Refusal, match="4 rows of training or validation are in the hold-out"):
        stage.main()
    assert {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()} == before


def test_a_lost_row_stops_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(redraw=False)
    monkeypatch.setattr("stages.prepare.split.partition.quarantine", lambda records, *_: (records[1:], []))
    with pytest.raises(RuntimeError, match="of 16 rows 15 are in a part"):
        stage.main()
    assert not paths.SPLIT_TRAIN.exists()
