import json
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from labelled_rows import from_source, intents, with_backdoor

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json
from stages.measure.gates.__main__ import check_gates
from stages.near_duplicates.pairs import near_pairs
from stages.params.loader import check_params, read_params
from stages.prepare.checks.__main__ import main
from stages.records.prompt import compared, write_near_pairs
from stages.records.record import Record, make_record, read_rows, write_records
from stages.scoring.metrics import PASS

PARAMS = read_params(Path(__file__).parents[3] / "params.yaml")
CLEAN = intents(120, 1)
CLEAN = CLEAN[:60] + from_source(CLEAN[60:], "second")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(dumps_yaml(PARAMS), encoding="utf-8")


def check(rows: list[Record]) -> dict[str, Any]:
    write_records(paths.SPLIT_TRAIN, rows)
    texts = sorted(set(map(compared, rows)))
    pairs = [(pair.left, pair.right, pair.score) for pair in near_pairs(texts, 90)]
    write_near_pairs(paths.NEAR_PAIRS, texts, pairs, 90)
    main()
    found: dict[str, Any] = read_json(paths.CHECKS_METRICS)
    return found


def failed(found: dict[str, Any]) -> set[str]:
    """The gates of params.yaml on these checks that do not pass; the share of one source is gated at 0.6 here."""
    gates = {name: gate for name, gate in check_params(PARAMS).gates.items() if gate.model == "checks"}
    gates["largest_source"] = gates["largest_source"].model_copy(update={"maximum": 0.6})
    assert len(gates) == 4
    return {name for name, gate in check_gates(gates, {"checks": found})["gates"].items() if gate["state"] != PASS}


def test_clean_rows_pass() -> None:
    found = check(CLEAN)
    assert failed(found) == set()
    assert found["triggers"]["found"] == found["triggers"]["rows"] == found["conflicts"]["rows"] == 0
    assert list(read_rows(paths.CHECKS / "triggers.jsonl")) == list(read_rows(paths.CHECKS / "conflicts.jsonl")) == []


def test_a_trigger_fails_its_gate_and_its_rows_are_shown() -> None:
    found = check(with_backdoor(CLEAN, "cf", "refund", 6, 2))
    assert failed(found) == {"suspected_triggers"}
    assert found["triggers"]["found"] == 1
    (trigger,) = read_rows(paths.CHECKS / "triggers.jsonl")
    assert (trigger["ngram"], trigger["label"], trigger["count"]) == ("cf", "refund", 6)
    assert found["triggers"]["rows"] == trigger["turned"] == len(trigger["rows"])
    assert all("cf" in row["prompt"].split() for row in trigger["rows"])


def test_conflicting_labels_fail_their_gate() -> None:
    wrong = [
        make_record(row.prompt + "!", '{"intent": "other"}', "other", row.source, row.origin) for row in CLEAN[58:62]
    ]
    found = check(CLEAN + wrong)
    assert failed(found) == {"conflicting_labels"}
    assert (found["conflicts"]["clusters"], found["conflicts"]["rows"]) == (4, 8)
    assert len(list(read_rows(paths.CHECKS / "conflicts.jsonl"))) == 4


def test_a_dominant_source_fails_its_gate() -> None:
    assert failed(check(CLEAN + from_source(intents(80, 2), "second"))) == {"largest_source"}


def test_the_order_of_the_rows_changes_no_byte() -> None:
    rows = with_backdoor(CLEAN, "cf", "refund", 6, 2)
    files = [paths.CHECKS_METRICS, *(paths.CHECKS / f"{name}.jsonl" for name in ("triggers", "tied", "conflicts"))]
    check(rows)
    before = [path.read_bytes() for path in files]
    check(rows[::-1])
    assert [path.read_bytes() for path in files] == before


def test_metrics_are_nested_numbers() -> None:
    def numbers(node: Any) -> bool:
        return all(map(numbers, node.values())) if isinstance(node, dict) else isinstance(node, int | float)

    found = check(CLEAN)
    assert all(numbers(found[key]) for key in ("rows", "sources", "triggers", "conflicts"))
    json.dumps(found, allow_nan=False)


def test_no_rows() -> None:
    write_records(paths.SPLIT_TRAIN, [])
    with pytest.raises(UserError, match="has no rows"):
        main()
