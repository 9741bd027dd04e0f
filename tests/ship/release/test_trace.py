"""The trail, on real git and real DVC: complete where git holds everything, broken by name where it does not."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scratch import Scratch
from trails import KEYS, MODEL, broken, head, second_run, trace, whole

from stages.core import paths
from stages.core.dvc_lock import parse_lock
from stages.core.files import file_digest, write_json

pytest_plugins = ["scratch_fixtures"]

ROOT = Path(__file__).parents[3]


def test_file_in_a_folder_leads_to_all_that_made_it(scratch: Scratch) -> None:
    trail = whole(scratch)
    content = (scratch.root / MODEL).read_bytes()
    assert set(trail) == KEYS
    assert trail["file"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert trail["file"]["md5"] == hashlib.md5(content).hexdigest()
    assert trail["file"]["bytes"] == len(content)
    assert trail["stage"]["name"] == "merge_quantize"
    assert trail["stage"]["within"] == "model.safetensors"
    assert trail["params"] == {
        "seed": 1,
        "model": {"source": "package:tiny==1", "sha256": "", "licence": "Apache-2.0"},
        "train": {"learning_rate": 0.001},
    }
    raw = hashlib.md5((scratch.root / "data/raw/a.jsonl").read_bytes()).hexdigest()
    assert trail["data"]["data/raw"]["files"] == {"a.jsonl": raw}
    assert trail["data"]["data/clean.jsonl"]["made_by"] == "clean"
    assert set(trail["code"]) == {"constraints.txt", "stages/clean", "stages/train"}
    assert trail["metrics"]["metrics/evaluate.json"]["values"]["adapter"]["exact_match"]["value"] == 0.97
    assert trail["base"]["source"] == "package:tiny==1"
    assert trail["base"]["md5"].endswith(".dir")
    assert trail["commit"]["sha"] == head(scratch)
    assert trail["commit"]["status"] == "recorded"


def test_the_run_of_a_tracker_is_named_for_what_it_trained(scratch: Scratch) -> None:
    outs = {out.path: out.md5 for _, out in parse_lock((scratch.root / "dvc.lock").read_bytes()).outs()}
    assert whole(scratch, "models/adapter")["tracked_run"] is None
    run = {"tracker": "mlflow", "run": "0123abc"}
    write_json(scratch.root / paths.TRACKED_RUNS, {outs["models/adapter"]: run, "of another adapter.dir": {}})
    assert whole(scratch, "models/release")["tracked_run"] == run
    assert whole(scratch, "models/base")["tracked_run"] is None
    assert "tracked  mlflow run 0123abc" in scratch.tunetrail("trace", "models/adapter").out


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("models/release/manifest.json", "manifest"),
        ("models/release/merged", "merge_quantize"),
        ("models/adapter", "train"),
        ("models/base/tokenizer.json", "base"),
        ("models/release/nf4/tokenizer.json", "merge_quantize"),
        ("data/split/holdout.jsonl", "split"),
        ("data/clean.jsonl", "clean"),
        ("metrics/evaluate.json", "evaluate"),
        ("models/release", "manifest"),
    ],
)
def test_every_kind_of_output_finds_its_stage(scratch_template: Scratch, name: str, stage: str) -> None:
    assert whole(scratch_template, name)["stage"]["name"] == stage


def test_text_shows_the_answer_first_and_no_environment(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    answer = scratch.tunetrail("trace", MODEL)
    assert answer.code == 0
    assert answer.out.splitlines()[:2] == [MODEL, "  trail    complete"]
    for part in (head(scratch), "train.learning_rate = 0.001", "stages/train", "metrics/gates.json"):
        assert part in answer.out
    assert "s3cret" not in answer.out


def test_needs_neither_dvc_nor_torch(scratch_template: Scratch) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop()); from stages.cli import main; main(sys.argv[1:]); "
        "sys.exit(str({'dvc', 'git', 'torch', 'transformers', 'numpy'} & set(sys.modules) or '') or 0)"
    )
    command = [sys.executable, "-P", "-c", code, "trace", MODEL, str(ROOT)]
    done = subprocess.run(command, cwd=scratch_template.root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_renamed_copy_elsewhere(scratch: Scratch, tmp_path: Path) -> None:
    copy = tmp_path / "served" / "weights.safetensors"
    copy.parent.mkdir()
    shutil.copy(scratch.root / MODEL, copy)
    trail = whole(scratch, str(copy))
    assert trail["file"]["path"] == str(copy)
    assert trail["stage"]["output"]["path"] == "models/release/nf4"


def test_called_from_a_folder_below_the_root(scratch: Scratch) -> None:
    _, trail = trace(scratch, "../nf4/model.safetensors", cwd=scratch.root / "models/release/merged")
    assert trail["file"]["path"] == MODEL
    assert trail["file"]["trail"]["complete"]


def test_outside_any_repository(scratch: Scratch, tmp_path: Path) -> None:
    answer = scratch.tunetrail("trace", "x", cwd=tmp_path)
    assert answer.code == 2
    assert "no dvc.yaml" in answer.err


def test_root_may_lie_below_the_top_of_git(scratch: Scratch, tmp_path: Path) -> None:
    top = tmp_path / "mono"
    shutil.move(scratch.root, top / "project")
    (top / "project/.git").rename(top / ".git")
    inner = Scratch(top / "project")
    inner.commit("Move")
    shutil.rmtree(inner.root / ".dvc")
    inner.dvc("init", "--subdir")
    assert whole(inner)["commit"]["subject"] == "Move"


@pytest.mark.parametrize("name", [MODEL, "models/adapter/adapter.safetensors", "models/base", "data/split/train.jsonl"])
def test_cache_wiped(scratch: Scratch, name: str) -> None:
    scratch.forget_cache()
    assert whole(scratch, name)["commit"]["sha"] == head(scratch)


def test_cache_wiped_and_copy_elsewhere_is_proved_by_the_manifest(scratch: Scratch, tmp_path: Path) -> None:
    shutil.copytree(scratch.root / "models/release", tmp_path / "served")
    for name in ("models", ".dvc/cache"):
        shutil.rmtree(scratch.root / name)
    for name, place in (
        ("nf4/model.safetensors", MODEL),
        ("merged/tokenizer.json", "models/release/merged/tokenizer.json"),
    ):
        _, trail = trace(scratch, str(tmp_path / "served" / name))
        (lost,) = trail["file"]["trail"]["broken"]
        assert "can no longer be brought back" in lost
        stage = trail["stage"]
        assert f"{stage['output']['path']}/{stage['within']}" == place


def test_forged_manifest_proves_nothing(scratch: Scratch, tmp_path: Path) -> None:
    forged = tmp_path / "model.safetensors"
    forged.write_text("forged")
    manifest = json.loads((scratch.root / "models/release/manifest.json").read_text())
    manifest["files"]["nf4/model.safetensors"]["md5"] = hashlib.md5(b"forged").hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    scratch.forget_cache()
    assert "no stage wrote it" in broken(scratch, str(forged))


def test_manifest_that_contradicts_the_folder_breaks_the_trail(scratch: Scratch, tmp_path: Path) -> None:
    scratch.forget_cache()
    copy = tmp_path / "model.safetensors"
    shutil.copy(scratch.root / MODEL, copy)
    text = (scratch.root / "dvc.lock").read_text()
    folder = whole(scratch)["stage"]["output"]["md5"]
    scratch.write("dvc.lock", text.replace(folder, "0" * 32 + ".dir"))
    scratch.git("checkout", "--quiet", "--orphan", "forged")
    scratch.commit("Forged")
    scratch.git("branch", "-D", "main")
    assert "no stage wrote it" in broken(scratch, str(copy))


def test_unknown_hash(scratch: Scratch, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.safetensors"
    stranger.write_text("?")
    code, trail = trace(scratch, str(stranger))
    assert code == 1
    assert set(trail) == KEYS
    assert trail["stage"] is None
    assert trail["commit"]["status"] == "unknown"
    assert "none of the 1 versions of dvc.lock" in trail["file"]["trail"]["broken"][0]


def test_changed_file_in_its_place_names_the_output(scratch: Scratch) -> None:
    (scratch.root / MODEL).unlink()
    scratch.write(MODEL, "changed")
    assert "dvc.lock names other bytes for models/release/nf4" in broken(scratch)


def forget_object(scratch: Scratch, name: str) -> None:
    """Delete a file's bytes from git, as a damaged or partial clone lacks them."""
    object_id = scratch.git("rev-parse", f"HEAD:{name}")
    (scratch.root / ".git/objects" / object_id[:2] / object_id[2:]).unlink()


