"""The SNIPS recipes run through the pipeline's own stages; here with a tiny model and rows made up."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import save_tiny_model

from benchmarks import snips
from stages.records.record import read_records

ARTISTS = ["Oona Bram", "Tovi", "Pax Lindqvist", "Meru Sands", "Ansel Quay", "Ilse Hart", "Dov Reni", "Kit Marlow"]
SONGS = ["Glass Harbour", "Nine Lanterns", "Saltwater", "Old Signal", "Wren", "Copper Road", "Half Light", "Tideline"]


def rows(pairs: list[tuple[str, str]]) -> str:
    made = []
    for artist, song in pairs:
        answer = {"intent": "PlayMusic", "slots": {"track": song, "artist": artist}}
        row = {"prompt": f"put on {song}, {artist} sings it", "completion": json.dumps(answer), "label": "PlayMusic"}
        made.append(json.dumps(row))
    return "\n".join(made) + "\n"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    # Not every artist with every song, or exchanged values would give nothing new.
    pairs = [p for i, p in enumerate(itertools.product(ARTISTS, SONGS)) if (i + i // 8) % 2]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(rows([p for i, p in enumerate(pairs) if i % 8]), encoding="utf-8")
    (tmp_path / "data" / "validate.jsonl").write_text(rows(pairs[::8]), encoding="utf-8")
    base = save_tiny_model(tmp_path / "base")
    snips.prepare(tmp_path / "prepared", base, tmp_path / "data")
    return tmp_path / "prepared"


def test_a_recipe_trains_and_is_scored_on_both_sets(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = {"train.epochs": 1, "train.rank": 4, "generation.max_new_tokens": 4}
    found = snips.run(prepared, tmp_path / "one", small)
    held = {row.source for row in read_records(prepared / "data" / "split" / "holdout.jsonl")}
    assert held == {"validate.jsonl"}
    assert found["holdout"]["n"] == 4
    assert found["validation"]["n"] == len(read_records(prepared / "data" / "split" / "validation.jsonl")) > 0
    assert 0 <= found["validation"]["low"] <= found["validation"]["right"] <= found["validation"]["high"] * 100
    trained = read_records(Path.cwd() / "data" / "train.jsonl")
    assert found["rows"] == len(trained)
    assert any(row.source == "augment:value_swap" for row in trained)
    shown = (tmp_path / "one" / "models" / "base" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "replace(" in shown
    assert (prepared / "models" / "base" / "chat_template.jinja").read_text(encoding="utf-8") != shown


def test_every_recipe_changes_parameters_that_there_are(tmp_path: Path) -> None:
    for changes in snips.RECIPES.values():
        (tmp_path / "params.yaml").write_text(snips.SETTINGS.read_text(encoding="utf-8"), encoding="utf-8")
        snips.change(tmp_path, changes)
    with pytest.raises(AssertionError):
        snips.change(tmp_path, {"train.epoch": 2})
