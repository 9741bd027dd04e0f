"""Tasks, rows and scores for tests."""

import json
from pathlib import Path
from typing import Any

from stages.core.yaml_reader import load_yaml
from stages.params.loader import check_params
from stages.params.measure import Scoring
from stages.scoring.rows import RowScore
from stages.text.json_schema import Tasks

ROOT = Path(__file__).parents[1]
SCORING = Scoring(confidence=0.95, resamples=1000, seed=1)
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "cancel"]}, "order": {"type": ["integer", "null"]}},
    "required": ["intent", "order"],
    "additionalProperties": False,
}
REFERENCE = '{"intent": "refund", "order": 7}'


def make_tasks(folder: Path, schema: Any = None, **task: Any) -> Tasks:
    """Tasks with the parameters of the project, changed by `task`, and a schema of their own."""
    (folder / "schema.json").write_text(json.dumps(schema or SCHEMA), encoding="utf-8")
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["task"] |= {"schema_file": str(folder / "schema.json"), **task}
    return Tasks(check_params(params).task)


def generation(output: str, completion: str = REFERENCE, key: str = "a", **more: Any) -> dict[str, Any]:
    row = {"id": key, "prompt": "Money back for order 7", "completion": completion, "label": "refund"}
    return {**row, "output": output, "tokens": 12, "stopped": True, **more}


def make_score(key: str = "a", right: bool = True, **values: Any) -> RowScore:
    """A score of a json row; with everything else as a right answer has it."""
    known: dict[str, Any] = {
        "id": key,
        "task": None,
        "label": None,
        "kind": "json",
        "exact_match": right,
        "valid": True,
        "json_valid": True,
        "fields": {},
        "rules": {},
        "predicted": None,
        "reference": "yes",
        "output": "yes" if right else "no",
        "label_right": None,
        "tokens": 3,
        "nats": None,
        "reference_tokens": 0,
    }
    return RowScore(**{**known, **values})
