"""The benchmark of generation runs, on a tiny model, and finds the same texts."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from tiny_model import save_tiny_model

ROOT = Path(__file__).parents[2]


def test_the_benchmark_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pairs = save_tiny_model(tmp_path / "model"), tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in range(1, 21)))
    options = ["--model", str(model), "--pairs", str(pairs), "--rows", "20", "--slow-rows", "4", "--limit", "6"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generation.py", *options])
    runpy.run_path(str(ROOT / "benchmarks" / "generation.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "same text: 4 of 4 one by one" in told
    assert "same: True" in told
