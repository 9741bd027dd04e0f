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


def test_a_history_that_lacks_tags_says_so(origin: Scratch, tmp_path: Path) -> None:
    for version in ("1.1.0", "1.2.0"):
        assert origin.tunetrail("release", version, "--stage", "prod").code == 0
        origin.git("commit", "--quiet", "--allow-empty", "--message", "Again")
    assert "no tag here" not in origin.tunetrail("history").out
    origin.git("clone", "--quiet", "--depth=2", f"file://{origin.root}", str(tmp_path / "clone"))
    clone = Scratch(tmp_path / "clone")
    assert clone.git("tag").split() == ["support-tickets#prod#2", "support-tickets@v1.2.0"]
    lost = "1 of the 2 assignments of support-tickets have no tag here"
    said = clone.tunetrail("history", "--json")
    assert (said.code, lost in said.err, "git fetch --unshallow" in said.err) == (0, True, True)
    assert "tags may be missing" in clone.tunetrail("history", "--stage", "staging").err

    origin.git("tag", "--delete", "support-tickets#prod#1")
    assert lost in origin.tunetrail("history").out
    origin.tunetrail("history", "--html", str(tmp_path / "page.html"))
    assert lost in (tmp_path / "page.html").read_text()
    assert lost in origin.tunetrail("rollback", "1.2.0", "--stage", "staging").out


def test_a_copy_of_a_release_that_a_shallow_clone_does_not_know(origin: Scratch, tmp_path: Path) -> None:
    shutil.copytree(origin.root / "models/release", tmp_path / "copy")
    origin.replace("params.yaml", "2e-3", "3e-3")
    origin.dvc("repro")
    origin.commit("Run C")
    origin.git("clone", "--quiet", "--depth=1", f"file://{origin.root}", str(tmp_path / "clone"))
    refused = Scratch(tmp_path / "clone").tunetrail("verify", str(tmp_path / "copy"))
    assert (refused.code, "git fetch --unshallow" in refused.err) == (1, True)


def test_what_cannot_be_made_again_in_a_submodule_is_said(scratch: Scratch, tmp_path: Path) -> None:
    assert scratch.tunetrail("release", "1.0.0").code == 0
    around = Scratch(tmp_path / "around")
    around.root.mkdir()
    around.git("init", "--quiet")
    around.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(scratch.root), "model")
    refused = Scratch(around.root / "model").tunetrail("reproduce", "1.0.0")
    assert (refused.code, "is in a submodule" in refused.err) == (2, True)
    assert sorted(path.name for path in around.root.iterdir()) == [".git", ".gitmodules", "model"]


@pytest.mark.parametrize("left_out", [".dvc", ".dvc/config", "dvc.lock", "data/other.dvc"])
def test_a_sparse_checkout_without_files_of_dvc(origin: Scratch, tmp_path: Path, left_out: str) -> None:
    """DVC itself would look for another cache, or know of fewer outputs."""
    origin.write("data/other", "rows")
    origin.dvc("cache", "dir", str(tmp_path / "cache"))
    shutil.move(origin.root / ".dvc/cache", tmp_path / "cache")
    origin.dvc("add", "data/other")
    before = origin.commit("More")
    for tree in (origin.root, Scratch(tmp_path / "clone").root):
        if tree != origin.root:
            origin.git("clone", "--quiet", str(origin.root), str(tree))
        Scratch(tree).git("sparse-checkout", "set", "--no-cone", "/*", f"!/{left_out}")
        assert not (tree / left_out).is_file()
        for words in (["gc", "--dry"], ["release", "2.0.0"], ["rollback", "1.0.0"]):
            refused = Scratch(tree).tunetrail(*words)
            assert (refused.code, f"a sparse checkout without {left_out}" in refused.err) == (1, True), words
    assert origin.git("rev-parse", "HEAD") == before


def test_a_sparse_checkout_without_another_project_is_whole(subfolder: Scratch) -> None:
    top = Scratch(subfolder.root.parent)
    top.git("sparse-checkout", "set", "--no-cone", "/*", "!/other")
    assert not (top.root / "other/rows.txt.dvc").exists()
    assert "DVC's cache: 0 of " in subfolder.tunetrail("gc", "--dry").out


@pytest.mark.parametrize("linked", ["data/raw", "data", "stages/clean"])
def test_what_a_stage_reads_may_be_or_lie_below_a_link(scratch: Scratch, linked: str) -> None:
    shutil.move(scratch.root / linked, scratch.root / "elsewhere")
    (scratch.root / linked).symlink_to("elsewhere" if "/" not in linked else "../elsewhere")
    scratch.write(
        ".gitignore", (scratch.root / ".gitignore").read_text() + "/elsewhere/clean.jsonl\n/elsewhere/split\n"
    )
    if linked != "data":  # an output below a link is none for DVC
        scratch.dvc("repro")
    commit = scratch.commit("A link")
    tree = CommitTree(Repository(scratch.root), commit)
    for path in ("data/raw", "stages/clean"):
        assert entry_hash(tree.md5s(path)) == recorded(scratch, "clean", path)
    assert tree.read("data/raw/a.jsonl") == (scratch.root / "data/raw/a.jsonl").read_bytes()
    if linked != "data":
        assert whole(scratch)["file"]["trail"]["broken"] == []
        assert scratch.tunetrail("release", "1.0.0").code == 0


