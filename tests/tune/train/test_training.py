"""Every method trains with its engine, and what is saved can be loaded and merged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from project import commit, run, set_params
from safetensors.torch import load_file, save_file
from stage_process import die_saving_a_checkpoint, die_training, run_stage
from training_project import curve, lay_out, train

from stages.core import paths
from stages.core.files import read_json, tree_digest, write_json
from stages.tune.train.callbacks import checkpoint_folder

EIGHT_ROWS = {"batch_size": 8, "learning_rate": 1e-2, "early_stopping_patience": None}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "project")


def speed(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"TUNETRAIL_{name.upper()}", json.dumps(value).strip('"'))


@pytest.fixture(scope="module")
def two_cuts(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of TRL for eight rows a step, padding-free, in micro-batches of four."""
    project = lay_out(tmp_path_factory.mktemp("two-cuts") / "project")
    with pytest.MonkeyPatch.context() as patch:
        speed(patch, micro_batch_tokens=720)
        train(project, engine="trl", **EIGHT_ROWS)
    losses = curve(project)
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        pytest.param("trl", {"method": "lora", "adapter": "dora"}, id="dora"),
        pytest.param("trl", {"method": "lora", "adapter": "adalora", "early_stopping_patience": None}, id="adalora"),
        pytest.param("trl", {"method": "qlora"}, id="qlora"),
        pytest.param("trl", {"method": "full"}, id="full"),
        pytest.param("trl", {"method": "lora", "precision": "bfloat16", "dropout": 0.1}, id="lora-half"),
        pytest.param("fused", {"method": "qlora"}, id="fused-qlora"),
        pytest.param("fused", {"method": "full", "precision": "bfloat16"}, id="fused-full-half"),
        pytest.param("fused", {"method": "lora", "precision": "bfloat16", "dropout": 0.1}, id="fused-lora-half"),
    ],
)
def test_method_trains_and_its_result_merges(project: Path, engine: str, settings: dict[str, Any]) -> None:
    metrics = train(project, engine=engine, **settings)
    assert f"train.engine: {engine}" in metrics["printed"]
    assert metrics["loss"]["validation_last"] < metrics["loss"]["validation_first"]
    share = metrics["parameters"]["trainable"] / metrics["parameters"]["all"]
    assert share == 1 if settings["method"] == "full" else share < 0.5
    from stages.model.loading import load_tuned

    tuned = load_tuned(project / paths.BASE, project / paths.SFT, dtype=torch.float32)
    merged = (tuned.merge_and_unload() if hasattr(tuned, "merge_and_unload") else tuned).state_dict()
    base = load_file(project / paths.BASE / "model.safetensors")
    assert base.keys() <= merged.keys()
    assert any(not torch.equal(base[name], merged[name]) for name in base)


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        pytest.param("trl", {"micro_batch_tokens": 10_000}, id="trl-1x8"),
        pytest.param("trl", {"micro_batch_tokens": 1}, id="trl-8x1"),
        pytest.param("trl", {"micro_batch_tokens": 400, "packing": False}, id="trl-padded"),
        pytest.param("trl", {"checkpointing": True}, id="trl-recomputed"),
        pytest.param("fused", {"micro_batch_tokens": 10_000}, id="fused-1x8"),
        pytest.param("fused", {"micro_batch_tokens": 1}, id="fused-8x1"),
        pytest.param("fused", {"checkpointing": True, "micro_batch_tokens": 600}, id="fused-recomputed"),
    ],
)
def test_neither_engine_nor_cut_changes_a_loss(
    project: Path,
    engine: str,
    settings: dict[str, Any],
    two_cuts: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speed(monkeypatch, **settings)
    train(project, engine=engine, **EIGHT_ROWS)
    assert curve(project) == pytest.approx(two_cuts, rel=1e-4)


def run_out_of_memory() -> None:
    """Let this process's first pass over an optimiser batch fail half way, as a card that is too small does."""
    from stages.tune.train.fused.steps import Steps

    def failing(self: Any, *args: Any) -> Any:
        raise torch.OutOfMemoryError

    Steps._forward_and_backward = failing  # type: ignore[assignment, method-assign]


def test_memory_that_runs_out_is_a_sentence(project: Path) -> None:
    set_params(project, {"train": {"engine": "fused"}})
    code, text = run_stage(project, "train", run_out_of_memory)
    assert code == 2
    assert "micro_batch_tokens" in text
    assert "Traceback" not in text


def test_only_the_named_layers_are_adapted(project: Path) -> None:
    train(project, layers_to_transform="1-1", epochs=1)
    names = load_file(project / paths.SFT / "adapter_model.safetensors")
    assert names
    assert all(".layers.1." in name for name in names)


def test_training_stops_early_and_keeps_the_best(project: Path) -> None:
    metrics = train(project, learning_rate=0.5, epochs=8, early_stopping_patience=1, evaluate_every=2)
    assert metrics["best_step"] < metrics["steps"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers_to_transform": "1-29"}, "layers 0-1"),
        ({"target_modules": ["wrong_proj"]}, "has none of wrong_proj; its layers have down_proj, gate_proj"),
        ({"max_tokens": 8}, "exceed train.max_tokens = 8"),
        ({"engine": "fused", "adapter": "dora"}, "train.engine: fused is not possible: the fused path has no dora"),
    ],
)
def test_what_this_model_or_these_rows_lack_is_refused(project: Path, settings: dict[str, Any], words: str) -> None:
    set_params(project, {"train": settings})
    code, text = run_stage(project, "train")
    assert code == 2
    assert words in text
    assert "Traceback" not in text


