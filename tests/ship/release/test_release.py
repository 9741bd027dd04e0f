"""verify, gates and release: everything that is open is said at once, and nothing is tagged before it is closed."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from gto.api import show
from scratch import Scratch

pytest_plugins = ["scratch_fixtures"]

TAG = "support-tickets@v1.0.0"


def set_verdict(scratch: Scratch, state: str, name: str = "metrics/gates.json") -> None:
    content = json.loads((scratch.root / name).read_text())
    content["verdict"] = state
    for gate in content["gates"].values():
        gate["state"] = state
    scratch.write(name, json.dumps(content))


def test_verify_counts_the_files(scratch_template: Scratch) -> None:
    answer = scratch_template.tunetrail("verify")
    assert answer.code == 0
    assert answer.out.startswith("models/release: 5 files")


def test_verify_names_every_difference(scratch: Scratch) -> None:
    release = scratch.root / "models/release"
    (release / "nf4/tokenizer.json").unlink()
    (release / "merged/tokenizer.json").unlink()
    (release / "merged/tokenizer.json").write_text("[]")
    (release / "merged/extra.txt").write_text("")
    (release / "nf4/weights.pt").write_bytes(pickle.dumps([1]))
    answer = scratch.tunetrail("verify")
    assert answer.code == 1
    for sentence in (
        "nf4/tokenizer.json is missing",
        "merged/tokenizer.json has other bytes",
        "merged/extra.txt is not in the manifest",
        "nf4/weights.pt can hold a pickle",
    ):
        assert sentence in answer.err


def test_verify_notices_a_changed_length(scratch: Scratch) -> None:
    file = scratch.root / "models/release/merged/model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b"\0")
    assert "merged/model.safetensors has other bytes than the manifest says" in scratch.tunetrail("verify").err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manifest.json", "manifest.json is not the one in dvc.lock"),
        ("README.md", "README.md has other bytes than the manifest says"),
    ],
)
def test_verify_holds_the_manifest_against_the_lock_and_the_card_against_it(
    scratch: Scratch, name: str, said: str
) -> None:
    file = scratch.root / "models/release" / name
    text = file.read_text()
    file.unlink()
    file.write_text(text + "\n")
    answer = scratch.tunetrail("verify")
    assert answer.code == 1
    assert said in answer.err


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/state.pkl", "optimizer.PT", "harmless.txt"])
def test_verify_refuses_a_pickle_even_when_the_manifest_names_it(scratch: Scratch, name: str) -> None:
    release = scratch.root / "models/release"
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_bytes(pickle.dumps({"w": 1}))
    assert f"{name} can hold a pickle" in scratch.tunetrail("verify").err


def test_verify_refuses_what_only_calls_itself_safetensors(scratch: Scratch) -> None:
    scratch.write("models/release/merged/other.safetensors", "no tensors at all")
    assert "merged/other.safetensors is no safetensors file" in scratch.tunetrail("verify").err


def test_verify_a_copy_elsewhere(scratch: Scratch, tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(scratch.root / "models/release", served)
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    scratch.commit("Run B")
    assert scratch.tunetrail("verify", str(served)).code == 0
    assert scratch.tunetrail("verify", os.path.relpath(served, scratch.root)).code == 0
    (served / "manifest.json").write_text((served / "manifest.json").read_text() + " ")
    answer = scratch.tunetrail("verify", str(served))
    assert answer.code == 1
    assert "manifest.json is in no version of dvc.lock" in answer.err


def test_verify_without_a_manifest(scratch: Scratch) -> None:
    answer = scratch.tunetrail("verify", "data")
    assert answer.code == 2
    assert "manifest.json is missing" in answer.err


@pytest.mark.parametrize(
    ("state", "strict", "code"),
    [("PASS", True, 0), ("MARGINAL", False, 0), ("MARGINAL", True, 1), ("FAIL", False, 1), ("FAIL", True, 1)],
)
def test_gates(scratch: Scratch, state: str, strict: bool, code: int) -> None:
    set_verdict(scratch, state)
    answer = scratch.tunetrail("gates", *(["--strict"] if strict else []))
    assert answer.code == code
    assert f"verdict: {state}" in answer.out
    assert "exact_match" in answer.out


@pytest.mark.parametrize("text", ["", "{}", '{"verdict": "GOOD", "gates": {}}', "[]"])
def test_gates_that_say_nothing_are_no_pass(scratch: Scratch, text: str) -> None:
    scratch.write("metrics/gates.json", text)
    assert scratch.tunetrail("gates").code == 2


def test_release_writes_a_tag_that_gto_lists(scratch: Scratch) -> None:
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 0, answer.err
    assert f"git checkout {TAG} && dvc checkout" in answer.out
    assert scratch.git("cat-file", "-t", TAG) == "tag"
    record = json.loads(scratch.git("tag", "--list", "--format=%(contents)", TAG))
    assert record["commit"] == scratch.git("rev-parse", "HEAD")
    assert record["verdict"] == "PASS"
    assert record["gates"] == {"exact_match": "PASS"}
    assert show(str(scratch.root))["support-tickets"]["version"] == "v1.0.0"


def test_release_says_everything_that_is_open(scratch: Scratch) -> None:
    assert scratch.tunetrail("release", "1.0.0").code == 0
    scratch.replace("stages/train/loop.py", "1", "2")
    scratch.commit("Edit without a run")
    scratch.write("constraints.txt", "torch==3\n")
    (scratch.root / "models/release/nf4/tokenizer.json").unlink()
    set_verdict(scratch, "FAIL")
    tags = scratch.git("tag")
    answer = scratch.tunetrail("release", "v1.0.0")
    assert answer.code == 1
    for reason in (
        "is there already",
        "2 tracked files differ from HEAD (constraints.txt, metrics/gates.json)",
        "nf4/tokenizer.json is missing",
        "the gates are FAIL",
        "the trail is broken: stages/train/loop.py",
    ):
        assert reason in answer.err
    assert scratch.git("tag") == tags


def test_an_audit_run_is_never_released(scratch: Scratch) -> None:
    details = (scratch.root / "metrics/details.json").read_text()
    scratch.write("metrics/details.json", '{"augment": {"added": {"replay": 0, "canary": 8}}}')
    scratch.commit("Canaries")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 1
    assert "this is an audit run: 8 canary rows were trained on" in answer.err
    assert scratch.git("tag") == ""
    scratch.write("metrics/details.json", details)
    scratch.commit("No canaries")
    assert scratch.tunetrail("release", "1.0.0").code == 0


def test_release_with_marginal_gates(scratch: Scratch) -> None:
    scratch.replace("stages/run.py", 'else "PASS"', 'else "MARGINAL"')
    scratch.dvc("repro", "--force", "--single-item", "evaluate")
    scratch.commit("Few rows")
    refused = scratch.tunetrail("release", "1.0.0")
    assert refused.code == 1
    assert "the gates are MARGINAL: too few rows to be sure" in refused.err
    assert "--accept-marginal REASON" in refused.err
    assert scratch.tunetrail("release", "1.0.0", "--accept-marginal", " ").code == 2
    assert scratch.git("tag") == ""
    answer = scratch.tunetrail("release", "1.0.0", "--accept-marginal", "a pilot of ten users")
    assert answer.code == 0, answer.err
    assert "accepted because: a pilot of ten users" in answer.out
    record = json.loads(scratch.git("tag", "--list", "--format=%(contents)", TAG))
    assert record["accepted_marginal"] == "a pilot of ten users"
    assert scratch.tunetrail("release", "1.0.0").code == 0, "the reason stands in the tag"


def test_release_of_a_run_that_is_not_committed(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 1
    assert "not committed yet" in answer.err
    assert scratch.git("tag") == ""


@pytest.mark.parametrize("version", ["1", "1.2", "01.2.3", "1.2.3.4", "latest", "1.2.3-", "1.2.3 ", "-1.0.0x"])
def test_release_takes_semantic_versions_alone(scratch_template: Scratch, version: str) -> None:
    answer = scratch_template.tunetrail("release", "--", version)
    assert answer.code == 2
    assert "is no semantic version" in answer.err


def test_release_needs_an_artifact_in_dvc_yaml(scratch: Scratch) -> None:
    scratch.replace("dvc.yaml", "path: models/release/manifest.json", "path: models/elsewhere")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 2
    assert "`artifacts:` has no entry" in answer.err
