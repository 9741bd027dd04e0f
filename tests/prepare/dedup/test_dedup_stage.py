import json
from pathlib import Path

import pytest
from dvc.utils.serialize import dumps_yaml

from stages.core import paths
from stages.params.loader import read_params
from stages.prepare.dedup import __main__ as stage
from stages.prepare.dedup.__main__ import main
from stages.records.prompt import digest, read_near_pairs
from stages.records.record import make_record, read_dropped, read_records, write_records

PARAMS = read_params(Path(__file__).parents[3] / "params.yaml") | {
    "dedup": {"threshold": 90, "completion": "equal", "giant_rows": 3}
}

OUTPUTS = (paths.UNIQUE, paths.DUPLICATES, paths.NEAR_PAIRS, paths.DEDUP_METRICS)
PAIRS = [
    ("Where is my order 12345, please?", '{"intent": "status"}'),
    ("where is my order 12345 please?", '{"intent":"status"}'),
    ("Where is my order 12345, please?", '{"intent": "status"}'),
    ("Where is my order 12345, please!", '{"intent": "refund"}'),
    ("Refund me", '{"intent": "refund"}'),
    ("refund  me", '{"intent": "status"}'),
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(dumps_yaml(PARAMS), encoding="utf-8")


def write_clean(pairs: list[tuple[str, str]]) -> None:
    write_records(paths.CLEAN, [make_record(*pair, None, "raw", f"raw.jsonl:{n}") for n, pair in enumerate(pairs, 1)])


def test_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    write_clean(PAIRS)
    main()
    kept, dropped = read_records(paths.UNIQUE), read_dropped(paths.DUPLICATES)
    assert [record.id for record in kept] == sorted(record.id for record in kept)
    assert sorted(record.origin for record in kept) == [f"raw.jsonl:{n}" for n in (1, 4, 5, 6)]
    assert sorted((row.record.origin, row.reason, row.witness) for row in dropped) == [
        ("raw.jsonl:2", "near", next(record.id for record in kept if record.origin == "raw.jsonl:1")),
        ("raw.jsonl:3", "exact", next(record.id for record in kept if record.origin == "raw.jsonl:1")),
    ]
    assert json.loads(paths.DEDUP_METRICS.read_text()) == {
        "rows": {"in": 6, "kept": 4, "dropped": 2},
        "dropped": {"exact": 1, "near": 1},
        "pairs": {"exact": 1, "near": 4},
        "conflicts": {"prompts": 1, "rows": 2},
        "clusters": {"count": 2, "largest": 3, "giant": 1, "giant_rows": 3},
    }
    orders = [digest(text) for text in ("where is my order 12345, please!", "where is my order 12345, please?")]
    near = read_near_pairs(paths.NEAR_PAIRS, 90)
    assert [score for *names, score in near if {*names} == {*orders}] == [96.87]
    assert len(near) == 3, "three prompts, each near the others, kept or not"
    printed = capsys.readouterr().out
    assert "6 rows: 4 kept; duplicates dropped: 1 exact, 1 near" in printed
    assert "3 rows are near-duplicates of each other, directly or through others, such as raw.jsonl:" in printed
    assert "raw.jsonl:5, raw.jsonl:6" in printed or "raw.jsonl:6, raw.jsonl:5" in printed


def test_shuffled_rows_give_the_same_bytes_but_for_origins() -> None:
    def outputs(pairs: list[tuple[str, str]]) -> list[str]:
        write_clean(pairs)
        main()
        texts = [path.read_text() for path in OUTPUTS]
        return [text if "origin" not in text else without_origin(text) for text in texts]

    def without_origin(text: str) -> str:
        rows = [json.loads(line) for line in text.splitlines()]
        for row in rows:
            row.get("record", row).pop("origin")
        return json.dumps(rows)

    assert outputs(PAIRS) == outputs(PAIRS[::-1]) == outputs(PAIRS[3:] + PAIRS[:3])


def test_no_rows() -> None:
    write_clean([])
    main()
    assert read_records(paths.UNIQUE) == []
    assert read_dropped(paths.DUPLICATES) == []
    assert json.loads(paths.DEDUP_METRICS.read_text())["rows"] == {"in": 0, "kept": 0, "dropped": 0}
    assert read_near_pairs(paths.NEAR_PAIRS, 90) == []


def test_a_lost_row_stops_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    write_clean(PAIRS)
    monkeypatch.setattr(stage, "with_kept_witness", lambda copies, near: [])
    with pytest.raises(RuntimeError, match="one was lost"):
        main()
    assert not paths.UNIQUE.exists()
