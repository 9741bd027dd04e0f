"""The example in examples/cross_validation, run on the tiny pipeline."""

import json
import shutil
from pathlib import Path

from dvc.utils.serialize import dumps_yaml
from project import ROOT, run, set_params

from stages.core.yaml_reader import load_yaml
from stages.records.record import read_records

EXAMPLE = Path("examples/cross_validation")


def test_a_matrix_trains_every_fold(copy: Path) -> None:
    shutil.copytree(ROOT / EXAMPLE, copy / EXAMPLE)
    stages = load_yaml((copy / EXAMPLE / "stage.yaml").read_text(encoding="utf-8"))["stages"]
    stages["fold"]["matrix"] = {"number": [1, 2]}
    definition = load_yaml((copy / "dvc.yaml").read_text(encoding="utf-8"))
    definition["stages"] |= stages
    (copy / "dvc.yaml").write_text(dumps_yaml(definition), encoding="utf-8")
    set_params(copy, {"split": {"cross_validation": 2}, "train": {"epochs": 1}})

    adapter = (copy / "models/adapter/adapter_model.safetensors").read_bytes()
    run(copy, "dvc", "repro", "fold")
    losses = []
    for number in ("1", "2"):
        metrics = json.loads((copy / "metrics/folds" / f"{number}.json").read_text(encoding="utf-8"))
        trained = read_records(copy / "data/split/folds" / number / "train.jsonl")
        assert metrics["rows"]["train"] >= len(trained)
        losses.append(metrics["loss"]["validation_last"])
        assert (copy / "models/folds" / number / "adapter_model.safetensors").is_file()
    assert losses[0] != losses[1]
    assert (copy / "models/adapter/adapter_model.safetensors").read_bytes() == adapter
    assert "Running stage" not in run(copy, "dvc", "repro", "fold").stdout
