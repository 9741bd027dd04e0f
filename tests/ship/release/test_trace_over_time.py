"""The trail over several runs, releases, clones and a long history."""

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from scratch import Answer, Scratch
from trails import MODEL, broken, head, second_run, trace, whole

from stages.core.dvc_lock import parse_lock

pytest_plugins = ["scratch_fixtures"]


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


def test_a_release_comes_before_an_older_run_with_the_same_bytes(scratch: Scratch, tmp_path: Path) -> None:
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.commit("Remote")
    first = parse_lock((scratch.root / "dvc.lock").read_bytes())
    scratch.replace("data/raw/a.jsonl", '{"n": 1}', '{"n": 9}')  # the hold-out's row: the model stays what it is
    scratch.dvc("repro")
    second = scratch.commit("Run B")
    scratch.dvc("push")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 0, answer.err
    kept = {out.md5 for _, out in parse_lock((scratch.root / "dvc.lock").read_bytes()).outs()}
    lost = [out.md5 for _, out in first.outs() if out.md5 not in kept]
    for md5 in filter(None, lost):  # as `dvc gc` does, which keeps what the release needs
        (scratch.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "store/files/md5" / md5[:2], ignore_errors=True)
    trail = whole(scratch)
    assert trail["commit"]["sha"] == second
    assert trail["commit"]["tags"] == ["support-tickets@v1.0.0"]


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
    scratch.dvc("push")
    assert scratch.tunetrail("release", "1.0.0").code == 0
    second_run(scratch)
    scratch.dvc("push")
    assert scratch.tunetrail("release", "1.1.0").code == 0
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


def test_the_commit_to_restore_is_the_one_of_the_trail(scratch: Scratch) -> None:
    """No tag is: this one holds the same outputs beside code that did not make them."""
    made = head(scratch)
    scratch.write("stages/train/loop.py", "LOOP = 2\n")
    scratch.commit("Code that did not run")
    scratch.git("tag", "$(deployed)")
    said = scratch.tunetrail("trace", MODEL).out
    assert "$(deployed)" in said
    assert f"restore  git checkout {made[:12]} && dvc checkout" in said
