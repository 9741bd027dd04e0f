"""The whole pipeline with train.head: label, from raw rows to a verdict, a manifest and a report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, commit, make_project, run, set_params, stage_outputs

from stages.core import paths
from stages.core.files import read_json
from stages.model.labels import labels_in
from stages.records.record import read_rows

LABELS = ["account", "invoice", "refund", "tracking"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project whose rows have their intent alone for a completion."""
    project = make_project(tmp_path_factory.mktemp("labels"))
    raw = project / "data" / "raw" / "tickets.jsonl"
    rows = [json.loads(line) for line in raw.read_text(encoding="utf-8").splitlines()[:-1]]
    lines = [json.dumps({**row, "completion": row["label"]}) for row in rows]
    raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
    set_params(
        project,
        {
            "task": {"kind": "classification", "labels": LABELS, "instruction": "Label."},
            "augment": {"replay_share": 0, "malformed_every": None, "structured_share": 0},
            "train": {"head": "label", "epochs": 4, "learning_rate": 1e-2, "early_stopping_patience": None},
            "quantize": {"formats": ["merged", "nf4", "int8", "lora"]},
            "gates": {"schema_valid": {"model": "adapter", "metric": "valid", "minimum": 0.95}},
        },
    )
    commit(project, "Labels")
    run(project, "dvc", "repro", "dedup")
    run(project, "tunetrail", "holdout", "draw")
    run(project, "dvc", "repro")
    return project


def test_it_comes_to_a_verdict_on_answers_that_are_labels(project: Path) -> None:
    gates: dict[str, Any] = read_json(project / paths.GATES)
    assert gates["verdict"] in ("PASS", "MARGINAL", "FAIL")
    forgetting = gates["gates"]["no_forgetting"]
    assert (forgetting["state"], "value" in forgetting) == ("PASS", False)
    assert forgetting["reason"] == "train.head is label: such a model answers nothing but labels"
    evaluate = read_json(project / paths.EVALUATE_METRICS)
    assert evaluate["adapter"]["valid"]["value"] == 1
    assert not {"general"} & evaluate.keys()
    assert "refusals" not in evaluate["safety"]
    rows = list(read_rows(project / paths.ADAPTER_GENERATIONS))
    assert {row["output"] for row in rows} <= set(LABELS)
    artefacts = read_json(project / paths.QUANTIZE_METRICS)["artefacts"]
    assert sorted(artefacts) == ["int8", "lora", "merged", "nf4"]
    for name in ("merged", "lora"):
        assert artefacts[name]["agreement"] == {"same": len(rows), "rows": len(rows)}
    assert {tuple(labels_in(project / paths.RELEASE / name)) for name in artefacts} == {tuple(LABELS)}


def test_manifest_and_card_say_what_it_is(project: Path) -> None:
    assert read_json(project / paths.MANIFEST)["params"]["train"]["head"] == "label"
    card = (project / paths.MODEL_CARD).read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card
    assert (project / "metrics" / "report.html").stat().st_size > 10_000


def test_twice_gives_the_same_bytes(project: Path) -> None:
    before = {stage: stage_outputs(project, stage) for stage in ("train", "evaluate")}
    shutil.rmtree(project / paths.GENERATIONS_MEMORY)
    run(project, "dvc", "repro", "--force", "--single-item", "train", "evaluate")
    assert {stage: stage_outputs(project, stage) for stage in before} == before


def test_what_needs_a_model_that_writes_says_so(project: Path) -> None:
    done = run(project, "tunetrail", "why", "where is my parcel", check=False)
    assert done.returncode == 2
    assert "asks a model that writes its answers, and train.head is label" in done.stderr


def test_the_example_is_sound_as_it_stands() -> None:
    from stages.params.loader import load_params

    assert load_params("train", path=ROOT / "examples/intents/params.yaml").train.head == "completion"
