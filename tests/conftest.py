"""What many tests share: the tiny pipeline, run once."""

import gc
import os
import shutil
import sys
from pathlib import Path

# One thread: a tiny model's matrices are too small to share, and waiting for a second thread costs most of the time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # two test processes share the cores, so nothing spins
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import stage_server
from filelock import FileLock
from hypothesis import settings
from project import commit, make_project, run

gc.disable()  # until all is imported
# A busy machine is no failure: properties have no time limit. The same examples each time; the drill draws new ones.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

# The first makes the pipeline, the next need none meanwhile.
_LONGEST = ("test_docs.py", "tests/tune/train/", "tests/pipeline/", "test_sketched.py")


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder that the processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    stage_server.session[:] = [folder if worker_id == "master" else folder.parent]
    return stage_server.session[0]


@pytest.fixture(autouse=True)
def float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test computes must not hang on the processor that it runs on."""
    if loading := sys.modules.get("stages.model.loading"):
        monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda: False)


@pytest.fixture(scope="session")
def pipeline(shared: Path) -> Path:
    """A project that ran `dvc repro` to the end and was committed. Tests read it; commands run in a `copy`.

    The processes of pytest-xdist share one: the first that needs it makes it.
    """
    done = shared / "pipeline.done"
    with FileLock(shared / "pipeline.lock"):
        if not done.exists():
            repository = make_project(shared / "pipeline")
            commit(repository, "The project")
            run(repository, "dvc", "repro", "dedup")
            run(repository, "tunetrail", "holdout", "draw")
            done_by_dvc = run(repository, "dvc", "repro")
            assert "WARNING" not in done_by_dvc.stdout + done_by_dvc.stderr  # an empty dependency, say
            commit(repository, "Release A")
            done.write_text(str(repository))
    return Path(done.read_text())


@pytest.fixture
def copy(pipeline: Path, tmp_path: Path) -> Path:
    """The finished pipeline with its repository, cache and memory of generations, to change at will."""
    shutil.copytree(pipeline.parent, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / pipeline.name


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts this Python with `-m dvc` or a stage is forked from a process that has their libraries loaded."""
    monkeypatch.setattr(sys, "executable", str(stage_server.programs() / "python"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores: a quarter of the time they wait, for servers, for each other, for the disk."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no process of pytest-xdist is left alone with one at the end."""
    items.sort(key=lambda item: next((n for n, name in enumerate(_LONGEST) if name in item.nodeid), len(_LONGEST)))


def pytest_collection_finish() -> None:
    """What is loaded by now stays, and garbage is small: looking for it took a tenth of all the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
    gc.enable()
