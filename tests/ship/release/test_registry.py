"""release, history and rollback over GTO's tags: kills, two at once, and what is refused before anything changes."""

import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gto.api import assign, deregister, show, unassign
from key_files import write_keys
from scratch import Scratch

from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest
from stages.core.git import Repository
from stages.report.compare import changes
from stages.ship.release import registry, releasing
from stages.ship.release.releasing import release, rollback

pytest_plugins = ["scratch_fixtures"]

NAME = "support-tickets"


@pytest.fixture(scope="module")
def runs_template(scratch_template: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    """Two runs, pushed; the first is released and in prod, HEAD is the second."""
    folder = tmp_path_factory.mktemp("runs")
    scratch = scratch_template.copy(folder / "repository")
    scratch.dvc("remote", "add", "--default", "store", "../store")  # beside the copy, whichever it is
    scratch.commit("Remote")
    scratch.dvc("push")
    assert scratch.tunetrail("release", "1.0.0", "--stage", "prod").code == 0
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.write("data/raw/b.jsonl", '{"n": 4}\n')
    scratch.replace("stages/run.py", '"value": 0.97, "low"', '"value": 0.99, "low"')
    scratch.replace("stages/train/loop.py", "1", "2")
    scratch.dvc("repro")
    scratch.commit("Run B")
    scratch.dvc("push")
    return scratch


@pytest.fixture
def runs(runs_template: Scratch, tmp_path: Path) -> Scratch:
    return copy_of(runs_template, tmp_path / "copy")


def copy_of(scratch: Scratch, folder: Path) -> Scratch:
    """A copy with its remote beside it."""
    shutil.copytree(scratch.root.parent, folder)
    return Scratch(folder / scratch.root.name)


def tags(scratch: Scratch) -> list[str]:
    return scratch.git("tag").splitlines()


def in_prod(scratch: Scratch) -> str | None:
    """As GTO itself has it."""
    version: str | None = show(str(scratch.root))[NAME]["stage"]["prod"]
    return version


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> None:
    """Stop at the call of git with this number, before it or after it did its work."""
    calls, real = iter(range(10**6)), Repository._run

    def run(self: Repository, *arguments: str, **how: Any) -> Any:
        now = next(calls) == at
        if now and not after:
            raise KeyboardInterrupt
        done = real(self, *arguments, **how)
        if now:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Repository, "_run", run)


def kills(scratch: Scratch, monkeypatch: pytest.MonkeyPatch, act: str) -> Iterator[tuple[int, bool]]:
    """Before and after each call of git that changes something, and before some that read."""
    called: list[str] = []
    real = Repository._run

    def run(self: Repository, *arguments: str, **how: Any) -> Any:
        called.append(arguments[0])
        return real(self, *arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "_run", run)
        assert scratch.tunetrail(*act.split()).code == 0
    for number, word in enumerate(called):
        writes = word in ("tag", "checkout")
        if writes or number % 40 == 0:
            yield number, False
        if writes:
            yield number, True


