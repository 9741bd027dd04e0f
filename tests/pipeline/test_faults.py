"""A stage that is killed half way and run again ends with the bytes of an undisturbed run."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from project import set_params, stage_outputs
from stage_process import die_first, die_saving_a_checkpoint, die_second, die_training, run_stage

from stages.core.files import remove

WRITES_TWO = ["clean", "dedup", "split", "augment", "baseline", "evaluate", "merge_quantize", "manifest", "report"]


@pytest.fixture(scope="module")
def workspace(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished pipeline in which stages may be broken; each test mends what it broke."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(pipeline.parent, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", "cache"))
    return folder / pipeline.name


def kill_and_run_again(workspace: Path, stage: str, die: Callable[[], None]) -> str:
    """Delete the stage's outputs as DVC does, kill the stage, run it again; return what the second run said."""
    before = stage_outputs(workspace, stage)
    for place in before:
        remove(workspace / place)
    code, _ = run_stage(workspace, stage, die)
    assert code == -signal.SIGKILL
    code, text = run_stage(workspace, stage)
    assert code == 0, text
    assert stage_outputs(workspace, stage) == before
    return text


def test_base_killed_while_writing(workspace: Path) -> None:
    kill_and_run_again(workspace, "base", die_first)


@pytest.mark.parametrize("stage", WRITES_TWO)
def test_stage_killed_before_its_second_output(workspace: Path, stage: str) -> None:
    kill_and_run_again(workspace, stage, die_second)


def test_training_resumes_from_its_checkpoint(workspace: Path) -> None:
    text = kill_and_run_again(workspace, "train", die_training)
    assert "checkpoint-8" in text


def test_training_skips_a_half_written_checkpoint(workspace: Path) -> None:
    text = kill_and_run_again(workspace, "train", die_saving_a_checkpoint)
    assert "checkpoint-4" in text


def test_training_killed_while_saving_the_adapter(workspace: Path) -> None:
    kill_and_run_again(workspace, "train", die_first)


def test_training_refuses_a_checkpoint_of_other_parameters(workspace: Path) -> None:
    before = stage_outputs(workspace, "train")
    code, _ = run_stage(workspace, "train", die_training)
    assert code == -signal.SIGKILL
    set_params(workspace, {"train": {"learning_rate": 5e-4}})
    code, text = run_stage(workspace, "train")
    assert code == 0
    assert "not used" in text
    assert "going on from" not in text
    assert stage_outputs(workspace, "train")["models/sft"] != before["models/sft"]
    # The first run's checkpoint is still there for the first run's parameters.
    set_params(workspace, {"train": {"learning_rate": 1e-3}})
    code, text = run_stage(workspace, "train")
    assert "going on from" in text
    assert stage_outputs(workspace, "train") == before
