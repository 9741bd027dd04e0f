"""A week on the sample: a new intent is served, seen as drift, collected, annotated, appended, locked in part, learnt.

The whole loop, with training, gates and two releases, is tests/pipeline/test_weekly_loop.py.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from project import ROOT
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from stages.cli import main as tunetrail
from stages.core import paths
from stages.core.errors import run
from stages.core.yaml_reader import load_yaml
from stages.measure.review.annotate import Session
from stages.params.loader import load_params
from stages.prepare.clean.__main__ import main as clean
from stages.prepare.dedup.__main__ import main as dedup
from stages.prepare.split.__main__ import main as split
from stages.records.record import Record, read_records

INBOX = Path("data/inbox/2026-48.jsonl")


def week(**given: Any) -> dict[str, str]:
    """The log, and the right answer by prompt."""
    spec = importlib.util.spec_from_file_location("traffic", ROOT / "examples/weekly/traffic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = list(module.traffic(**given))
    Path("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {line["request"]["messages"][0]["content"]: line["truth"] for line in lines}


def code(*words: str) -> int:
    try:
        tunetrail(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def data_stages(*stages: Callable[[], None]) -> None:
    for stage in stages:
        run(stage)


def right(holdout: list[Record]) -> float:
    """Labels that a linear model of the present training rows gives right."""
    train = [row for row in read_records(paths.SPLIT_TRAIN) if row.label]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, max_iter=300))
    model.fit([row.prompt for row in train], [row.label for row in train])
    return float(model.score([row.prompt for row in holdout], [row.label for row in holdout]))


def test_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    values = load_yaml((ROOT / "params.yaml").read_bytes())
    Path("params.yaml").write_text(dumps_yaml(values))
    Path("dvc.yaml").touch()
    shutil.copytree(ROOT / "data/raw", "data/raw")
    shutil.copy(ROOT / "data/holdout.lock", "data/holdout.lock")
    schema = json.loads((ROOT / "data/schema.json").read_text())
    Path("data/schema.json").write_text(json.dumps(schema))
    data_stages(clean, dedup, split)
    locked = {row.id for row in read_records(paths.HOLDOUT)}

    truth = week(seed=1, rows=150, new=0.3)
    assert code("drift", "log.jsonl") == 1
    assert code("collect", "log.jsonl", "--week", "2026-48") == 0
    kept = [json.loads(line) for line in INBOX.read_text().splitlines()]
    assert kept
    assert {row["kept_because"][0] for row in kept} == {"thumb down"}

    # The contract learns the new word before people may write it.
    params = load_params("task")
    assert Session(INBOX, "anna", [], 0, params).save(0, truth[kept[0]["prompt"]], None, False)["problem"]
    schema["properties"]["intent"]["enum"].append("complaint")
    Path("data/schema.json").write_text(json.dumps(schema))
    anna = Session(INBOX, "anna", [], 0, params)
    for number, row in enumerate(list(anna.rows.values())):
        assert anna.save(number, truth[row["prompt"]], None, False) == {"problem": None}
    assert code("append", "data/inbox/2026-48/anna.jsonl") == 0
    said = capsys.readouterr().out
    assert f"{len(kept)} rows in data/raw/inbox-2026-48.jsonl: label complaint {len(kept)}; annotator anna" in said
    assert code("append", "data/inbox/2026-48/anna.jsonl") == 0  # again: nothing new
    assert "no row is new" in capsys.readouterr().out

    data_stages(clean, dedup)
    assert code("holdout", "draw", "--add", "inbox-2026-48") == 0
    before = read_records(paths.SPLIT_TRAIN)
    data_stages(split)
    holdout = read_records(paths.HOLDOUT)
    assert locked < {row.id for row in holdout}
    new = [row for row in holdout if row.id not in locked]
    assert {row.source for row in new} == {"inbox-2026-48"}
    assert {row.fields["annotator"] for row in new} == {"anna"}
    assert "complaint" not in {row.label for row in before}
    old = [row for row in holdout if row.id in locked and row.label]
    assert right(new) == 1.0  # before, no answer could be: the word was not among the labels
    assert right(old) > 0.95
