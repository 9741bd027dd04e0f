"""The near-duplicate join runs once over all prompts in a run of the data stages."""

import json
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml

from stages.core import paths
from stages.near_duplicates import pairs
from stages.params.loader import read_params
from stages.prepare.augment.__main__ import main as augment
from stages.prepare.checks.__main__ import main as checks
from stages.prepare.dedup.__main__ import main as dedup
from stages.prepare.split.__main__ import main as split
from stages.prepare.split.draw import draw
from stages.records.record import make_record, write_records

ROOT = Path(__file__).parents[2]
INTENTS = ("refund", "tracking", "cancel")


@pytest.fixture
def joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the two sides of each join, in a project of ninety rows, some of them alike."""
    monkeypatch.chdir(tmp_path)
    params = read_params(ROOT / "params.yaml")
    params["split"] |= {"cross_validation": 3, "validation_share": 0.2}
    params["augment"] |= {"malformed_every": 10, "replay_share": 0.1}
    paths.PARAMS.write_text(dumps_yaml(params), encoding="utf-8")
    Path("data").mkdir()
    for name in ("schema.json", "replay.jsonl"):
        (Path("data") / name).write_bytes((ROOT / "data" / name).read_bytes())
    rows = []
    for number in range(90):
        intent = INTENTS[number % 3]
        prompt = f"{intent} {(number // 2) * 7919**3:x} please" + "!" * (number % 2)
        completion = json.dumps({"intent": intent, "product": None, "order": str(number // 4), "urgent": False})
        rows.append(make_record(prompt, completion, intent, "raw.jsonl", f"raw.jsonl:{number}"))
    write_records(paths.CLEAN, rows)
    found: list[tuple[int, int]] = []
    join = pairs._join

    def counted(left: Any, right: Any, threshold: int) -> Any:
        found.append((len(left.texts), len(right.texts)))
        return join(left, right, threshold)

    monkeypatch.setattr(pairs, "_join", counted)
    return found


def test_prompts_are_joined_once_and_new_texts_once(joins: list[tuple[int, int]]) -> None:
    dedup()
    assert joins == [(90, 90)]
    draw(redraw=False)
    split()
    checks()
    assert joins == [(90, 90)], "split, folds, checks and the draw read what dedup found"
    augment()
    assert len(joins) == 2, "augment compares what it made with the rows that are held out"
    assert joins[1][0] < 40


@pytest.mark.usefixtures("joins")
def test_no_file_that_another_stage_depends_on_is_empty() -> None:
    dedup()
    assert paths.NEAR_PAIRS.stat().st_size
    draw(redraw=False)
    split()
    checks()
    assert list(paths.CHECKS.iterdir())


def test_promises_hold_under_python_without_asserts() -> None:
    """`python -O` removes every assert, so what guards a promise raises."""
    for folder in ("near_duplicates", "prepare/dedup", "prepare/split", "prepare/augment", "prepare/checks"):
        for file in sorted((ROOT / "stages" / folder).glob("*.py")):
            lines = file.read_text(encoding="utf-8").splitlines()
            assert not [line for line in lines if line.lstrip().startswith("assert ")], file
