"""The sample task: its generator writes the committed bytes, and they are what they claim to be."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from stages.text.json_schema import Schema
from stages.text.strict_json import parse_json

DATA = Path(__file__).parents[1] / "data"
GENERATED = ["raw/support_tickets.jsonl", "support_tickets_truth.json", "schema.json"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """The tickets that are rows, without the malformed lines."""
    truth = json.loads((DATA / "support_tickets_truth.json").read_text(encoding="utf-8"))
    malformed = {entry["line"] for entry in truth["dirt"] if entry["kind"] == "malformed"}
    lines = (DATA / "raw" / "support_tickets.jsonl").read_bytes().split(b"\n")[:-1]
    assert len(lines) == truth["rows"]
    return [json.loads(line) for number, line in enumerate(lines, start=1) if number not in malformed]


def test_the_generator_writes_the_committed_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", DATA / "generate_support_tickets.py", tmp_path], check=True)
    for name in GENERATED:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_every_completion_is_copied_from_its_prompt(rows: list[dict[str, str]]) -> None:
    schema = Schema(DATA / "schema.json")
    for row in rows:
        completion = parse_json(row["completion"])
        assert schema.problem(completion) is None
        assert list(completion) == ["intent", "product", "order", "urgent"]
        assert row.get("label", completion["intent"]) == completion["intent"]
        for key in ("product", "order"):
            assert completion[key] is None or completion[key] in row["prompt"].replace("\xa0", " ")


def test_intents_are_balanced_and_labels_mostly_there(rows: list[dict[str, str]]) -> None:
    intents = Counter(json.loads(row["completion"])["intent"] for row in rows)
    assert len(intents) == 8
    assert max(intents.values()) - min(intents.values()) <= 12
    assert 0.9 < sum("label" in row for row in rows) / len(rows) < 1


def test_values_vary(rows: list[dict[str, str]]) -> None:
    completions = [json.loads(row["completion"]) for row in rows]
    assert len({completion["product"] for completion in completions}) == 13
    assert 0.25 < sum(completion["urgent"] for completion in completions) / len(rows) < 0.45
    assert 0.4 < sum(completion["order"] is not None for completion in completions) / len(rows) < 0.8


def test_general_rows_are_plain_pairs() -> None:
    rows = [json.loads(line) for line in (DATA / "replay.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 24
    assert all(set(row) == {"prompt", "completion"} and row["prompt"] and row["completion"] for row in rows)
