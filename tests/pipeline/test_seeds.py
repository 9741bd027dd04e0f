"""The example in examples/seeds, run on the tiny pipeline."""

import shutil
from pathlib import Path

from dvc.utils.serialize import dumps_yaml
from project import ROOT, run

from stages.core.files import read_json
from stages.core.yaml_reader import load_yaml


def test_a_matrix_trains_with_every_seed_and_the_report_shows_their_spread(copy: Path) -> None:
    for name in ("cross_validation", "seeds"):
        shutil.copytree(ROOT / "examples" / name, copy / "examples" / name)
    stages = load_yaml((copy / "examples/seeds/stage.yaml").read_text(encoding="utf-8"))["stages"]
    stages["seed"]["matrix"] = {"number": [17, 2]}
    definition = load_yaml((copy / "dvc.yaml").read_text(encoding="utf-8"))
    definition["stages"] |= stages
    (copy / "dvc.yaml").write_text(dumps_yaml(definition), encoding="utf-8")
    adapter = (copy / "models/adapter/adapter_model.safetensors").read_bytes()
    assert load_yaml((copy / "params.yaml").read_text(encoding="utf-8"))["seed"] == 17

    run(copy, "dvc", "repro", "report")  # reads metrics/seeds, so that the matrix runs before it
    same, other = (read_json(copy / f"metrics/seeds/{number}.json")["adapter"] for number in (17, 2))
    assert same == read_json(copy / "metrics/evaluate.json")["adapter"]
    assert other["perplexity"] != same["perplexity"]
    assert "Over seeds" in (copy / "metrics/report.html").read_text(encoding="utf-8")
    assert (copy / "models/adapter/adapter_model.safetensors").read_bytes() == adapter
    assert not list((copy / ".tunetrail/seeds").iterdir())
    assert "Running stage" not in run(copy, "dvc", "repro", "report").stdout
