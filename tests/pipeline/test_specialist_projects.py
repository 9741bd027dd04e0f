"""The commands of docs/specialists.md on the tiny pipeline: two tasks trained by a matrix, released and served."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml
from project import ROOT, commit, run, set_params
from test_docs import commands

from stages.core.files import file_digest, read_json
from stages.core.yaml_reader import load_yaml
from stages.params.measure import STANDING

EXAMPLE = Path("examples/specialists")
NAMES = ("returns", "billing")
MATRIX = "dvc --cd ../specialists repro --keep-going"


def make_repository(pipeline: Path, folder: Path) -> Path:
    """The tiny pipeline with a remote, and gates that let a model pass that has learnt nothing."""
    shutil.copytree(pipeline.parent, folder, symlinks=True)
    repository = folder / pipeline.name
    shutil.copytree(ROOT / EXAMPLE, repository / EXAMPLE, ignore=shutil.ignore_patterns("__pycache__"))
    set_params(repository, {"quantize": {"formats": ["merged", "lora"]}})
    params = load_yaml((repository / "params.yaml").read_text(encoding="utf-8"))
    (repository / "params.yaml").write_text(dumps_yaml(params | {"gates": dict.fromkeys(STANDING)}), encoding="utf-8")
    general = repository / "data/general.jsonl"
    general.write_text("".join(general.read_text(encoding="utf-8").splitlines(True)[:4]), encoding="utf-8")
    run(repository, "dvc", "remote", "add", "--default", "store", str(folder / "remote"))
    commit(repository, "Specialists are to come")
    return repository


def test_two_tasks_are_trained_by_a_matrix_released_apart_and_served_together(pipeline: Path, tmp_path: Path) -> None:
    repository = make_repository(pipeline, tmp_path / "copy")
    for command in commands(ROOT / "docs/specialists.md"):
        said = run(repository, "bash", "-c", command).stdout
    assert "tags     returns@v1.0.0" in said  # the last command: a manifest kept by the matrix, traced
    together, projects = repository.parent / "specialists", {name: repository.parent / name for name in NAMES}
    rows = {name: {row["id"] for row in holdout(project)} for name, project in projects.items()}
    assert all(rows.values())
    assert not rows["returns"] & rows["billing"]
    for name, project in projects.items():
        assert file_digest(together / name / "manifest.json") == file_digest(project / "models/release/manifest.json")
        assert run(project, "git", "tag", "--list", f"{name}@*").stdout.strip() == f"{name}@v1.0.0"
    assert run(together, "git", "status", "--porcelain").stdout == ""
    serve_and_ask(repository, projects)

    # One whose gates fail keeps what was kept of it, and the other, which comes after it, runs all the same.
    strict = {"exact_match": {"model": "adapter", "metric": "exact_match", "minimum": 0.9, "evidence": "value"}}
    set_params(projects["returns"], {"gates": strict})
    before = {name: (together / name / "manifest.json").read_bytes() for name in NAMES}
    done = run(repository, "bash", "-c", MATRIX, check=False)
    assert done.returncode != 0
    assert "verdict: FAIL" in done.stdout
    assert done.stdout.count("verdict: PASS") == 1
    assert {name: (together / name / "manifest.json").read_bytes() for name in NAMES} == before
    assert read_json(projects["billing"] / "metrics/gates.json")["verdict"] == "PASS"
    commit(projects["returns"], "Stricter gates")
    refused = run(projects["returns"], "tunetrail", "release", "1.1.0", "--no-push-check", "a test", check=False)
    assert (refused.returncode, "the gates are FAIL" in refused.stderr) == (1, True)
    assert run(projects["billing"], "git", "status", "--porcelain").stdout == ""
    assert "is the signature" in run(projects["billing"], "tunetrail", "verify", "--key", "../release-key.pub").stdout


def holdout(project: Path) -> list[dict[str, str]]:
    lines = (project / "data/split/holdout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def serve_and_ask(repository: Path, projects: dict[str, Path]) -> None:
    """As the page prints it; the server has smoke-tested each specialist by its golden prompts before it answers."""
    words = [word for name in NAMES for word in ("--adapter", f"{name}=../{name}/models/release")]
    command = [sys.executable, "-m", "stages.cli", "serve", *words, "--key", "../release-key.pub", "--context", "512"]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=repository, **streams) as server:
        try:
            assert server.stdout is not None
            lines = []
            for line in server.stdout:
                lines.append(line)
                if found := re.match(r"billing@v1\.0\.0 by llama\.cpp at (http://\S+)/v1, as billing$", line):
                    break
            else:
                raise AssertionError("".join(lines))
            for name in NAMES:
                body = {"model": name, "messages": [{"role": "user", "content": "Where is K-1000?"}], "max_tokens": 4}
                request = urllib.request.Request(
                    f"{found[1]}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=60) as reply:
                    assert reply.headers["X-Release"] == f"{name}@v1.0.0"
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
