"""The example in examples/seeds, run on the tiny pipeline."""

import shutil
from pathlib import Path

from dvc.utils.serialize import dumps_yaml
from project import ROOT, run

from stages.core.files import read_json
from stages.core.yaml_reader import load_yaml


def test_a_matrix_trains_with_every_seed_and_the_report_shows_their_spread(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline.parent, tmp_path / "copy", symlinks=True)
    repository = tmp_path / "copy" / pipeline.name
    for name in ("cross_validation", "seeds"):
        shutil.copytree(ROOT / "examples" / name, repository / "examples" / name)
    stages = load_yaml((repository / "examples/seeds/stage.yaml").read_text(encoding="utf-8"))["stages"]
    stages["seed"]["matrix"] = {"number": [17, 2]}
    definition = load_yaml((repository / "dvc.yaml").read_text(encoding="utf-8"))
    definition["stages"] |= stages
    (repository / "dvc.yaml").write_text(dumps_yaml(definition), encoding="utf-8")
    adapter = (repository / "models/adapter/adapter_model.safetensors").read_bytes()
    assert load_yaml((repository / "params.yaml").read_text(encoding="utf-8"))["seed"] == 17

    run(repository, "dvc", "repro", "report")  # reads metrics/seeds, so that the matrix runs before it
    same, other = (read_json(repository / f"metrics/seeds/{number}.json")["adapter"] for number in (17, 2))
    assert same == read_json(repository / "metrics/evaluate.json")["adapter"]
    assert other["perplexity"] != same["perplexity"]
    assert "Over seeds" in (repository / "metrics/report.html").read_text(encoding="utf-8")
    assert (repository / "models/adapter/adapter_model.safetensors").read_bytes() == adapter
    assert not list((repository / ".tunetrail/seeds").iterdir())
    assert "Running stage" not in run(repository, "dvc", "repro", "report").stdout