@pytest.mark.parametrize("act", ["release 1.1.0 --stage prod", "rollback 1.0.0 --stage prod"])
def test_a_run_that_is_killed_at_any_call_of_git_is_completed_by_the_next(
    runs_template: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    start = copy_of(runs_template, tmp_path / "start")
    if act.startswith("rollback"):
        assert start.tunetrail("release", "1.1.0", "--stage", "prod").code == 0
    whole = copy_of(start, tmp_path / "whole")
    todo = list(kills(whole, monkeypatch, act))
    assert len(todo) >= 5
    for number, after in todo:
        killed = copy_of(start, tmp_path / f"{number} {after}")
        with monkeypatch.context() as patch:
            interrupted(patch, number, after)
            assert killed.tunetrail(*act.split()).code == 130
        answer = killed.tunetrail(*act.split())
        assert answer.code == 0, f"{number}: {answer.err}"
        assert tags(killed) == tags(whole)
        assert in_prod(killed) == f"v{act.split()[1]}"
        assert killed.git("rev-parse", "HEAD") == whole.git("rev-parse", "HEAD")
        assert killed.tunetrail("verify").code == 0


def test_a_rollback_that_is_killed_before_the_files_are_there_is_completed(
    runs: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert runs.tunetrail("release", "1.1.0", "--stage", "prod").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Repo, "checkout", killed)
        assert runs.tunetrail("rollback", "1.0.0", "--stage", "prod").code == 130
    assert runs.tunetrail("verify").code == 1
    assert runs.tunetrail("rollback", "1.0.0", "--stage", "prod").code == 0
    assert runs.tunetrail("verify").code == 0
    assert in_prod(runs) == "v1.0.0"


def test_of_two_releases_at_once_one_wins_and_the_other_says_so(runs: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found everything in order before either writes."""
    ready, answers, real = threading.Barrier(2), [], registry.write_tag

    def together(*arguments, **options):  # type: ignore[no-untyped-def]
        ready.wait(timeout=60)
        real(*arguments, **options)

    def one() -> None:
        try:
            answers.append(release(runs.root, "1.1.0"))
        except Refusal as error:
            answers.append(f"refused: {error}")

    monkeypatch.setattr("stages.ship.release.releasing.write_tag", together)
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.startswith("refused")]
    assert len(answers) == 2
    assert len(refused) == 1
    assert f"tag {NAME}@v1.1.0 was set meanwhile by 'Ann at " in refused[0]
    assert tags(runs).count(f"{NAME}@v1.1.0") == 1


def test_of_two_assignments_at_once_one_wins(runs: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.tunetrail("release", "1.1.0").code == 0
    real = registry.write_tag

    def late(repository, name, *arguments):  # type: ignore[no-untyped-def]
        with monkeypatch.context() as patch:
            patch.setattr(registry, "write_tag", real)
            rollback(runs.root, "1.1.0", "prod", None, changes)
        real(repository, name, *arguments)

    monkeypatch.setattr(registry, "write_tag", late)
    with pytest.raises(Refusal, match=r"support-tickets#prod#2 was set meanwhile"):
        release(runs.root, "1.1.0", "prod")
    assert in_prod(runs) == "v1.1.0"


def test_a_clock_that_is_behind_the_last_assignment_assigns_nothing(
    runs: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z")
    answer = runs.tunetrail("release", "1.1.0", "--stage", "prod")
    assert answer.code == 1
    assert "this machine's clock is behind the last assignment" in answer.err
    assert f"{NAME}#prod#2" not in tags(runs)


def test_a_commit_has_one_version_and_a_version_one_commit(runs: Scratch) -> None:
    assert runs.tunetrail("release", "1.1.0").code == 0
    assert "HEAD is released as v1.1.0 already" in runs.tunetrail("release", "1.2.0").err
    assert "a release is never moved" in runs.tunetrail("release", "1.0.0").err
    assert runs.tunetrail("release", "1.1.0", "--stage", "a b").code == 2


def test_release_asks_dvc_status(runs: Scratch) -> None:
    runs.write("data/raw/c.jsonl", '{"n": 5}\n')
    runs.commit("Rows without a run")
    answer = runs.tunetrail("release", "1.1.0")
    assert answer.code == 1
    assert "clean: data/raw modified" in answer.err


def test_rollback_says_what_changes(runs: Scratch) -> None:
    assert runs.tunetrail("release", "1.1.0", "--stage", "prod").code == 0
    answer = runs.tunetrail("rollback", "1.0.0", "--stage", "prod", "--reason", "wrong\x1b[31m dates")
    assert answer.code == 0, answer.err
    rows = [re.split(r"\s{2,}", line.strip()) for line in answer.out.splitlines()]
    assert ["data/raw", "2 files, 36 bytes", "1 files, 27 bytes", "data"] in rows
    assert ["stages/train", "code differs"] in rows
    assert ["train.learning_rate", "0.002", "0.001", "parameter"] in rows
    assert ["adapter exact_match", "99.0 % (90.0 to 98.0 %)", "97.0 % (90.0 to 98.0 %)"] in rows
    assert "git switch main && dvc checkout" in answer.out
    said = runs.tunetrail("history").out
    assert "prod went to v1.0.0 by Ann: wrong⟨U+001B⟩[31m dates" in said
    assert "\x1b" not in said
    runs.git("switch", "--quiet", "main")
    runs.dvc("checkout")
    assert runs.tunetrail("verify").code == 0


def refused(scratch: Scratch, *sentences: str) -> None:
    """Nothing is changed: no tag, no commit, no file."""
    before = tags(scratch), scratch.git("rev-parse", "HEAD"), scratch.git("status", "--porcelain")
    answer = scratch.tunetrail("rollback", "1.0.0", "--stage", "qa")
    assert answer.code == 1
    assert all(sentence in answer.err for sentence in sentences), answer.err
    assert (tags(scratch), scratch.git("rev-parse", "HEAD"), scratch.git("status", "--porcelain")) == before


def test_rollback_refuses_to_lose_what_a_person_has_changed(runs: Scratch) -> None:
    adapter = runs.root / "models/adapter/adapter.safetensors"
    adapter.unlink()
    adapter.write_text("a try by hand")
    runs.write("models/adapter/notes.txt", "mine")
    refused(runs, "DVC's cache does not hold models/adapter/adapter.safetensors, models/adapter/notes.txt")
    assert adapter.read_text() == "a try by hand"
    runs.write("params.yaml", "mine")
    refused(runs, "1 tracked files differ from HEAD (params.yaml)", "git stash")


def test_rollback_refuses_to_write_over_an_untracked_file(runs: Scratch) -> None:
    runs.git("rm", "--quiet", "constraints.txt")
    runs.git("commit", "--quiet", "--message", "No pins")
    runs.write("constraints.txt", "mine")
    refused(runs, "constraints.txt")
    assert (runs.root / "constraints.txt").read_text() == "mine"


def test_rollback_fetches_from_the_remote_and_refuses_what_is_nowhere(runs: Scratch) -> None:
    runs.forget_cache()
    runs.dvc("fetch")
    assert runs.tunetrail("rollback", "1.0.0").code == 0
    runs.git("switch", "--quiet", "main")
    runs.dvc("checkout")
    runs.forget_cache()
    shutil.rmtree(runs.root.parent / "store")
    runs.dvc("commit", "--force")
    refused(runs, f"{NAME}@v1.0.0:", "can no longer be brought back")


def test_rollback_knows_releases_alone(runs: Scratch) -> None:
    answer = runs.tunetrail("rollback", "9.0.0")
    assert answer.code == 2
    assert "no release v9.0.0 here (v1.0.0)" in answer.err
    runs.git("tag", "--annotate", "--message", "by hand", f"{NAME}@v9.0.0")
    assert "without the record" in runs.tunetrail("rollback", "9.0.0").err
    deregister(str(runs.root), NAME, version="v1.0.0")
    assert "no release v1.0.0 here" in runs.tunetrail("rollback", "1.0.0").err


def test_history_as_gto_has_it(runs: Scratch) -> None:
    """Stages that GTO itself assigned and took away, and a release that was never live."""
    root = str(runs.root)
    assert json.loads(runs.tunetrail("history", "--json").out)[0]["version"] == "v1.0.0"
    assert runs.tunetrail("release", "1.1.0").code == 0
    rows = json.loads(runs.tunetrail("history", "--json").out)
    assert [(row["stage"], row["version"]) for row in rows] == [("prod", "v1.0.0"), (None, "v1.1.0")]
    assign(root, NAME, "prod", version="v1.1.0")
    unassign(root, NAME, version="v1.1.0", stage="prod")
    rows = json.loads(runs.tunetrail("history", "--stage", "prod", "--json").out)
    assert [row["version"] for row in rows] == ["v1.0.0", "v1.1.0", "v1.0.0"]
    assert in_prod(runs) == "v1.0.0"
    assert [row["until"] for row in rows] == [rows[1]["from"], rows[2]["from"], None]
    assert rows[0]["headline"] == {
        "metric": "exact_match",
        "value": 0.97,
        "low": 0.9,
        "high": 0.98,
        "count": 47,
        "n": 48,
    }
    assert (
        rows[0]["manifest_sha256"]
        == json.loads(runs.git("tag", "--list", "--format=%(contents)", f"{NAME}@v1.0.0"))["manifest_sha256"]
    )


def test_history_page_holds_text_of_others_as_text(runs: Scratch, tmp_path: Path) -> None:
    answer = runs.tunetrail("rollback", "1.0.0", "--stage", "qa", "--reason", "<script>alert(1)</script>")
    assert answer.code == 0, answer.err
    assert runs.tunetrail("history", "--html", str(tmp_path / "page.html")).code == 0
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert re.search(r"prod</th>\s*<td[^>]*>v1\.0\.0<", page)
    assert "97.0 % (90.0 to 98.0 %)" in page


def test_history_of_nothing(scratch_template: Scratch, tmp_path: Path) -> None:
    assert scratch_template.tunetrail("history").out.startswith("No release has a tag here")
    page = tmp_path / "page.html"
    assert scratch_template.tunetrail("history", "--html", str(page)).code == 0
    assert "No release has a tag here" in page.read_text()
    assert scratch_template.tunetrail("history", "--stage", "prod").code == 2
    with pytest.raises(UserError):
        rollback(scratch_template.root, "1.0.0", None, None, changes)


def test_a_signature_that_is_there_must_verify(runs: Scratch, tmp_path: Path) -> None:
    (private, public), (_, other) = (map(str, write_keys(tmp_path, name)) for name in ("ann", "ben"))
    assert runs.tunetrail("sign", "--key", private).code == 0
    assert "release.sig is not in git" in runs.tunetrail("release", "1.1.0", "--key", public).err
    runs.commit("Signature")
    assert "give --key PUBLIC.pem" in runs.tunetrail("release", "1.1.0").err
    assert "no signature by" in runs.tunetrail("release", "1.1.0", "--key", other).err
    assert f"{NAME}@v1.1.0" not in tags(runs)
    answer = runs.tunetrail("release", "1.1.0", "--key", public)
    assert answer.code == 0, answer.err
    record = json.loads(runs.git("tag", "--list", "--format=%(contents)", f"{NAME}@v1.1.0"))
    assert record["signature_sha256"] == file_digest(runs.root / "release.sig")
    assert runs.tunetrail("rollback", "1.1.0", "--stage", "prod", "--key", public).code == 0


@pytest.mark.parametrize("on_branch", [True, False])
def test_what_it_says_to_publish_with_publishes(runs: Scratch, on_branch: bool) -> None:
    """Also from the detached HEAD that a rollback or a runner leaves."""
    there = runs.root.parent / "origin.git"
    runs.git("init", "--quiet", "--bare", str(there))
    runs.git("remote", "add", "origin", str(there))
    if not on_branch:
        runs.git("checkout", "--quiet", "--detach")
    answer = runs.tunetrail("release", "1.1.0", "--stage", "prod")
    (publish,) = (line.partition(": ")[2] for line in answer.out.splitlines() if line.startswith("Publish:"))
    runs.git(*shlex.split(publish)[1:])
    pushed = runs.git("ls-remote", str(there))
    assert f"refs/tags/{NAME}@v1.1.0" in pushed
    assert ("refs/heads/main" in pushed) == on_branch


def test_a_commit_that_comes_while_all_is_checked_is_not_released(
    runs: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_meanwhile(root: Path) -> list[str]:
        runs.replace("params.yaml", "2e-3", "3e-3")
        runs.commit("Meanwhile")
        return []

    monkeypatch.setattr(releasing, "_audit", commit_meanwhile)
    with pytest.raises(Refusal, match="somebody committed while all was checked"):
        release(runs.root, "1.1.0")
    assert f"{NAME}@v1.1.0" not in tags(runs)


def test_a_withdrawal_is_no_release_set_by_other_means(runs: Scratch) -> None:
    deregister(str(runs.root), NAME, version="v1.0.0")
    answer = runs.tunetrail("trace", f"{NAME}@v1.0.0")
    assert answer.code == 0
    assert "other means" not in answer.out


def test_two_versions_of_one_commit_are_both_in_the_history_and_withdrawn_one_by_one(runs: Scratch) -> None:
    """As two clones tag one commit before either hears of the other."""
    second, message = f"{NAME}@v1.0.1", runs.git("tag", "--list", "--format=%(contents)", f"{NAME}@v1.0.0")
    runs.git("tag", "--annotate", "-m", message.replace("v1.0.0", "v1.0.1"), second, f"{NAME}@v1.0.0^{{}}")

    def rows() -> list[tuple[str | None, str]]:
        return [(row["stage"], row["version"]) for row in json.loads(runs.tunetrail("history", "--json").out)]

    assert rows() == [("prod", "v1.0.0"), (None, "v1.0.1")]
    assert "(v1.0.0, v1.0.1)" in runs.tunetrail("rollback", "9.0.0").err
    assert runs.tunetrail("rollback", "1.0.0", "--stage", "qa").code == 0
    assert rows() == [("prod", "v1.0.0"), ("qa", "v1.0.0"), (None, "v1.0.1")]
    runs.git("tag", "--annotate", "-m", "withdrawn", f"{second}!", f"{second}^{{}}")  # GTO itself gives up here
    assert rows() == [("prod", "v1.0.0"), ("qa", "v1.0.0")]
