"""What many tests share: the tiny pipeline, run once."""

import os
from pathlib import Path

# One thread: a tiny model's matrices are too small to share, and waiting for a second thread costs most of the time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings
from project import commit, make_project, run

# A busy machine is no failure: properties have no time limit.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that ran `dvc repro` to the end and was committed. Tests must leave it as it is."""
    repository = make_project(tmp_path_factory.mktemp("pipeline"))
    commit(repository, "The project")
    run(repository, "dvc", "repro", "dedup")
    run(repository, "tunetrail", "holdout", "draw")
    run(repository, "dvc", "repro")
    commit(repository, "Release A")
    return repository
