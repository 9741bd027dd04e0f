"""A folder as `base` and `augment` leave it: a tiny model and a few rows, to train in without the stages before."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from project import ROOT, TINY_TRAINING, set_params
from safetensors.torch import load_file
from stage_process import run_stage
from tiny_model import save_tiny_model

from stages.core import paths
from stages.core.files import read_json
from stages.records.record import Record, make_record, write_records

Result = tuple[dict[str, torch.Tensor], dict[str, float]]


def training_records(count: int, first: int = 0) -> list[Record]:
    made = []
    for number in range(first, first + count):
        words = hashlib.sha256(str(number).encode()).hexdigest()[: 8 + number % 24]
        completion = json.dumps({"intent": ("refund", "invoice")[number % 2], "order": f"K-{number}"})
        made.append(make_record(f"order {words}", completion, None, "tickets", f"tickets:{number}"))
    return made


def lay_out(folder: Path, rows: int = 40, tied: bool = True, **train: Any) -> Path:
    """Two layers of 64, 40 rows to train on, 8 to validate on; `train` changes the parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (".dvcignore", "dvc.yaml", "params.yaml"):  # what Python compiles meanwhile is no dependency
        shutil.copy(ROOT / name, folder / name)
    for name in ("constraints", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    set_params(folder, {"train": TINY_TRAINING | train})
    save_tiny_model(folder / paths.BASE, tied=tied)
    write_records(folder / paths.TRAIN, training_records(rows))
    write_records(folder / paths.VALIDATION, training_records(8, first=1000))
    return folder


def train(project: Path, **settings: Any) -> dict[str, Any]:
    """Run the stage; what it wrote to metrics/train.json."""
    set_params(project, {"train": settings})
    code, text = run_stage(project, "train")
    assert code == 0, text
    metrics: dict[str, Any] = read_json(project / paths.TRAIN_METRICS)
    return metrics | {"printed": text}


def shard_without_cards(die: Callable[[], None] | None = None) -> None:
    """Let accelerate, which shards on cards alone and else trains whole models without a word, shard in this process.

    `die` prepares the process's death.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def on_the_cpu(self: Any) -> None:
        self.device = torch.device("cpu")
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.set_device = on_the_cpu
    if die:
        die()


def sharded(project: Path) -> bool:
    """Whether the last run's checkpoints are those of FSDP, where one is left."""
    return any(project.glob(f"{paths.CHECKPOINTS}/*/checkpoint-*/pytorch_model_fsdp.bin"))


def curve(project: Path) -> list[float]:
    lines = (project / paths.CURVES / "plots/metrics/train/loss.tsv").read_text().splitlines()
    return [float(line.split("\t")[1]) for line in lines[1:]]


def result(project: Path) -> Result:
    """The adapter and the losses."""
    adapter = load_file(project / paths.SFT / "adapter_model.safetensors")
    return adapter, read_json(project / paths.TRAIN_METRICS)["loss"]


def assert_same(ours: Result, theirs: Result) -> None:
    """But for rounding, as several devices add up in another order."""
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)
    for name, tensor in ours[0].items():
        torch.testing.assert_close(tensor, theirs[0][name], rtol=1e-2, atol=1e-4)
