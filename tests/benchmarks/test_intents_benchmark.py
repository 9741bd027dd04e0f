"""The benchmark of intents, from rows to its table: here with a tiny model and few labels."""

import json
from pathlib import Path

import pytest
from tiny_model import save_tiny_model

from benchmarks import intents

TINY = {
    "train": {"rank": 4, "alpha": 8, "epochs": 1, "max_tokens": 400, "layers_to_transform": None},
    "generation": {"max_new_tokens": 4},
    "split": {"validation_share": 0.1},
}
MODELS = ["linear", "completion, enforce: none", "completion, enforce: labels", "label"]


def test_the_table_has_each_model_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "snips").mkdir()
    (tmp_path / "snips" / "train.jsonl").write_text("", encoding="utf-8")
    for name, value in (("GENERATED_LABELS", 4), ("TEST_ROWS", 2), ("RESULTS", tmp_path / "results")):
        monkeypatch.setattr(intents, name, value)
    monkeypatch.setattr(intents, "SETS", {"tiny": ("generated", 8, 1)})
    monkeypatch.chdir(tmp_path)  # and back: the benchmark works in its projects
    base = save_tiny_model(tmp_path / "base")
    monkeypatch.setattr("sys.argv", ["intents.py", "--base", str(base), "--snips", str(tmp_path / "snips")])
    intents.main(TINY)
    text = (tmp_path / "results" / "intents.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| tiny")]
    assert [row[3] for row in rows] == MODELS
    assert {tuple(row[:2]) for row in rows} == {("tiny", "4")}
    assert len({row[2] for row in rows}) == 1
    assert all(row[4].split(" of ")[1].startswith("8:") for row in rows), rows
    assert rows[0][6:8] == ["0", "0"]


def test_rows_are_as_many_as_asked_for_and_none_is_near_another() -> None:
    train, test = intents.draw_rows(intents.generated(), intents.GENERATED_LABELS, 5)
    assert len({row["label"] for row in train}) >= 95
    assert len(train) == 5 * len({row["label"] for row in train})
    assert len(test) == intents.TEST_ROWS * len({row["label"] for row in test})
    assert draw_again() == draw_again()


def draw_again() -> list[dict[str, str]]:
    return intents.draw_rows(intents.generated(), intents.GENERATED_LABELS, 5)[0][:50]


def test_snips_rows_have_an_intent_and_its_slots(tmp_path: Path) -> None:
    slots = {"artist": "a", "track": "b"}
    row = {"prompt": "x", "completion": json.dumps({"intent": "Play", "slots": slots}), "label": "Play"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert list(intents.snips(tmp_path)) == [("Play: artist, track", "x")]
