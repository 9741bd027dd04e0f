"""The trail, on real git and real DVC: complete where git holds everything, broken by name where it does not."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scratch import Answer, Scratch

pytest_plugins = ["scratch_fixtures"]

ROOT = Path(__file__).parents[2]
MODEL = "models/release/nf4/model.safetensors"
KEYS = {"file", "stage", "data", "params", "metrics", "base", "code", "commit"}


def trace(scratch: Scratch, name: str, cwd: Path | None = None) -> tuple[int, dict[str, Any]]:
    answer = scratch.tunetrail("trace", name, "--json", cwd=cwd)
    return answer.code, json.loads(answer.out)


def broken(scratch: Scratch, name: str = MODEL) -> str:
    """The sentences of a trail that must be broken."""
    code, trail = trace(scratch, name)
    assert code == 1
    assert trail["file"]["trail"]["complete"] is False
    return "\n".join(trail["file"]["trail"]["broken"])


def whole(scratch: Scratch, name: str = MODEL) -> dict[str, Any]:
    """The trail that must be complete."""
    code, trail = trace(scratch, name)
    assert trail["file"]["trail"]["broken"] == []
    assert code == 0
    return trail


def head(scratch: Scratch) -> str:
    return scratch.git("rev-parse", "HEAD")


def second_run(scratch: Scratch) -> str:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    return scratch.commit("Run B")


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
    for part in (head(scratch), "train.learning_rate = 0.001", "stages/train", "gates.exact_match: PASS"):
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
        stage = whole(scratch, str(tmp_path / "served" / name))["stage"]
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
    assert "manifest names it as models/release/nf4/model.safetensors" in broken(scratch, str(copy))


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
    assert "no git repository" in answer.err


def test_code_changed_after_the_run_and_committed_with_it(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    scratch.replace("stages/train/loop.py", "1", "2")
    commit = scratch.commit("Run B, with an edit after the run")
    said = broken(scratch)
    assert f"stages/train/loop.py in commit {commit[:10]} is not what stage train ran with" in said


def test_code_changed_and_committed_without_a_run(scratch: Scratch, tmp_path: Path) -> None:
    made = head(scratch)
    shutil.copy(scratch.root / MODEL, tmp_path / "served")
    scratch.replace("stages/train/loop.py", "1", "2")
    later = scratch.commit("Edit without a run")
    said = broken(scratch)
    assert f"stages/train/loop.py in commit {later[:10]}" in said
    assert f"commit {made[:10]} still holds all that made it" in said
    assert whole(scratch, "models/base")["commit"]["sha"] == made  # base does not run that code
    served = whole(scratch, str(tmp_path / "served"))
    assert served["commit"]["sha"] == made
    assert "stages/train/loop.py" in served["file"]["trail"]["notes"][0]


def test_parameter_changed_and_committed_without_a_run(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "5e-4")
    scratch.commit("Edit")
    assert "says train.learning_rate = 0.0005, stage train ran with 0.001" in broken(scratch)


def test_raw_data_changed_and_committed_without_a_run(scratch: Scratch) -> None:
    scratch.write("data/raw/b.jsonl", "{}\n")
    scratch.commit("More data")
    assert "data/raw/b.jsonl in commit" in broken(scratch)


def test_raw_data_never_committed(scratch: Scratch) -> None:
    scratch.git("rm", "-r", "--quiet", "--cached", "data/raw")
    scratch.write(".gitignore", "/models\n/data\n")
    scratch.git("commit", "--quiet", "--amend", "--all", "--message", "Forgot the data")
    scratch.git("reflog", "expire", "--expire=now", "--all")
    assert "data/raw, which stage clean read, is not in commit" in broken(scratch)


def test_metrics_edited(scratch: Scratch) -> None:
    scratch.replace("metrics/evaluate.json", "0.97", "0.99")
    scratch.commit("Better")
    assert "metrics/evaluate.json in commit" in broken(scratch)


def test_command_changed_and_dependency_added(scratch: Scratch) -> None:
    scratch.replace("dvc.yaml", "python -ES stages/run.py train", "python stages/run.py train")
    scratch.replace("dvc.yaml", "deps: [data/raw, stages/clean]", "deps: [data/raw, stages/clean, params.yaml]")
    scratch.commit("Edit")
    said = broken(scratch)
    assert "runs stage train as `python stages/run.py train`; it ran as `python -ES stages/run.py train`" in said
    assert "lets stage clean read params.yaml; it ran without" in said


@pytest.mark.parametrize("committed", [True, False])
def test_lock_edited(scratch: Scratch, committed: bool) -> None:
    """A hash of one dependency replaced by hand: the chain no longer closes."""
    adapter = whole(scratch, "models/adapter")["stage"]["output"]["md5"]
    text = (scratch.root / "dvc.lock").read_text()
    before, _, after = text.partition("merge_quantize:")
    scratch.write("dvc.lock", before + "merge_quantize:" + after.replace(adapter, "1" * 32 + ".dir", 1))
    if committed:
        scratch.commit("Edit the lock")
    said = broken(scratch)
    assert "stage merge_quantize read models/adapter as 1111111111, but stage train wrote" in said


def test_lock_edited_at_the_output(scratch: Scratch) -> None:
    folder = whole(scratch)["stage"]["output"]["md5"]
    scratch.replace("dvc.lock", folder, "2" * 32 + ".dir")
    assert "models/release/nf4 is not what dvc.lock in the working tree says" in broken(scratch)


def test_lock_that_is_no_yaml(scratch: Scratch) -> None:
    scratch.write("dvc.lock", "<<<<<<< HEAD\n\t{")
    answer = scratch.tunetrail("trace", MODEL)
    assert answer.code == 2
    assert "dvc.lock in the working tree is unreadable" in answer.err


def test_forgotten_file_that_comes_with_the_next_commit(scratch: Scratch) -> None:
    """dvc.lock is committed first and the code that it names later: the later commit is the one to check out."""
    scratch.replace("stages/train/loop.py", "1", "2")
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    scratch.git("add", "dvc.lock", "metrics", "params.yaml")
    scratch.git("commit", "--quiet", "--message", "Run B without its code")
    first = head(scratch)
    assert "stages/train/loop.py" in broken(scratch)
    second = scratch.commit("The code of run B")
    trail = whole(scratch)
    assert trail["commit"]["sha"] == second
    assert f"commit {first[:10]} recorded the hash first" in trail["file"]["trail"]["notes"][0]


def test_data_added_to_dvc_is_followed_to_its_dvc_file(scratch: Scratch) -> None:
    scratch.git("rm", "-r", "--quiet", "--cached", "data/raw")
    scratch.dvc("add", "data/raw")
    scratch.commit("Track the data with DVC")
    (scratch.root / ".dvc/tmp/rwlock").unlink(missing_ok=True)
    whole(scratch)
    scratch.write("data/raw/b.jsonl", "{}\n")
    scratch.dvc("add", "data/raw")
    scratch.commit("More data")
    assert "but data/raw.dvc says" in broken(scratch)


def test_data_outside_the_repository_is_said_to_be_there(scratch: Scratch, tmp_path: Path) -> None:
    shutil.copytree(scratch.root / "data/raw", tmp_path / "raw")
    (tmp_path / "raw/b.jsonl").write_text("{}\n")
    scratch.replace("dvc.yaml", "deps: [data/raw,", f"deps: [{tmp_path / 'raw'},")
    scratch.replace("stages/run.py", 'P("data/raw")', f'P("{tmp_path}/raw")')
    scratch.dvc("repro")
    scratch.commit("Data elsewhere")
    notes = whole(scratch, "data/clean.jsonl")["file"]["trail"]["notes"]
    assert any("raw lies outside the repository" in note for note in notes)


def test_second_run_and_the_first(scratch: Scratch, tmp_path: Path) -> None:
    first = head(scratch)
    shutil.copy(scratch.root / MODEL, tmp_path / "served")
    second = second_run(scratch)
    assert whole(scratch)["commit"]["sha"] == second
    served = whole(scratch, str(tmp_path / "served"))
    assert served["commit"]["sha"] == first
    assert served["params"]["train"]["learning_rate"] == 0.001
    scratch.git("checkout", "--quiet", first)
    assert "run `dvc checkout`" in broken(scratch)  # the file of B stands where the lock of A names another


def test_same_bytes_made_again_from_other_inputs(scratch: Scratch) -> None:
    first = head(scratch)
    scratch.replace("stages/train/loop.py", "1", "2")  # the scratch stage does not look at it
    scratch.dvc("repro")
    second = scratch.commit("Run B, same bytes")
    trail = whole(scratch)
    assert trail["commit"]["sha"] == first
    assert f"commit {second[:10]} made the same bytes again" in trail["file"]["trail"]["notes"][0]


def test_experiment_is_a_last_resort(scratch: Scratch, tmp_path: Path) -> None:
    second = second_run(scratch)
    shutil.copy(scratch.root / MODEL, tmp_path / "tried")
    scratch.git("update-ref", "refs/exps/ab/cdef/try", second)
    scratch.git("reset", "--quiet", "--hard", "HEAD~1")
    assert whole(scratch, str(tmp_path / "tried"))["commit"]["sha"] == second


def test_shallow_clone_says_so(scratch: Scratch, tmp_path: Path) -> None:
    shutil.copy(scratch.root / MODEL, tmp_path / "served")
    second_run(scratch)
    scratch.git("clone", "--quiet", "--depth=1", f"file://{scratch.root}", str(tmp_path / "shallow"))
    _, trail = trace(Scratch(tmp_path / "shallow"), str(tmp_path / "served"))
    assert "git fetch --unshallow" in trail["file"]["trail"]["notes"][0]


def test_two_releases_and_back_in_a_fresh_clone(scratch: Scratch, tmp_path: Path) -> None:
    """Roll back: check out A in a clone that has only a remote; every byte is back and the trace names A."""

    def contents(one: Scratch) -> dict[str, bytes]:
        folder = one.root / "models/release"
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    first = scratch.commit("Remote")
    shipped = contents(scratch)
    assert scratch.tunetrail("release", "1.0.0").code == 0
    scratch.dvc("push")
    second_run(scratch)
    assert scratch.tunetrail("release", "1.1.0").code == 0
    scratch.dvc("push")
    scratch.git("clone", "--quiet", str(scratch.root), str(tmp_path / "clone"))
    clone = Scratch(tmp_path / "clone")
    clone.dvc("pull")
    assert contents(clone) == contents(scratch) != shipped
    clone.git("checkout", "--quiet", "support-tickets@v1.0.0")
    clone.dvc("fetch")
    clone.dvc("checkout")
    assert contents(clone) == shipped
    trail = whole(clone)
    assert "support-tickets@v1.0.0" in trail["commit"]["tags"]
    assert "support-tickets@v1.1.0" not in trail["commit"]["tags"]
    assert trail["params"]["train"]["learning_rate"] == 0.001
    tagged = whole(clone, "support-tickets@v1.0.0")
    assert tagged["commit"]["sha"] == first
    assert tagged["file"]["path"] == "models/release/manifest.json"
    assert tagged["file"]["sha256"] == hashlib.sha256(shipped["manifest.json"]).hexdigest()
    assert clone.tunetrail("verify").code == 0


def test_tag_on_a_commit_whose_code_did_not_run(scratch: Scratch) -> None:
    scratch.replace("stages/clean/rules.py", "1", "2")
    scratch.commit("Edit without a run")
    scratch.git("tag", "hasty")
    assert "stages/clean/rules.py" in broken(scratch, "hasty")


def test_tag_without_a_release(scratch: Scratch) -> None:
    scratch.git("rm", "--quiet", "dvc.lock")
    scratch.git("commit", "--quiet", "--message", "No lock")
    scratch.git("tag", "empty")
    answer: Answer = scratch.tunetrail("trace", "empty")
    assert answer.code == 2
    assert "is no release" in answer.err


def test_hundreds_of_commits_are_searched_quickly(scratch: Scratch, tmp_path: Path) -> None:
    shutil.copy(scratch.root / MODEL, tmp_path / "served")
    lock = (scratch.root / "dvc.lock").read_text()
    folder = whole(scratch)["stage"]["output"]["md5"]
    stream = []
    for number in range(400):
        text = lock.replace(folder, hashlib.md5(str(number).encode()).hexdigest() + ".dir").encode()
        parent = "from refs/heads/main^0\n" if number == 0 else ""
        stream.append(
            f"commit refs/heads/main\ncommitter Ann <a@b.c> {2_000_000_000 + number} +0000\ndata 1\n.\n{parent}"
            f"M 100644 inline dvc.lock\ndata {len(text)}\n{text.decode()}\n"
        )
    first = head(scratch)
    subprocess.run(["git", "fast-import", "--quiet"], cwd=scratch.root, input="".join(stream).encode(), check=True)
    started = time.monotonic()
    trail = whole(scratch, str(tmp_path / "served"))
    assert trail["commit"]["sha"] == first
    assert time.monotonic() - started < 3
