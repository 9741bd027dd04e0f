"""The pull request workflows: clean for actionlint, and their `run:` blocks executed on a real clone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scratch import Scratch

from stages.core.yaml_reader import load_yaml

pytest_plugins = ["scratch_fixtures"]

ROOT = Path(__file__).parents[3]
WORKFLOWS = ROOT / ".github/workflows"
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="the stand-in for gh filters with jq, as gh does")

MAKE = '#!/bin/sh\necho "make $*" >> "$CALLS"\n'

# Stands in for the installed command: the same code, under the interpreter that runs the tests.
TUNETRAIL = """#!{python}
import sys
sys.path[:0] = [{root!r}]
from stages.cli import main
main()
"""

# Answers from files, filters with jq as gh does, and writes down every call.
GH = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
arguments = sys.argv[1:]
folder = pathlib.Path(os.environ["GH_ANSWERS"])
with open(os.environ["CALLS"], "a") as calls:
    calls.write("gh " + json.dumps(arguments) + "\\n")
if arguments[:2] == ["run", "download"]:
    if not (folder / "artifact").is_dir():
        sys.exit("no artifact matches any of the names or patterns provided")
    shutil.copytree(folder / "artifact", arguments[arguments.index("--dir") + 1], symlinks=True)
elif "--method" in arguments:
    field = arguments[arguments.index("--field") + 1]
    shutil.copy(field.removeprefix("body=@"), folder / "posted.md")
else:
    path = next(a for a in arguments if a.startswith("repos/"))
    name = "pulls.json" if "/pulls?" in path else path.split("/")[4] + ".json"
    query = arguments[arguments.index("--jq") + 1]
    sys.exit(subprocess.run(["jq", "--raw-output", query, folder / name]).returncode)
"""


def workflow(name: str) -> dict[str, Any]:
    content: dict[str, Any] = load_yaml((WORKFLOWS / name).read_text())
    return content


def steps(name: str) -> list[dict[str, Any]]:
    (job,) = workflow(name)["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def run_blocks(name: str, folder: Path, environment: dict[str, str]) -> list[int]:
    """Run every `run:` block in order, as the runner does; the exit code of each."""
    blocks = [step["run"] for step in steps(name) if "run" in step]
    everything = {**os.environ, **environment}
    runs = (subprocess.run(["bash", "-e", "-c", block], cwd=folder, env=everything, check=False) for block in blocks)
    return [run.returncode for run in runs]


def put_command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=sys.executable, root=str(ROOT)) if "{python}" in text else text)
    path.chmod(0o755)