def test_a_run_of_two_steps_has_a_curve(project: Path) -> None:
    metrics = train(project, epochs=2, batch_size=1000)
    assert metrics["steps"] == 2
    assert len(curve(project)) == 1
    assert metrics["loss"]["train_last"] == pytest.approx(curve(project)[-1])


@pytest.mark.parametrize("engine", ["trl", "fused"])
@pytest.mark.parametrize("die", [die_training, die_saving_a_checkpoint])
def test_a_killed_run_goes_on_and_ends_the_same(project: Path, tmp_path: Path, engine: str, die: Any) -> None:
    alone = lay_out(tmp_path / "alone")
    train(alone, engine=engine)
    set_params(project, {"train": {"engine": engine}})
    assert run_stage(project, "train", die)[0] < 0
    text = train(project, engine=engine)["printed"]
    assert "going on from" in text
    assert curve(project) == curve(alone)
    ours, theirs = (load_file(at / paths.SFT / "adapter_model.safetensors") for at in (project, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    samples = (at / paths.TRAINING_SAMPLES for at in (project, alone))
    assert len({file.read_text() for file in samples}) == 1
    assert not list((project / paths.CHECKPOINTS).glob("*"))


def test_a_run_of_other_parameters_starts_anew(project: Path) -> None:
    assert run_stage(project, "train", die_training)[0] < 0
    text = train(project, learning_rate=2e-3)["printed"]
    assert "1 unfinished run" in text
    assert "going on from" not in text


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "weights flipped": ("adapter_model.safetensors", flip),
    "optimiser cut": ("optimizer.pt", lambda file: os.truncate(file, file.stat().st_size // 2)),
    "state emptied": ("trainer_state.json", lambda file: os.truncate(file, 0)),
    "random state lost": ("rng_state.pth", Path.unlink),
    "samples flipped": ("samples.jsonl", flip),
}


@pytest.fixture(scope="module")
def killed_and_whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was killed after two checkpoints, and one that was not."""
    folder = tmp_path_factory.mktemp("damage")
    killed, whole = lay_out(folder / "killed"), lay_out(folder / "whole")
    assert run_stage(killed, "train", die_training)[0] < 0
    train(whole)
    return killed, whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken(
    killed_and_whole: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    killed, whole = killed_and_whole
    project = tmp_path / "project"
    shutil.copytree(killed, project)
    name, spoil = DAMAGES[damage]
    (folder,) = (project / paths.CHECKPOINTS).iterdir()
    spoil(folder / "checkpoint-8" / name)
    text = train(project)["printed"]
    assert "checkpoint-8 is damaged or written by half: deleted" in text
    assert "checkpoint-4" in text
    assert curve(project) == curve(whole)
    for file in (paths.SFT / "adapter_model.safetensors", paths.TRAINING_SAMPLES):
        assert (project / file).read_bytes() == (whole / file).read_bytes()


def test_a_run_whose_best_checkpoint_is_damaged_starts_anew(
    killed_and_whole: tuple[Path, Path], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(killed_and_whole[0], project)
    (folder,) = (project / paths.CHECKPOINTS).iterdir()
    assert not (folder / "README.md").exists()  # TRL's model card, which knows nothing that was measured
    flip(folder / "checkpoint-4" / "adapter_model.safetensors")
    state = read_json(folder / "checkpoint-8" / "trainer_state.json")
    write_json(folder / "checkpoint-8" / "trainer_state.json", state | {"best_model_checkpoint": "x/checkpoint-4"})
    (folder / "checkpoint-8.sha256").write_text(tree_digest(folder / "checkpoint-8"))
    text = train(project)["printed"]
    assert "going on from" not in text
    assert curve(project) == curve(killed_and_whole[1])


def test_another_machine_goes_on_from_a_checkpoint_folder_that_outlives_the_first(
    killed_and_whole: tuple[Path, Path], tmp_path: Path
) -> None:
    """What examples/gpu/retrain.sh does with $CHECKPOINTS: the folder is a link to storage that machines share."""
    killed, whole = killed_and_whole
    shared, project = tmp_path / "shared", lay_out(tmp_path / "next")
    shutil.copytree(killed / paths.CHECKPOINTS, shared)
    (project / paths.CHECKPOINTS).parent.mkdir(exist_ok=True)
    (project / paths.CHECKPOINTS).symlink_to(shared)
    assert "going on from" in train(project)["printed"]
    assert curve(project) == curve(whole)
    file = paths.SFT / "adapter_model.safetensors"
    assert (project / file).read_bytes() == (whole / file).read_bytes()


def test_of_other_unfinished_runs_the_latest_alone_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, key in enumerate(["a", "b", "c"]):
        (tmp_path / paths.CHECKPOINTS / key / "checkpoint-4").mkdir(parents=True)
        os.utime(tmp_path / paths.CHECKPOINTS / key, (1e9 - age, 1e9 - age))
    folder = checkpoint_folder("now")
    assert {path.name for path in folder.parent.iterdir()} == {"now", "a"}


@pytest.mark.parametrize("engine", ["trl", "fused"])
def test_a_loss_that_is_no_number_stops_the_training(project: Path, engine: str) -> None:
    file = project / paths.BASE / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})
    set_params(project, {"train": {"engine": engine, "batch_size": 1}})
    code, text = run_stage(project, "train")
    assert code == 1
    assert "training stopped at step" in text or "nan" in text
    assert "Traceback" not in text
    assert not (project / paths.SFT).exists()
    assert not list((project / ".tunetrail").rglob("checkpoint-*"))


def test_a_repository_without_any_commit_is_a_sentence(project: Path) -> None:
    run(project, "git", "init", "--quiet")
    code, text = run_stage(project, "train")
    assert code == 2
    assert "no commit yet, and DVCLive needs one" in text
    assert "Traceback" not in text
    commit(project, "The project")
    train(project, epochs=0.5)
