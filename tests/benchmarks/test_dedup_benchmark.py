import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rapidfuzz import fuzz

from benchmarks.prompts import EDITS, LONGEST, MEDIAN, SHORTEST, make_prompts

ROOT = Path(__file__).parents[2]


def test_prompts_have_the_lengths_and_the_near_duplicates_that_they_say() -> None:
    texts, planted = make_prompts(1500)
    assert (texts, planted) == make_prompts(1500)
    assert make_prompts(1500, seed=18).texts != texts
    assert len(set(texts)) == 1500
    assert abs(statistics.median(map(len, texts)) - MEDIAN) < 15
    assert SHORTEST * 0.9 < min(map(len, texts)) <= max(map(len, texts)) < LONGEST * 1.1
    assert 100 < len(planted) < 200
    lowest = 100 - 100 * EDITS[1] - 1
    assert all(fuzz.ratio(texts[left], texts[right]) > lowest for left, right in planted if len(texts[left]) > 40)


def test_the_table_names_what_ran_and_what_is_absent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.dedup", "--rows", "150", "--only", "ours", "rapidfuzz", "semhash"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "--output", tmp_path / "dedup"], cwd=ROOT, env=environment, check=True)
    rows = {row["contender"]: row for row in json.loads((tmp_path / "dedup.json").read_text())["rows"]}
    assert rows["ours"]["recall"] == rows["ours"]["precision"] == rows["rapidfuzz"]["recall"] == 1
    assert rows["ours"]["planted_recall"] == 1
    assert rows["semhash"]["note"].startswith("absent: ")
    table, where = (tmp_path / "dedup.md").read_text().split("## Where the time goes")
    assert table.count("| 150 generated |") == 3
    assert "| 150 generated |" in where
