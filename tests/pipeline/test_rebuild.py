"""The whole pipeline with the tiny model, made again by `tunetrail reproduce`: the same bytes, on the same machine."""

import shutil
import sys
from pathlib import Path

import pytest
from project import run
from stage_server import programs

from stages.core.git import Repository
from stages.ship.release.registry import write_tag
from stages.ship.release.reproduce import reproduce


def test_a_release_of_the_tiny_model_is_made_again(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(programs() / "python"))
    shutil.copytree(pipeline.parent, tmp_path / "copy", symlinks=True)
    repository = tmp_path / "copy" / pipeline.name
    head = run(repository, "git", "rev-parse", "HEAD").stdout.strip()
    run(repository, "git", "config", "user.name", "Tester")
    run(repository, "git", "config", "user.email", "tester@example.com")
    write_tag(Repository(repository), "support-tickets@v1.0.0", head, {"format": 1, "commit": head})
    said = reproduce(repository, "1.0.0")
    assert said.startswith("PASSED: support-tickets@v1.0.0 was made again, and all ")
