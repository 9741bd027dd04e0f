"""The trail where git or DVC is set up as few have it: clones of a part, a project in a subfolder, links, odd tags."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scratch import Scratch
from trails import MODEL, broken, second_run, whole

from stages.core.dvc_lock import entry_hash, parse_lock
from stages.core.git import CommitTree, Repository, WorkingTree

pytest_plugins = ["scratch_fixtures"]


@pytest.fixture
def subfolder(scratch_template: Scratch, tmp_path: Path) -> Scratch:
    """A project below the folder that has .git and .dvc, where another project keeps data in the same cache."""
    top = Scratch(tmp_path / "top")
    project = scratch_template.copy(top.root / "project")
    shutil.rmtree(project.root / ".git")
    shutil.move(project.root / ".dvc", top.root / ".dvc")
    top.write(".dvcignore", "__pycache__/\n")
    top.write("other/rows.txt", "of another project")
    top.git("init", "--quiet", "--initial-branch=main")
    top.dvc("add", "other/rows.txt")
    top.commit("Both")
    return project


def test_doctor_gives_a_project_in_a_subfolder_no_dvc_of_its_own(subfolder: Scratch) -> None:
    """A folder .dvc there would be taken for that of another cache, in which nothing is."""
    for command in (["doctor"], ["repro", "--dry"], ["lock-check", "--deep"]):
        subfolder.tunetrail(*command)
        assert not (subfolder.root / ".dvc").exists(), command
    assert whole(subfolder)["file"]["trail"]["notes"] == []


def test_the_data_of_another_project_with_the_same_cache_could_not_go(subfolder: Scratch) -> None:
    assert "DVC's cache: 0 of " in subfolder.tunetrail("gc", "--dry").out


def test_a_release_of_a_subfolder_is_made_again(subfolder: Scratch) -> None:
    assert subfolder.tunetrail("release", "1.0.0").code == 0
    assert "PASSED" in subfolder.tunetrail("reproduce", "1.0.0").out


def test_a_private_key_that_git_would_take_is_refused_beside_the_project_too(subfolder: Scratch) -> None:
    key = subfolder.root.parent / "key.pem"
    make = ["openssl", "genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)]
    subprocess.run(make, check=True)
    refused = subfolder.tunetrail("sign", "--key", "../key.pem")
    assert (refused.code, "git does not ignore it" in refused.err) == (2, True)
    (key.parent / ".gitignore").write_text("*.pem\n")
    assert subfolder.tunetrail("sign", "--key", "../key.pem").code == 0


def recorded(scratch: Scratch, stage: str, path: str) -> str | None:
    """What DVC, the oracle, took as the hash of a dependency."""
    stages = parse_lock((scratch.root / "dvc.lock").read_bytes()).stages
    return next(dep.md5 for dep in stages[stage].deps if dep.path == path)


def test_every_dvcignore_around_a_folder_counts_and_links_to_folders_do_not(scratch: Scratch) -> None:
    for file, text in {
        ".dvcignore": "__pycache__/\n*.pyc\n*.tmp\n*.log\n",
        "stages/.dvcignore": "/clean/a.txt\nb/\nc/*.py\n!kept.tmp\n",
        "elsewhere/z.py": "Z = 1\n",
        **{f"stages/clean/{one}": one for one in ("a.txt", "d/a.txt", "b/x", "d/b/x", "c/x.py", "kept.tmp", "no.tmp")},
        "stages/clean/d/no.log": "",
    }.items():
        scratch.write(file, text)
    (scratch.root / "stages/clean/link").symlink_to("../../elsewhere")
    (scratch.root / "stages/clean/e.py").symlink_to("../../elsewhere/z.py")
    scratch.dvc("repro")
    scratch.git("add", "--force", "stages")
    commit = scratch.commit("Rules of several folders")
    for tree in WorkingTree(scratch.root), CommitTree(Repository(scratch.root), commit):
        assert entry_hash(tree.md5s("stages/clean")) == recorded(scratch, "clean", "stages/clean")
        assert set(tree.md5s("stages/clean")) == {"rules.py", "d/a.txt", "c/x.py", "kept.tmp", "e.py"}
    assert whole(scratch)["file"]["trail"]["broken"] == []


def test_a_link_out_of_the_repository_is_not_among_what_git_holds(scratch: Scratch, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"n": 9}\n')
    (scratch.root / "data/raw/b.jsonl").symlink_to(tmp_path / "rows.jsonl")
    scratch.dvc("repro")
    scratch.commit("A link")
    assert "data/raw/b.jsonl, which stage clean read, is not in commit" in broken(scratch)


def test_a_commit_without_a_message(scratch: Scratch) -> None:
    scratch.git("commit", "--quiet", "--amend", "--allow-empty-message", "--message", "")
    commit = whole(scratch)["commit"]
    assert (commit["sha"], commit["author"], commit["subject"]) == (scratch.git("rev-parse", "HEAD"), "Ann", "")


def test_a_release_of_what_came_after_the_lock_is_found_when_the_project_has_moved_on(
    scratch: Scratch, tmp_path: Path
) -> None:
    scratch.write("data/raw/b.jsonl", '{"n": 9}\n')
    scratch.dvc("repro")
    scratch.git("commit", "--quiet", "--all", "--message", "Without the rows")
    released = scratch.commit("The rows")
    assert scratch.tunetrail("release", "1.0.0").code == 0
    deployed = shutil.copy(scratch.root / MODEL, tmp_path / "model.safetensors")
    second_run(scratch)
    assert whole(scratch, str(deployed))["commit"]["sha"] == released


def test_rollback_refuses_to_write_over_what_is_an_output_there_alone(scratch: Scratch) -> None:
    assert scratch.tunetrail("release", "1.0.0", "--stage", "prod").code == 0
    for file in ("dvc.yaml", "stages/run.py"):
        scratch.replace(file, "models/adapter", "models/tuned")
    scratch.dvc("repro")
    before = scratch.commit("Another name")
    assert scratch.tunetrail("release", "1.1.0", "--stage", "prod").code == 0
    scratch.write("models/adapter/adapter.safetensors", "by hand, and nowhere else")
    refused = scratch.tunetrail("rollback", "1.0.0", "--stage", "prod")
    assert refused.code == 1
    assert "DVC's cache does not hold models/adapter/adapter.safetensors as it is here" in refused.err
    assert (scratch.git("rev-parse", "HEAD"), scratch.git("tag", "--list", "*#prod#3")) == (before, "")


def test_a_tag_that_gto_passes_over_does_not_hold_up_an_assignment(scratch: Scratch) -> None:
    scratch.git("tag", "support-tickets#prod#1")
    assert scratch.tunetrail("release", "1.0.0", "--stage", "prod").code == 0
    assert "prod  v1.0.0" in scratch.tunetrail("history").out


@pytest.fixture
def origin(scratch: Scratch, tmp_path: Path) -> Scratch:
    """Two releases, whose objects the remote has, too."""
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.commit("Remote")
    assert scratch.tunetrail("release", "1.0.0", "--no-push-check", "later").code == 0
    scratch.dvc("config", "core.autostage", "true")  # git has other bytes of .dvc/config in each release
    scratch.dvc("push")
    second_run(scratch)
    scratch.dvc("push")
    scratch.git("config", "uploadpack.allowFilter", "true")
    return scratch


@pytest.mark.parametrize("part", ["--depth=1", "--filter=blob:none"])
def test_a_clone_of_a_part_proposes_nothing_to_delete(origin: Scratch, tmp_path: Path, part: str) -> None:
    origin.git("clone", "--quiet", part, f"file://{origin.root}", str(tmp_path / "clone"))
    refused = Scratch(tmp_path / "clone").tunetrail("gc", "--dry", "--remote", "store")
    assert (refused.code, refused.out) == (1, "")
    assert "any object may be needed: this" in refused.err


@pytest.mark.parametrize(
    "program",
    [
        "from stages.cli import main; main(['rollback', '1.0.0'])",
        "import pathlib; from stages.ship.release.released_files import _fetch; _fetch(pathlib.Path.cwd(), 'v1.0.0')",
    ],
)
def test_a_partial_clone_has_the_files_of_a_release(origin: Scratch, tmp_path: Path, program: str) -> None:
    """In a process of its own: DVC's reader of git waits for ever for an object that was not fetched."""
    clone = tmp_path / "clone"
    origin.git("clone", "--quiet", "--filter=blob:none", f"file://{origin.root}", str(clone))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=clone, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(clone.glob(f"**/{MODEL}"))) == 1


def test_no_error_repeats_the_secret_of_a_url(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever library reaches a remote."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("cannot read https://ann:hunter2hunter2@example.org/store")

    assert scratch.tunetrail("release", "1.0.0").code == 0
    monkeypatch.setattr("dvc.api.DVCFileSystem", unreachable)
    refused = scratch.tunetrail("serve", "1.0.0")
    assert (refused.code, "example.org/store" in refused.err, "hunter2" in refused.err) == (2, True, False)


def test_params_that_are_no_mapping_are_compared_as_none(scratch: Scratch) -> None:
    for text in ("- a list\n", "a: [\n", "a: \x00\n"):
        scratch.write("params.yaml", text)
        scratch.git("add", "params.yaml")
        scratch.git("commit", "--quiet", "--allow-empty", "--message", "By mistake")
        scratch.write("params.yaml", "seed: 2\n")
        answer = scratch.tunetrail("compare", "HEAD")
        assert (answer.code, "`seed`" in answer.out or "seed" in answer.out) == (0, True), (text, answer.err)
