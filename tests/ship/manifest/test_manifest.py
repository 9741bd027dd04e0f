import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from huggingface_hub import ModelCard
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as InTotoTestResult
from in_toto_attestation.v1.statement_pb2 import Statement
from project import ROOT
from stage_process import run_stage

from stages.core.dvc_lock import entry_hash
from stages.core.files import files_under, read_json
from stages.core.git import WorkingTree


@pytest.fixture
def workspace(pipeline: Path, tmp_path: Path) -> Path:
    shutil.copytree(pipeline, tmp_path / "project", ignore=shutil.ignore_patterns(".git", "cache"))
    return tmp_path / "project"


def manifest(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(workspace / "models" / "release" / "manifest.json")
    return found


def test_every_file_that_ships_is_hashed(pipeline: Path) -> None:
    release = pipeline / "models" / "release"
    shipped = {p.relative_to(release).as_posix() for p in files_under(release)} - {"manifest.json"}
    assert manifest(pipeline)["files"].keys() == shipped
    for name, expected in manifest(pipeline)["files"].items():
        content = (release / name).read_bytes()
        assert expected["sha256"] == hashlib.sha256(content).hexdigest()
        assert expected["md5"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert expected["bytes"] == len(content)


def test_the_manifest_fits_its_published_schema_and_says_what_each_format_was_judged_by(pipeline: Path) -> None:
    jsonschema.validate(manifest(pipeline), read_json(ROOT / "stages/ship/manifest/manifest.schema.json"))
    artefacts = read_json(pipeline / "metrics" / "quantize.json")["artefacts"]
    for name, found in manifest(pipeline)["formats"].items():
        assert found["files"].keys() == {file for file in manifest(pipeline)["files"] if file.startswith(f"{name}/")}
        assert found["metrics"]["exact_match"] == artefacts[name]["scores"]["exact_match"]
        assert (found["decoding"]["temperature"], found["decoding"]["max_new_tokens"]) == (0, 8)
    assert manifest(pipeline)["formats"].keys() == artefacts.keys()


def test_the_documents_of_the_release_fit_their_standards(pipeline: Path) -> None:
    release = pipeline / "models" / "release"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((release / "bom.cdx.json").read_text()) is None
    for name, predicate in (("provenance", Provenance()), ("test_result", InTotoTestResult())):
        made = read_json(release / f"{name}.intoto.json")
        ParseDict(made, Statement())
        ParseDict(made["predicate"], predicate)
        assert {one["name"] for one in made["subject"]} < manifest(pipeline)["files"].keys()
    assert ModelCard.load(release / "README.md").data.eval_results[0].metric_type == "exact_match"


def test_what_made_the_release_is_hashed_too(pipeline: Path) -> None:
    found = manifest(pipeline)
    made_of = {"raw/tickets.jsonl", "train.jsonl", "holdout.lock", "schema.json", "chat_template.jinja"}
    assert {f"data/{name}" for name in made_of} <= found["data"].keys()
    assert {"stages/tune/train/engine.py", "stages/prepare/clean/__main__.py", "constraints/model.txt"} <= found[
        "code"
    ].keys()
    assert {"metrics/evaluate.json", "metrics/quantize.json"} <= found["metrics"].keys()
    assert {"models/adapter/adapter_model.safetensors"} <= found["adapter"].keys()
    assert found["base"]["source"] == "path:../tiny-model"
    assert found["base"]["licence"] == "Apache-2.0"
    assert found["params"]["train"]["rank"] == 4
    for artefact in ("merged", "nf4", "int8"):
        shipped = found["files"][f"{artefact}/chat_template.jinja"]
        assert shipped == found["base"]["files"]["models/base/chat_template.jinja"]
    for name, digest in found["code"].items():
        assert digest == hashlib.sha256((pipeline / name).read_bytes()).hexdigest()


def test_the_manifest_says_nothing_of_time_or_place(pipeline: Path) -> None:
    text = json.dumps(manifest(pipeline))
    assert str(pipeline.parent) not in text
    assert str(Path.home()) not in text
    assert not {"date", "time", "commit", "host"} & manifest(pipeline).keys()


@pytest.mark.parametrize(
    ("changed", "output"),
    [
        ("data/train.jsonl", "data/train.jsonl"),
        ("stages/prepare/clean/text_files.py", "stages"),
        ("models/release/nf4/config.json", "models/release/nf4"),
    ],
)
def test_another_content_gives_another_manifest(workspace: Path, changed: str, output: str) -> None:
    before, lock = manifest(workspace), workspace / "dvc.lock"
    old = entry_hash(WorkingTree(workspace).md5s(output))
    with (workspace / changed).open("a", encoding="utf-8") as file:
        file.write("\n")
    new = entry_hash(WorkingTree(workspace).md5s(output))
    lock.write_text(lock.read_text().replace(str(old), str(new)))  # as if the stage before had written it
    code, text = run_stage(workspace, "manifest")
    assert code == 0, text
    assert manifest(workspace) != before


def test_the_model_card_has_the_measured_numbers(pipeline: Path) -> None:
    card = (pipeline / "models" / "release" / "README.md").read_text(encoding="utf-8")
    exact = read_json(pipeline / "metrics" / "quantize.json")["artefacts"]["int8"]["scores"]["exact_match"]["value"]
    assert "| int8 | `int8/` |" in card
    assert f"{exact:.1%}" in card
    assert "licence Apache-2.0" in card
    assert (ROOT / "LICENSE").is_file()