def test_actionlint_is_content() -> None:
    command = [str(Path(sys.executable).parent / "actionlint"), *map(str, sorted(WORKFLOWS.glob("*.yml")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["pull-request.yml", "pull-request-comment.yml"])
def test_no_block_is_put_together_from_the_event(name: str) -> None:
    """A branch named `$(...)` must stay a value: what comes from outside reaches the shell as a variable."""
    assert all("${{" not in step.get("run", "") for step in steps(name))


def test_code_of_the_pull_request_runs_without_rights_and_rights_run_without_it() -> None:
    assert workflow("pull-request.yml")["permissions"] == {"contents": "read"}
    comment = workflow("pull-request-comment.yml")
    assert comment["permissions"] == {}
    assert comment["on"]["workflow_run"]["workflows"] == [workflow("pull-request.yml")["name"]]
    assert comment["jobs"]["comment"]["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert all("uses" not in step for step in steps("pull-request-comment.yml"))
    upload = next(step for step in steps("pull-request.yml") if "upload-artifact" in step.get("uses", ""))
    assert f"--name {upload['with']['name']}" in steps("pull-request-comment.yml")[0]["run"]


@pytest.fixture
def pull_request(scratch: Scratch, tmp_path: Path) -> tuple[Scratch, dict[str, str]]:
    """A clone on the branch of a pull request: no cache, no remote, `origin/main` is the base."""
    scratch.git("checkout", "--quiet", "-b", "faster")
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.replace("stages/run.py", '"value": 0.97, "low"', '"value": 0.99, "low"')
    scratch.dvc("repro")
    scratch.commit("Faster")
    scratch.git("checkout", "--quiet", "main")
    scratch.git("clone", "--quiet", "--branch", "faster", str(scratch.root), str(tmp_path / "clone"))
    clone = Scratch(tmp_path / "clone")
    put_command(tmp_path / "bin/make", MAKE)
    put_command(clone.root / ".venv/bin/tunetrail", TUNETRAIL)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "GITHUB_BASE_REF": "main",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    return clone, environment


def test_pull_request(pull_request: tuple[Scratch, dict[str, str]]) -> None:
    clone, environment = pull_request
    clone.write("metrics/report.md", "## ✅ PASS: ready to release\n")
    assert run_blocks("pull-request.yml", clone.root, environment) == [0, 0, 0, 0]
    assert Path(environment["CALLS"]).read_text() == "make setup\nmake test\n"
    text = (clone.root / "comment.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert ["", "`train.learning_rate`", "0.001", "0.002", "parameter", ""] in rows
    metric = next(row for row in rows if "`adapter exact_match`" in row)
    assert metric[2:] == ["97.0 % (90.0 to 98.0 %)", "99.0 % (90.0 to 98.0 %)", "▲ beyond the interval", ""]
    assert any(row[1:3] == ["`exact_match`", "PASS"] for row in rows if len(row) > 2)
    assert "dvc.lock is fresh" in text
    folded = "<details><summary>The report of this run</summary>\n\n## ✅ PASS: ready to release\n\n</details>\n"
    assert text.endswith(folded)
    assert Path(environment["GITHUB_STEP_SUMMARY"]).read_text() == text


def test_pull_request_with_a_stale_lock(pull_request: tuple[Scratch, dict[str, str]], capfd: Any) -> None:
    """The check fails and names the stages; the comment is still made, and says so."""
    clone, environment = pull_request
    clone.replace("stages/train/loop.py", "1", "2")
    clone.replace("params.yaml", "seed: 1", "seed: 2")
    clone.write("data/raw/b.jsonl", "{}\n")
    clone.commit("Edits without a run")
    assert run_blocks("pull-request.yml", clone.root, environment) == [0, 0, 1, 0]
    said = capfd.readouterr().err
    text = (clone.root / "comment.md").read_text()
    for sentence in "clean: data/raw modified", "split: parameter seed modified", "train: stages/train modified":
        assert sentence in said
        assert f"- {sentence}" in text
    for fresh in ("base:", "evaluate:", "merge_quantize:"):
        assert fresh not in said


@pytest.fixture
def event(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The folder of the comment's job, and what a run of the head commit aaaa left."""
    answers = tmp_path / "answers"
    (answers / "artifact").mkdir(parents=True)
    (answers / "artifact/comment.md").write_text("## Tunetrail\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    pulls = [
        {"number": 7, "head": {"sha": "a" * 40}},
        {"number": 8, "head": {"sha": "b" * 40}},
    ]
    (answers / "pulls.json").write_text(json.dumps(pulls))
    (answers / "7.json").write_text("[]")
    put_command(tmp_path / "bin/gh", GH)
    (tmp_path / "job").mkdir()
    job = workflow("pull-request-comment.yml")["jobs"]["comment"]
    known = {"GH_TOKEN": "none", "GH_REPO": "team/model", "RUN_ID": "99", "HEAD_SHA": "a" * 40}
    environment = {name: known.get(name, str(value)) for name, value in job["env"].items()}
    return tmp_path / "job", {
        **environment,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "GH_ANSWERS": str(answers),
    }


def written(environment: dict[str, str]) -> list[list[str]]:
    """The calls of gh that change something: method and path."""
    lines = Path(environment["CALLS"]).read_text().splitlines()
    calls = [json.loads(line.removeprefix("gh ")) for line in lines]
    return [call[call.index("--method") + 1 :][:2] for call in calls if "--method" in call]


def posted(environment: dict[str, str]) -> str:
    return (Path(environment["GH_ANSWERS"]) / "posted.md").read_text()


@needs_jq
def test_comment_goes_to_the_pull_request_of_the_head_commit(event: tuple[Path, dict[str, str]]) -> None:
    folder, environment = event
    assert run_blocks("pull-request-comment.yml", folder, environment) == [0, 0, 0]
    assert written(environment) == [["POST", "repos/team/model/issues/7/comments"]]
    assert posted(environment).splitlines()[:2] == ["<!-- tunetrail -->", "## Tunetrail"]
    assert "| 1 | 2 |" in posted(environment)


@needs_jq
def test_comment_replaces_its_own_earlier_one(event: tuple[Path, dict[str, str]]) -> None:
    folder, environment = event
    comments = [
        {"id": 1, "user": {"login": "github-actions[bot]"}, "body": "Coverage"},
        {"id": 2, "user": {"login": "mallory"}, "body": "<!-- tunetrail --> mine"},
        {"id": 3, "user": {"login": "github-actions[bot]"}, "body": "<!-- tunetrail -->\nold"},
        {"id": 4, "user": {"login": "github-actions[bot]"}, "body": "<!-- tunetrail -->\nolder"},
    ]
    (Path(environment["GH_ANSWERS"]) / "7.json").write_text(json.dumps(comments))
    assert run_blocks("pull-request-comment.yml", folder, environment) == [0, 0, 0]
    assert written(environment) == [["PATCH", "repos/team/model/issues/comments/3"]]


@needs_jq
def test_comment_of_a_commit_that_is_no_longer_the_head(event: tuple[Path, dict[str, str]]) -> None:
    folder, environment = event
    assert run_blocks("pull-request-comment.yml", folder, {**environment, "HEAD_SHA": "c" * 40}) == [0, 0, 0]
    assert written(environment) == []


@needs_jq
def test_comment_without_an_artifact(event: tuple[Path, dict[str, str]]) -> None:
    folder, environment = event
    shutil.rmtree(Path(environment["GH_ANSWERS"]) / "artifact")
    assert run_blocks("pull-request-comment.yml", folder, environment) == [0, 0, 0]
    assert written(environment) == []


@needs_jq
def test_comment_takes_the_text_as_anyones_text(event: tuple[Path, dict[str, str]]) -> None:
    """No mention, HTML, link, image or hidden mark survives, nor any byte that is no UTF-8; the length is bounded."""
    folder, environment = event
    text = b"<details onclick=1><details><summary>x</summary></details>"
    text += b"@everyone <script>x</script> <!-- hidden --> [pay](https://x.y) ![i](https://x.y)"
    text += b"\xff\x00\x1b[31m $(id) `id`\n"
    (Path(environment["GH_ANSWERS"]) / "artifact/comment.md").write_bytes(text + "ü<@".encode() * 60_000)
    assert run_blocks("pull-request-comment.yml", folder, environment) == [0, 0, 0]
    body = posted(environment)
    rest = body.removeprefix("<!-- tunetrail -->")
    assert rest != body
    assert re.findall("<[^>]*>?", rest) == ["<details>", "<summary>", "</summary>", "</details>"]
    assert "](" not in rest
    assert "@e" not in rest
    assert "@ü" not in rest
    assert not {"\0", "\x1b"} & set(rest)
    assert "$(id) `id`" in rest
    assert len(body.encode()) <= 60_000


@needs_jq
def test_comment_does_not_follow_a_link_out_of_the_artifact(event: tuple[Path, dict[str, str]]) -> None:
    folder, environment = event
    artifact = Path(environment["GH_ANSWERS"]) / "artifact/comment.md"
    artifact.unlink()
    artifact.symlink_to("/etc/hostname")
    assert run_blocks("pull-request-comment.yml", folder, environment) == [0, 0, 0]
    assert written(environment) == []
