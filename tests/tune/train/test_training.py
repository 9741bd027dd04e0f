"""Every method trains, and what is saved can be loaded and merged."""

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from project import set_params
from safetensors.torch import load_file
from stage_process import run_stage

from stages.core.files import read_json, remove


@pytest.fixture
def workspace(pipeline: Path, tmp_path: Path) -> Path:
    shutil.copytree(pipeline, tmp_path / "project", ignore=shutil.ignore_patterns(".git", "cache", "release"))
    remove(tmp_path / "project" / "models" / "adapter")
    return tmp_path / "project"


def train(workspace: Path, **settings: Any) -> dict[str, Any]:
    set_params(workspace, {"train": settings})
    code, text = run_stage(workspace, "train")
    assert code == 0, text
    metrics: dict[str, Any] = read_json(workspace / "metrics" / "train.json")
    return metrics


def curve(workspace: Path) -> list[float]:
    lines = (workspace / "metrics/curves/plots/metrics/train/loss.tsv").read_text().splitlines()
    return [float(line.split("\t")[1]) for line in lines[1:]]


@pytest.fixture(scope="module")
def two_cuts(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of eight rows a step, packed, in micro-batches of about four."""
    project = tmp_path_factory.mktemp("two-cuts") / "project"
    shutil.copytree(pipeline, project, ignore=shutil.ignore_patterns(".git", "cache", "release"))
    train(project, batch_size=8, learning_rate=1e-2, micro_batch_tokens=800)
    losses = curve(project)
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "lora", "adapter": "dora"}, id="dora"),
        pytest.param({"method": "lora", "adapter": "adalora", "early_stopping_patience": None}, id="adalora"),
        pytest.param({"method": "qlora", "checkpointing": True}, id="qlora"),
        pytest.param({"method": "full"}, id="full"),
        pytest.param({"method": "full", "precision": "bfloat16"}, id="full-half"),
        pytest.param({"method": "lora", "precision": "bfloat16", "dropout": 0.1}, id="lora-half"),
    ],
)
def test_method_trains_and_its_result_merges(workspace: Path, settings: dict[str, Any]) -> None:
    metrics = train(workspace, **settings)
    assert metrics["loss"]["validation_last"] < metrics["loss"]["validation_first"]
    share = metrics["parameters"]["trainable"] / metrics["parameters"]["all"]
    assert share == 1 if settings["method"] == "full" else share < 0.5
    code, text = run_stage(workspace, "merge_quantize")
    assert code == 0, text
    base = load_file(workspace / "models" / "base" / "model.safetensors")
    merged = load_file(workspace / "models" / "release" / "merged" / "model.safetensors")
    assert base.keys() == merged.keys()
    assert any(not torch.equal(base[name], merged[name]) for name in base)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"micro_batch_tokens": 10_000}, id="1x8"),
        pytest.param({"micro_batch_tokens": 1}, id="8x1"),
        pytest.param({"micro_batch_tokens": 600, "packing": False}, id="padded"),
        pytest.param({"micro_batch_tokens": 1, "packing": False}, id="padded-8x1"),
        pytest.param({"checkpointing": True}, id="recomputed"),
    ],
)
def test_how_a_batch_is_cut_changes_no_loss(workspace: Path, settings: dict[str, Any], two_cuts: list[float]) -> None:
    train(workspace, batch_size=8, learning_rate=1e-2, **settings)
    assert curve(workspace) == pytest.approx(two_cuts, rel=1e-4)


def run_out_of_memory(times: int) -> None:
    """Let this process's first passes over an optimiser batch fail half way, as a card that is too small does."""
    from stages.tune.train.steps import Steps

    compute, calls = Steps._forward_and_backward, [0]

    def failing(self: Any, *args: Any) -> Any:
        calls[0] += 1
        loss = compute(self, *args)
        if calls[0] <= times:
            raise torch.OutOfMemoryError
        return loss

    Steps._forward_and_backward = failing  # type: ignore[assignment, method-assign]


def test_memory_that_runs_out_once_changes_no_loss(workspace: Path, two_cuts: list[float]) -> None:
    set_params(workspace, {"train": {"batch_size": 8, "learning_rate": 1e-2}})
    code, text = run_stage(workspace, "train", functools.partial(run_out_of_memory, 1))
    assert code == 0, text
    assert "memory ran out: going on with" in text
    assert curve(workspace) == pytest.approx(two_cuts, rel=1e-4)
    assert read_json(workspace / "metrics" / "env" / "train.json")["computed"]["checkpointing"] is True


def test_memory_that_runs_out_twice_is_a_sentence(workspace: Path) -> None:
    code, text = run_stage(workspace, "train", functools.partial(run_out_of_memory, 2))
    assert code == 2
    assert "lower train.micro_batch_tokens" in text
    assert "Traceback" not in text


def test_only_the_named_layers_are_adapted(workspace: Path) -> None:
    train(workspace, layers_to_transform="1-1", epochs=1)
    names = load_file(workspace / "models" / "adapter" / "adapter_model.safetensors")
    assert names
    assert all(".layers.1." in name for name in names)


def test_training_stops_early_and_keeps_the_best(workspace: Path) -> None:
    metrics = train(workspace, learning_rate=0.5, epochs=8, early_stopping_patience=1, evaluate_every=2)
    assert metrics["best_step"] < metrics["steps"]


def test_layers_that_the_model_does_not_have_are_refused(workspace: Path) -> None:
    set_params(workspace, {"train": {"layers_to_transform": "1-29"}})
    code, text = run_stage(workspace, "train")
    assert code == 2
    assert "layers 0-1" in text
    assert "Traceback" not in text


def test_rows_that_are_all_too_long_are_refused(workspace: Path) -> None:
    set_params(workspace, {"train": {"max_tokens": 8}})
    code, text = run_stage(workspace, "train")
    assert code == 2
    assert "exceed train.max_tokens = 8" in text


def test_a_run_of_two_steps_has_a_curve(workspace: Path) -> None:
    metrics = train(workspace, epochs=2, batch_size=1000)
    assert metrics["steps"] == 2
    assert len(curve(workspace)) == 1
    assert metrics["loss"]["train_last"] == pytest.approx(curve(workspace)[-1])


def test_a_loss_that_is_no_number_stops_the_training(workspace: Path) -> None:
    file = workspace / "models" / "base" / "model.safetensors"
    from safetensors.torch import save_file

    weights = load_file(file)
    weights["model.norm.weight"][0] = float("inf")
    file.unlink()  # a link into the cache of all tests
    save_file(weights, file, metadata={"format": "pt"})
    set_params(workspace, {"train": {"batch_size": 1}})
    code, text = run_stage(workspace, "train")
    assert code == 1
    assert "training stopped at step" in text
    assert "Traceback" not in text
    assert not (workspace / "models" / "adapter").exists()
    assert not list((workspace / ".tunetrail").rglob("checkpoint-*"))


def test_weights_that_are_not_finite_stop_the_release(workspace: Path) -> None:
    train(workspace, epochs=1)
    file = workspace / "models" / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import save_file

    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    code, text = run_stage(workspace, "merge_quantize")
    assert code == 1
    assert "NaN or infinity" in text
    assert not (workspace / "models" / "release" / "merged").exists()