@pytest.mark.parametrize("content", ["LOOP = 2\n", ""])
def test_bytes_that_git_has_lost_are_missing_not_empty(scratch: Scratch, content: str) -> None:
    scratch.write("stages/train/loop.py", content)
    scratch.write("stages/train/step.py", "STEP = 1\n")
    second_run(scratch)
    whole(scratch)
    forget_object(scratch, "stages/train/loop.py")
    lost = f"which stage train read, is not in commit {head(scratch)[:10]}: it cannot be restored"
    assert broken(scratch) == f"stages/train/loop.py, {lost}"
    forget_object(scratch, "stages/train/step.py")
    assert broken(scratch) == f"stages/train, {lost}"


def test_a_link_in_git_is_the_file_that_it_leads_to(scratch: Scratch) -> None:
    """As DVC hashed it; one that leads to another link, out of the repository or nowhere is no trap."""
    scratch.write("shared/step.py", "STEP = 1\n")
    for name, to in {"step.py": "near.py", "near.py": "../../shared/step.py"}.items():
        (scratch.root / "stages/train" / name).symlink_to(to)
    for name, to in {"a": "b", "b": "a", "out": "../../..", "nowhere": "x/../y"}.items():
        (scratch.root / "shared" / name).symlink_to(to)
    second_run(scratch)
    code = whole(scratch)["code"]["stages/train"]
    assert code["files"]["step.py"] == file_digest(scratch.root / "shared/step.py", "md5")
    scratch.write("shared/step.py", "STEP = 2\n")
    scratch.commit("Changed behind the link")
    assert "stages/train/step.py" in broken(scratch)


def test_missing_file_and_unknown_tag(scratch: Scratch) -> None:
    answer = scratch.tunetrail("trace", "models/none.bin")
    assert answer.code == 2
    assert "no such file" in answer.err


def test_not_committed_yet(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    code, trail = trace(scratch, MODEL)
    assert code == 1
    assert trail["commit"] == {"sha": None, "status": "not committed yet", "tags": []}
    assert [s for s in trail["file"]["trail"]["broken"] if not s.startswith("not committed yet")] == []
    assert trail["params"]["train"]["learning_rate"] == 0.002
    assert "not committed yet" in scratch.tunetrail("trace", MODEL).out
    assert whole(scratch, "models/base")["commit"]["sha"] == head(scratch)


def test_not_committed_in_a_repository_without_commits(scratch: Scratch) -> None:
    shutil.rmtree(scratch.root / ".git")
    scratch.git("init", "--quiet")
    assert "not committed yet" in broken(scratch)


def test_no_git_at_all(scratch: Scratch) -> None:
    shutil.rmtree(scratch.root / ".git")
    answer = scratch.tunetrail("trace", MODEL)
    assert answer.code == 2
    assert "not a git repository" in answer.err
