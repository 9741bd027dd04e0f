"""Retraining on a runner: examples/gpu/retrain.sh and the workflows around it, with a bare origin and a DVC remote."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scratch import ENVIRONMENT, Scratch
from stage_server import programs

from stages.core.yaml_reader import load_yaml

pytest_plugins = ["scratch_fixtures"]

ROOT = Path(__file__).parents[1]
WORKFLOWS, GITLAB, SKY = ROOT / ".github/workflows", ROOT / ".gitlab-ci.yml", ROOT / "examples/gpu/gpu.yaml"
NAMED = ("make", "gh", "sky", "pip", "curl", "sudo")
STAND_IN = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'


class Place:
    """A developer's repository with a bare origin and a DVC remote, and the runner's clone of it."""

    def __init__(self, scratch: Scratch, folder: Path) -> None:
        self.origin, self.remote, self.folder, self.calls = (
            folder / "origin.git",
            folder / "remote",
            folder,
            folder / "calls",
        )
        self.developer = scratch
        scratch.write("examples/gpu/retrain.sh", (ROOT / "examples/gpu/retrain.sh").read_text())
        scratch.write(".gitignore", (scratch.root / ".gitignore").read_text() + ".venv/\n.tunetrail/\n")
        scratch.write("metrics/report.md", "## PASS: ready to release\n")
        scratch.dvc("remote", "add", "--default", "store", str(self.remote))
        scratch.commit("Settings")
        scratch.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.origin))
        scratch.git("remote", "add", "origin", str(self.origin))
        scratch.git("push", "--quiet", "origin", "main")
        scratch.dvc("push", "--run-cache")
        for name in NAMED:
            self._put(folder / "bin" / name, STAND_IN)

    def _put(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def machine(self, name: str, revision: str = "main") -> Scratch:
        """A bare machine that cloned the repository; `make setup` has put its programs there."""
        clone = self.folder / name
        self.developer.git("clone", "--quiet", "--branch", revision, str(self.origin), str(clone))
        self.equip(clone)
        return Scratch(clone)

    def equip(self, clone: Path) -> None:
        for command in ("python", "tunetrail", "dvc"):
            self._put(clone / ".venv/bin" / command, f'#!/bin/sh\nexec {programs() / command} "$@"\n')

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{ENVIRONMENT['PATH']}"
        names = {key: value for key, value in os.environ.items() if not key.startswith("GIT_AUTHOR")}
        return {**names, **ENVIRONMENT, "PATH": path, "CALLS": str(self.calls), "HOME": str(self.folder), **more}

    def run(self, block: str, where: Path, **more: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(**more)
        return subprocess.run(
            ["bash", "-e", "-c", block], cwd=where, env=environment, capture_output=True, text=True, check=False
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def place(scratch: Scratch, tmp_path: Path) -> Place:
    """With a change of the learning rate on the branch `faster` that nobody has run."""
    there = Place(scratch, tmp_path)
    scratch.git("checkout", "--quiet", "-b", "faster")
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.commit("Try a higher rate")
    scratch.git("push", "--quiet", "origin", "faster")
    return there


def job(file: Path, name: str) -> dict[str, Any]:
    content = load_yaml(file.read_text())
    found: dict[str, Any] = content["jobs"][name] if "jobs" in content else content[name]
    return found


def blocks(file: Path, name: str) -> list[str]:
    """The shell of a job, a block a step."""
    found = job(file, name)
    return [step["run"] for step in found["steps"] if "run" in step] if "steps" in found else found["script"]


def test_the_result_is_a_branch_whose_files_the_remote_has(place: Place) -> None:
    runner = place.machine("runner", "faster")
    shared = place.folder / "shared"
    done = place.run("bash examples/gpu/retrain.sh faster", runner.root, CHECKPOINTS=str(shared))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Pushed to faster: verdict: PASS"
    assert (runner.root / ".tunetrail/checkpoints").resolve() == shared
    reviewer = place.machine("reviewer", "faster")
    assert reviewer.git("log", "-1", "--format=%s") == "Retrain: verdict: PASS"
    reviewer.dvc("pull")
    adapter = "models/adapter/adapter.safetensors"
    assert (reviewer.root / adapter).read_bytes() == (runner.root / adapter).read_bytes()
    assert reviewer.tunetrail("lock-check").code == 0
    assert reviewer.git("status", "--porcelain") == ""
    # Once more changes nothing, and says so.
    again = place.run("bash examples/gpu/retrain.sh faster", runner.root)
    assert again.stdout.splitlines()[-1].startswith("Nothing changed: ")


def test_what_somebody_pushed_meanwhile_stays(place: Place) -> None:
    runner = place.machine("runner", "faster")
    place.developer.write("notes.md", "Mine\n")
    theirs = place.developer.commit("Meanwhile")
    place.developer.git("push", "--quiet", "origin", "faster")
    done = place.run("bash examples/gpu/retrain.sh faster", runner.root)
    assert done.returncode == 0, done.stderr
    ours = runner.git("rev-parse", "HEAD")
    assert place.developer.git("ls-remote", "origin", "faster").split()[0] == theirs
    (beside,) = [line for line in place.developer.git("ls-remote", "origin").splitlines() if ours in line]
    assert beside.split("refs/heads/")[1].startswith("faster-")


def test_a_machine_that_dies_leaves_the_branch_as_it_was_and_the_next_one_ends_it(place: Place) -> None:
    before = place.developer.git("ls-remote", "origin", "faster").split()[0]
    runner = place.machine("first", "faster")
    dying = subprocess.Popen(
        ["bash", "examples/gpu/retrain.sh", "faster"], cwd=runner.root, env=place.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    adapter = runner.root / "models/adapter/adapter.safetensors"
    while not adapter.exists() and dying.poll() is None:
        time.sleep(0.05)
    os.killpg(dying.pid, signal.SIGKILL)
    dying.wait()
    assert place.developer.git("ls-remote", "origin", "faster").split()[0] == before
    following = place.machine("second", "faster")
    done = place.run("bash examples/gpu/retrain.sh faster", following.root)
    assert done.returncode == 0, done.stderr
    assert following.tunetrail("lock-check").code == 0


def test_a_remote_that_is_gone_ends_it_before_the_commit(place: Place) -> None:
    runner = place.machine("runner", "faster")
    shutil.rmtree(place.remote)
    place.remote.write_text("no folder")
    done = place.run("bash examples/gpu/retrain.sh faster", runner.root)
    assert done.returncode != 0
    assert runner.git("log", "-1", "--format=%s") == "Try a higher rate"


def test_github_runner_of_your_own_opens_a_pull_request(place: Place) -> None:
    runner = place.machine("runner", "faster")
    retrain, ask = blocks(WORKFLOWS / "retrain.yml", "self-hosted")
    known = {"BRANCH": "retrain/7", "BASE": "main"}
    # On the branch of a pull request there is one already.
    for block, new in ((retrain, "true"), (ask, "false"), (ask, "true")):
        done = place.run(block, runner.root, IS_NEW=new, **known)
        assert done.returncode == 0, done.stderr
    created = [call for call in place.called() if call.startswith("gh pr create")]
    assert created == [
        "gh pr create --head retrain/7 --base main --title Retrain: verdict: PASS --body-file metrics/report.md"
    ]


def test_github_no_fork_and_no_other_label_trains() -> None:
    for name in ("self-hosted", "rented"):
        condition = job(WORKFLOWS / "retrain.yml", name)["if"]
        assert f"vars.RETRAIN_ON == '{name}'" in condition
        assert "github.event.label.name == 'retrain'" in condition
        assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
        assert all("${{" not in block for block in blocks(WORKFLOWS / "retrain.yml", name))


def test_github_rented_machine(place: Place) -> None:
    """The job itself only asks SkyPilot, by its own options; the branch that the machine pushed becomes a request."""
    runner = place.machine("runner", "faster")
    place.developer.git("push", "--quiet", "origin", "faster:retrain/7")
    known = {"BRANCH": "retrain/7", "BASE": "main", "IS_NEW": "true"}
    for block in blocks(WORKFLOWS / "retrain.yml", "rented"):
        done = place.run(block, runner.root, **known)
        assert done.returncode == 0, done.stderr
    pip, sky, gh = place.called()
    assert pip.startswith("pip install --quiet skypilot[aws]==")
    assert sky == (
        "sky jobs launch --yes --name retrain-retrain-7 examples/gpu/gpu.yaml "
        "--env BRANCH --env REPOSITORY --env REVISION --secret GIT_TOKEN"
    )
    assert gh.startswith("gh pr create --head retrain/7 --base main --title Try a higher rate")


def test_the_rented_machine_clones_and_pushes(place: Place) -> None:
    task = load_yaml(SKY.read_text())
    assert set(task) == {"name", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
    machine = place.folder / "rented"
    machine.mkdir()
    assert place.run(task["setup"], machine).returncode == 0
    block = task["run"].replace(
        "bash examples/gpu/retrain.sh", 'cp -r "$EQUIPMENT/.venv" . && bash examples/gpu/retrain.sh'
    )
    place.equip(place.folder / "equipment")
    known = {"REPOSITORY": str(place.origin), "REVISION": "faster", "BRANCH": "faster", "GIT_TOKEN": "not-to-be-seen"}
    known |= {"CHECKPOINTS": str(place.folder / "shared"), "EQUIPMENT": str(place.folder / "equipment")}
    # Outside git's own variables, which would keep `--global` from the HOME of this machine.
    done = place.run(f"unset GIT_CONFIG_GLOBAL\n{block}", machine, **known)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Pushed to faster: verdict: PASS"
    kept = [file for file in (place.folder / ".gitconfig", machine / "tunetrail/.git/config") if file.exists()]
    assert all(
        "not-to-be-seen" not in text for text in (done.stdout, done.stderr, *(file.read_text() for file in kept))
    )


def test_of_several_rented_machines_the_others_train_along_and_push_nothing(place: Place) -> None:
    runner, bin = place.machine("other", "faster"), place.folder / "other/.venv/bin"
    for name in ("dvc", "python", "tunetrail"):
        place._put(bin / name, STAND_IN)
    (place.folder / "other/.dvc/config").write_text("")
    done = place.run("bash examples/gpu/retrain.sh faster", runner.root, SKYPILOT_NODE_RANK="1")
    assert done.returncode == 0, done.stderr
    assert place.called()[-2:] == ["dvc repro base augment", "python -m stages.tune.train"]
    assert not any(call.startswith("tunetrail") for call in place.called())


@pytest.fixture
def released(place: Place) -> Place:
    place.developer.git("checkout", "--quiet", "main")
    assert (answer := place.developer.tunetrail("release", "1.0.0")).code == 0, answer.err
    place.developer.git("push", "--quiet", "--tags", "origin", "main")
    return place


def test_github_release_is_checked_on_another_machine(released: Place) -> None:
    runner = released.machine("runner", "support-tickets@v1.0.0")
    for block in blocks(WORKFLOWS / "release.yml", "release"):
        done = released.run(block, runner.root, TAG="support-tickets@v1.0.0")
        assert done.returncode == 0, done.stderr
    assert (runner.root / "trace.json").stat().st_size
    (call,) = [call for call in released.called() if call.startswith("gh")]
    assert call.startswith("gh release create support-tickets@v1.0.0 --verify-tag")
    assert " trace.json dvc.lock models/release/manifest.json models/release/README.md" in call


def test_github_release_of_other_bytes_is_not_published(released: Place) -> None:
    runner = released.machine("runner", "support-tickets@v1.0.0")
    setup, fetch, check, _ = blocks(WORKFLOWS / "release.yml", "release")
    for block in (setup, fetch):
        assert released.run(block, runner.root, TAG="support-tickets@v1.0.0").returncode == 0
    file = runner.root / "models/release/merged/model.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert released.run(check, runner.root).returncode == 1


def test_gitlab_pipeline_fits_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci", str(GITLAB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_gitlab_jobs(released: Place) -> None:
    """Each job's script, in an order in which GitLab could run them."""
    reviewed = released.machine("reviewed", "faster")
    known = {"CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main"}
    done = released.run("\n".join(blocks(GITLAB, "compare")), reviewed.root, **known)
    assert done.returncode == 0, done.stderr
    text = (reviewed.root / "comment.md").read_text()
    assert "`train.learning_rate`" in text
    assert text.endswith("## PASS: ready to release\n\n</details>\n")
    assert released.run("\n".join(blocks(GITLAB, "check")), reviewed.root).returncode == 1  # nobody ran the branch

    known = {"CI_API_V4_URL": "https://gitlab.example/api/v4", "CI_PROJECT_ID": "7", "CI_MERGE_REQUEST_IID": "3"}
    done = released.run("\n".join(blocks(GITLAB, "comment")), reviewed.root, COMMENT_TOKEN="not-to-be-seen", **known)
    assert done.returncode == 0, done.stderr
    assert released.called()[-1].endswith(
        "body@note.md https://gitlab.example/api/v4/projects/7/merge_requests/3/notes"
    )

    runner = released.machine("runner", "faster")
    known = {"CI_PROJECT_URL": str(released.origin).removesuffix(".git"), "CI_PIPELINE_ID": "9"}
    done = released.run("\n".join(blocks(GITLAB, "retrain")), runner.root, RETRAIN_TOKEN="not-to-be-seen", **known)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Pushed to retrain/9: verdict: PASS"

    proved = released.machine("proved", "support-tickets@v1.0.0")
    known = {"CI_COMMIT_TAG": "support-tickets@v1.0.0", "CI_API_V4_URL": "https://gitlab.example", "CI_PROJECT_ID": "7"}
    done = released.run("\n".join(blocks(GITLAB, "release")), proved.root, CI_JOB_TOKEN="not-to-be-seen", **known)
    assert done.returncode == 0, done.stderr
    assert released.called()[-1].endswith("description@metrics/report.md https://gitlab.example/projects/7/releases")
    assert all("not-to-be-seen" not in call for call in released.called())