def test_links_that_lead_round_are_no_files(scratch: Scratch) -> None:
    (scratch.root / "data/one").symlink_to("two")
    (scratch.root / "data/two").symlink_to("one/below")
    tree = CommitTree(Repository(scratch.root), scratch.commit("Round"))
    assert (tree.md5s("data/one"), tree.read("data/two/a")) == ({}, None)


def test_a_dvcignore_above_the_project_counts_as_far_as_dvc_reads(subfolder: Scratch) -> None:
    top = Scratch(subfolder.root.parent)
    for file in ("a.tmp", "b.log", ".git"):
        subfolder.write(f"stages/clean/{file}", file)
    top.write(".dvcignore", "__pycache__/\nproject/stages/**/*.tmp\n  *.log  \n")
    subfolder.write(".dvcignore", "!b.log\n")
    subfolder.dvc("repro")
    top.git("add", "--force", "project/stages")
    commit = top.commit("Rules above")
    for tree in WorkingTree(subfolder.root), CommitTree(Repository(subfolder.root), commit):
        assert set(tree.md5s("stages/clean")) == {"rules.py", "b.log"}
        assert entry_hash(tree.md5s("stages/clean")) == recorded(subfolder, "clean", "stages/clean")
    (top.root / ".git").rename(top.root / "git")
    top.git("init", "--quiet")
    top.dvc("init", "--subdir", "--force")
    assert set(WorkingTree(subfolder.root).md5s("stages/clean")) == {"rules.py", "b.log"}


@pytest.mark.parametrize(
    ("setup", "name"),
    [
        ("remote add upstream u", "upstream"),
        ("remote add upstream u; remote add origin o", "origin"),
        ("remote add a a; remote add b b", "REMOTE"),
        ("remote add a a; remote add origin o; config remote.pushDefault a", "a"),
        ("remote add a a; remote add b b; config branch.main.remote b; config branch.main.merge refs/heads/x", "b"),
        ("remote add a a; remote add b b; config branch.main.remote .", "REMOTE"),
        ("config user.name Ann", "REMOTE"),
    ],
)
def test_the_push_that_is_advised_goes_where_git_would(scratch: Scratch, setup: str, name: str) -> None:
    for words in setup.split("; "):
        scratch.git(*words.split())
    said = scratch.tunetrail("release", "1.0.0", "--stage", "prod").out
    assert f"git push --atomic {name} HEAD support-tickets@v1.0.0 'support-tickets#prod#1'" in said
    of_several = "(REMOTE: one of a, b)" if "remote add" in setup else "(REMOTE: none yet"
    assert (of_several in said) == (name == "REMOTE")


def test_a_version_that_other_means_gave_a_commit_does_not_stand_for_its_release(scratch: Scratch) -> None:
    assert scratch.tunetrail("release", "1.0.0").code == 0
    scratch.git("tag", "--annotate", "--message", "by hand", "support-tickets@v1.1.0")
    again = scratch.tunetrail("release", "1.0.0", "--stage", "prod")
    assert (again.code, again.err) == (0, "")
    assert "prod       v1.0.0" in scratch.tunetrail("history").out
    refused = scratch.tunetrail("release", "1.2.0")
    assert (refused.code, "HEAD is released as v1.0.0 already" in refused.err) == (1, True)


def test_tags_that_do_not_count_or_were_moved_are_named(origin: Scratch) -> None:
    assert origin.tunetrail("release", "1.1.0", "--stage", "prod").code == 0
    origin.git("commit", "--quiet", "--allow-empty", "--message", "Again")
    record = origin.git("for-each-ref", "--format=%(contents)", "refs/tags/support-tickets#prod#1")
    origin.git("tag", "--force", "--annotate", "--message", record, "support-tickets#prod#1")
    origin.git("tag", "support-tickets@v9.0.0")
    said = origin.tunetrail("history").out
    assert "not counted, as GTO has it: support-tickets@v9.0.0, " in said
    assert "tag support-tickets#prod#1 was moved: `tunetrail release` recorded commit" in said


def test_stages_and_versions_share_the_numbers_of_assignments_as_gto_has_them(origin: Scratch) -> None:
    for version, stage in (("1.1.0", "eu/prod"), ("1.1.0", "eu/staging")):
        assert origin.tunetrail("release", version, "--stage", stage).code == 0
    assert origin.tunetrail("rollback", "1.0.0", "--stage", "eu/prod").code == 0
    assert origin.git("tag", "--list", "*#*").split() == [
        "support-tickets#eu/prod#1",
        "support-tickets#eu/prod#3",
        "support-tickets#eu/staging#2",
    ]
    assert "no tag here" not in origin.tunetrail("history").out


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
