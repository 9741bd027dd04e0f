"""The documents of a release fit their standards, whatever texts they hold, and are the same from the same release."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as InTotoTestResult
from in_toto_attestation.v1.statement_pb2 import Statement
from release_example import make_gates, make_manifest
from scored import ROOT

from stages.core.files import read_json
from stages.ship.manifest import documents
from stages.ship.manifest.documents import bill_of_materials

SCHEMA = read_json(ROOT / "stages/ship/manifest/manifest.schema.json")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
BOMS = JsonStrictValidator(SchemaVersion.V1_6)


def faults(manifest: Any) -> list[str]:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest)]


def test_the_manifest_fits_its_published_schema() -> None:
    assert faults(make_manifest("a")) == []


@pytest.mark.parametrize("key", ["files", "engine", "decoding", "metrics", "confidence"])
def test_a_format_without_what_it_was_judged_by_does_not(key: str) -> None:
    manifest = make_manifest("a")
    del manifest["formats"]["gguf"][key]
    assert faults(manifest) == [f"'{key}' is a required property"]


def test_another_format_version_does_not() -> None:
    assert faults({**make_manifest("a"), "format": 1}) == ["2 was expected"]


def test_a_format_names_its_files_engine_decoding_and_every_score_with_an_interval() -> None:
    found = make_manifest("a")["formats"]
    assert found["gguf"]["files"] == {"gguf/Q8_0.gguf": "1" * 64, "gguf/Q4_0.gguf": "1" * 64}
    assert (found["gguf"]["engine"], found["int8"]["engine"]) == ("llama.cpp", "transformers")
    assert found["gguf"]["decoding"]["enforce"] == "schema"
    assert found["int8"]["decoding"]["temperature"] == 0
    assert set(found["int8"]["metrics"]) == {"exact_match", "valid", "perplexity"}


@settings(max_examples=25)
@given(TEXTS, st.sampled_from(["MIT", "Gemma terms of use", "MIT OR Apache-2.0", "<b>"]))
@example("../a b/\u202e\n#", "MIT")
def test_the_bill_of_materials_fits_the_standard(text: str, licence: str) -> None:
    bom = bill_of_materials(make_manifest(text, licence))
    errors = list(BOMS.validate_str(json.dumps(bom), all_errors=True) or ())
    assert errors == []
    assert f"data/raw/{text}" in {component["name"] for component in bom["components"]}


def test_the_bill_of_materials_has_every_part_and_what_it_scored() -> None:
    bom = bill_of_materials(make_manifest("a"))
    parts = {component["bom-ref"]: component for component in bom["components"]}
    assert parts.keys() == {
        "base",
        "data:data/raw/a",
        "data:data/split/holdout.jsonl",
        "pypi:torch",
        "format:int8",
        "format:gguf",
    }
    assert [file["hashes"] for file in parts["format:gguf"]["components"]] == [
        [{"alg": "SHA-256", "content": "1" * 64}]
    ] * 2
    card = parts["format:int8"]["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"][0] == {
        "type": "exact_match",
        "value": "0.5",
        "slice": "hold-out",
        "confidenceInterval": {"lowerBound": "0.1", "upperBound": "0.9"},
    }
    tree = {row["ref"]: set(row.get("dependsOn", ())) for row in bom["dependencies"]}
    assert tree["release"] == {"format:int8", "format:gguf"}
    assert "base" in tree["format:gguf"]


def test_the_documents_are_the_same_from_the_same_release_and_others_from_another() -> None:
    def written(text: str) -> list[str]:
        manifest = make_manifest(text)
        made = (
            bill_of_materials(manifest),
            documents.provenance(manifest),
            documents.test_result(manifest, make_gates(text)),
        )
        return [json.dumps(one) for one in made]

    assert written("a") == written("a")
    assert json.loads(written("a")[0])["serialNumber"] != json.loads(written("b")[0])["serialNumber"]
    assert "timestamp" not in "".join(written("a"))


@settings(max_examples=25)
@given(TEXTS)
def test_the_attestations_have_the_form_of_their_standards(text: str) -> None:
    manifest = make_manifest(text)
    made = documents.provenance(manifest)
    ParseDict(made, Statement())  # raises on a key that the standard does not have
    found = ParseDict(made["predicate"], Provenance())
    assert made["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [(one["name"], one["digest"]["sha256"]) for one in made["subject"]] == [
        (name, row["sha256"]) for name, row in manifest["files"].items()
    ]
    materials = {one.name: one.digest["sha256"] for one in found.build_definition.resolved_dependencies}
    assert materials == {
        **dict.fromkeys(("models/base/a", f"data/raw/{text}", "data/split/holdout.jsonl"), "1" * 64),
        "stages/core/files.py": "3" * 64,
    }
    assert made["predicate"]["buildDefinition"]["externalParameters"]["params"]["task"]["instruction"] == text
    assert not found.run_details.HasField("metadata")  # no date


@given(TEXTS)
def test_the_test_result_sorts_the_gates_by_what_they_count_for(text: str) -> None:
    made = documents.test_result(make_manifest("a"), make_gates(text))
    ParseDict(made, Statement())
    found = ParseDict(made["predicate"], InTotoTestResult())
    assert made["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert found.result == "WARNED"
    assert list(found.passed_tests) == [f"{text}0", f"{text}1"]
    assert list(found.warned_tests) == [f"{text}2", f"{text}3"]
    assert list(found.failed_tests) == []
    assert found.configuration[0].digest["sha256"] == "1" * 64


def test_the_schema_is_packaged() -> None:
    assert '"stages.ship.manifest" = ["*.j2", "*.json"]' in Path(ROOT, "pyproject.toml").read_text(encoding="utf-8")
