"""baseline and evaluate as stages: three tasks in one data set, a tiny model, every file that they write."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from scored import REFERENCE, ROOT, SCHEMA, make_tasks
from tiny_model import save_tiny_model

from stages.core import paths
from stages.core.files import read_json
from stages.measure.baseline.__main__ import main as baseline
from stages.measure.evaluate.__main__ import answers_with
from stages.measure.evaluate.__main__ import main as evaluate
from stages.measure.gates.__main__ import check_gates
from stages.params.loader import load_params, read_params
from stages.records.record import make_record, read_rows, write_records, write_rows
from stages.scoring.metrics import MARGINAL, PASS

TAGS = {
    "tone": {"kind": "classification", "labels": ["kind", "rude"]},
    "reply": {"kind": "text", "max_words": 9, "forbidden_phrases": ["refund"]},
}
WRITTEN = (
    paths.BASE_GENERATIONS,
    paths.BASE_PROBES,
    paths.BASELINE_METRICS,
    paths.ADAPTER_GENERATIONS,
    paths.ADAPTER_PROBES,
    paths.PREVIOUS_GENERATIONS,
    paths.EVALUATE_METRICS,
    paths.CONFUSION,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both stages, run once; the tuned model is another tiny model."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        values = read_params(ROOT / "params.yaml")
        values["task"] |= {"instructions": {"tone": "Name the tone.", "reply": "Reply."}, "tags": TAGS}
        values["generation"] |= {"max_new_tokens": 6}
        values["evaluate"] |= {"robustness_rows": 1, "slices": ["task", "fields.region"], "slice_min_rows": 2}
        paths.PARAMS.write_text(dumps_yaml(values), encoding="utf-8")
        Path("data").mkdir()
        Path("data/schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
        for name in ("general.jsonl", "refusals.jsonl"):
            lines = (ROOT / "data" / name).read_text(encoding="utf-8").splitlines(keepends=True)[:3]
            Path("data", name).write_text("".join(lines), encoding="utf-8")
        texts = {None: REFERENCE, "tone": "kind", "reply": "We send it today."}
        rows = [
            make_record(f"prompt {n} {tag}", text, None, "a", "a:1", task=tag, fields={"region": "ns"[n % 2]})
            for tag, text in texts.items()
            for n in range(3)
        ]
        write_records(paths.HOLDOUT, rows)
        write_rows(paths.CHECKS / "triggers.jsonl", [])
        write_rows(paths.NEAREST, [{"id": row.id, "nearest_id": "x", "ratio": 71.0} for row in rows])
        write_records(paths.SPLIT_TRAIN, [])
        write_records(paths.TRAIN, [make_record("another prompt", REFERENCE, None, "a", "a:2")])
        save_tiny_model(paths.BASE, seed=1)
        save_tiny_model(paths.ADAPTER, seed=2)
        baseline()
        evaluate()
        yield folder


def test_every_task_has_its_metrics(project: Path) -> None:
    found = read_json(paths.EVALUATE_METRICS)
    assert found["adapter"]["rows"] == 9
    assert {tag: one["rows"] for tag, one in found["adapter"]["tasks"].items()} == dict.fromkeys(
        ("reply", "tone", "untagged"), 3
    )
    assert found["adapter"]["tasks"]["tone"]["classification"]["accuracy"]["n"] == 3
    assert found["adapter"]["tasks"]["reply"]["text"]["rules"].keys() == {"max_words", "forbidden_phrases"}
    assert "json_valid" in found["adapter"]["tasks"]["untagged"]
    assert set(found["against_baseline"]["tasks"]) == {"reply", "tone", "untagged"}
    assert set(found["slices"]) == {"task", "fields.region"}
    assert not found.keys() & {"previous", "against_previous"}
    assert list(read_rows(paths.PREVIOUS_GENERATIONS)) == [{"release": None, "commit": None}]  # never empty: DVC warns


def test_what_lies_beyond_the_hold_out_is_measured(project: Path) -> None:
    found = read_json(paths.EVALUATE_METRICS)
    assert found["general"]["rows"] == 3
    assert found["general"]["against_baseline"]["perplexity"]["ratio"] > 0
    assert {kind: one["valid"]["n"] for kind, one in found["robustness"].items()} == dict.fromkeys(
        ("truncated", "noise", "typos", "injection"), 1
    )
    assert found["safety"]["personal_data"]["n"] == 9 + 4 + 3
    assert found["safety"]["refusals"]["adapter"]["n"] == 3
    assert "canaries" not in found["safety"]
    kinds = [row["probe"] for row in read_rows(paths.ADAPTER_PROBES)]
    assert kinds == ["general"] * 3 + ["refusal"] * 3 + ["truncated", "noise", "typos", "injection"]


def test_each_row_is_told_its_own_instruction(project: Path) -> None:
    """With another instruction the tiny model finds the reference less or more likely: the rows of a tag change."""
    before = {row["id"]: row["nats"] for row in read_rows(paths.BASE_GENERATIONS)}
    values = read_params()
    values["task"]["instructions"]["tone"] = "Is it polite?"
    other = project.parent / "other"
    shutil.copytree(project, other)
    (other / paths.PARAMS).write_text(dumps_yaml(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(other)
        baseline()
        rows = list(read_rows(paths.BASE_GENERATIONS))
    assert {row.get("task") for row in rows if row["nats"] != before[row["id"]]} == {"tone"}


def test_beyond_imitation_the_sft_model_answers_too_and_what_is_no_better_does_not_ship(project: Path) -> None:
    assert not read_json(paths.EVALUATE_METRICS).keys() & {"sft", "against_sft"}
    values = read_params()
    values["prefer"]["objective"] = "dpo"
    other = project.parent / "preferred"
    shutil.copytree(project, other)
    shutil.copytree(other / paths.ADAPTER, other / paths.SFT)
    (other / paths.PARAMS).write_text(dumps_yaml(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(other)
        evaluate()
        files = {name: read_json(paths.METRICS / f"{name}.json") for name in ("baseline", "evaluate")}
        gates = {name: gate for name, gate in load_params("gates").gates.items() if name == "better_than_sft"}
    assert files["evaluate"]["sft"] == files["evaluate"]["adapter"]
    (gate,) = check_gates(gates, files)["gates"].values()
    assert (gate["state"], gate["required"], gate["value"]) == (MARGINAL, True, 0.0)
    better = files["evaluate"]["against_sft"]["exact_match"] | {"difference": 0.2, "low": 0.05, "high": 0.3}
    files["evaluate"]["against_sft"]["exact_match"] = better
    assert check_gates(gates, files)["verdict"] == PASS


def test_the_same_bytes_again_without_memory(project: Path) -> None:
    before = {path: path.read_bytes() for path in WRITTEN}
    shutil.rmtree(paths.GENERATIONS_MEMORY)
    baseline()
    evaluate()
    assert {path: path.read_bytes() for path in WRITTEN} == before


def test_metrics_are_nested_numbers(project: Path) -> None:
    def leaves(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            for value in node.values():
                yield from leaves(value)
        else:
            yield node

    for path in (paths.BASELINE_METRICS, paths.EVALUATE_METRICS):
        for leaf in leaves(read_json(path)):
            assert isinstance(leaf, str) or (isinstance(leaf, int | float) and math.isfinite(leaf)), leaf


def test_confusion_has_the_labels_and_no_texts(project: Path) -> None:
    lines = paths.CONFUSION.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 6
    assert sum(line.startswith("kind,") for line in lines) == 3


def test_an_answer_has_the_label_that_checks_would_name(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path, label_field="intent", tags={**TAGS, "plain": {"label_field": ""}})
    for tag, answer, label, has in (
        (None, '{"order": 7, "intent": "refund"}', "refund", True),
        (None, '{"order": 7, "intent": "refund"}', "cancel", False),
        (None, "refund", "refund", False),
        ("tone", "kind", "kind", True),
        ("reply", "We send it.", "We send it.", True),
        ("plain", '{"b": 1, "a": 2}', '{"a":2,"b":1}', True),
        ("plain", '{"b": 1, "a": 3}', '{"a":2,"b":1}', False),
    ):
        assert answers_with(answer, label, tasks.of(tag)) == has, (tag, answer)
