"""task.metric in the pipeline: base, adapter, previous release and artefacts are scored by it, and a gate holds it."""

import json
from pathlib import Path

from project import commit, run, set_params

from stages.core.yaml_reader import load_yaml

CODE = "from marks import mark\n\n\ndef score(prompt, reference, answer):\n    return mark(len(answer))\n"
SCORING = ("baseline", "evaluate", "merge_quantize")


def test_all_that_answered_the_holdout_is_scored_and_compared(copy: Path) -> None:
    run(copy, "git", "tag", "tickets@v1.0.0")
    (copy / "data/metric/own.py").write_text(CODE, encoding="utf-8")
    (copy / "data/metric/marks.py").write_text("def mark(length):\n    return length % 5 / 5\n", encoding="utf-8")
    gates = load_yaml((copy / "params.yaml").read_text(encoding="utf-8"))["gates"]
    gates["own"] = {"model": "adapter", "metric": "custom", "minimum": 0.0}
    gates["own_kept"] = {"model": "nf4", "metric": "custom", "against": "adapter", "minimum": -1}
    set_params(copy, {
        "task": {"metric": "data/metric/own.py:score"}, "evaluate": {"previous": "tickets@v1.0.0"}, "gates": gates,
    })  # fmt: skip
    said = run(copy, "dvc", "repro", "report").stdout
    assert {stage for stage in SCORING if f"Running stage '{stage}'" in said} == set(SCORING)
    assert "Running stage 'train'" not in said

    baseline, evaluate, quantize = (
        json.loads((copy / f"metrics/{name}.json").read_text(encoding="utf-8"))
        for name in ("baseline", "evaluate", "quantize")
    )
    for scores, name in (
        (baseline["base"], "base"),
        (evaluate["adapter"], "adapter"),
        (quantize["artefacts"]["gguf"]["scores"], "artefacts/gguf"),
    ):
        rows = (copy / f"data/generations/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        marks = [len(json.loads(row)["output"].strip()) % 5 / 5 for row in rows]
        assert abs(scores["custom"]["value"] - sum(marks) / len(marks)) < 1e-9
    assert evaluate["previous"]["scores"]["custom"] == evaluate["adapter"]["custom"]
    assert evaluate["against_previous"]["custom"]["difference"] == 0
    change = evaluate["adapter"]["custom"]["value"] - baseline["base"]["custom"]["value"]
    assert abs(evaluate["against_baseline"]["custom"]["difference"] - change) < 1e-9
    held = json.loads((copy / "metrics/gates.json").read_text(encoding="utf-8"))["gates"]
    assert (held["own"]["state"], held["own_kept"]["state"]) == ("PASS", "PASS")
    assert "Your own score" in (copy / "metrics/report.md").read_text(encoding="utf-8")
    assert "data/metric/marks.py" in json.loads((copy / "models/release/manifest.json").read_text())["data"]

    commit(copy, "An own score")
    (copy / "data/metric/marks.py").write_text("def mark(length):\n    return 'much'\n", encoding="utf-8")
    failed = run(copy, "dvc", "repro", "baseline", check=False)
    assert failed.returncode
    assert "error: task.metric: data/metric/own.py:score gave 'much' on row " in failed.stderr
