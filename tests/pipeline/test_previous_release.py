"""evaluate.previous in the pipeline: the release under a tag is brought and compared, and nothing else runs again."""

import json
from pathlib import Path

from project import run, set_params


def test_the_next_run_is_compared_with_the_tagged_one(copy: Path) -> None:
    run(copy, "git", "tag", "tickets@v1.0.0")
    set_params(copy, {"evaluate": {"previous": "tickets@v1.0.0"}})
    said = run(copy, "dvc", "repro", "gates").stdout
    assert "Running stage 'evaluate'" in said
    assert "Running stage 'merge_quantize'" not in said
    metrics = json.loads((copy / "metrics/evaluate.json").read_text(encoding="utf-8"))
    rows = metrics["adapter"]["rows"]
    assert metrics["previous"]["rows"] == {"both": rows, "only_now": 0, "only_then": 0}
    assert metrics["previous"]["release"] == "tickets@v1.0.0"
    change = metrics["against_previous"]["exact_match"]
    assert (change["difference"], change["won"], change["lost"], change["p_value"]) == (0, 0, 0, 1)
    assert metrics["against_previous"]["perplexity"]["ratio"] == 1
    generations = copy / "data/generations"
    named, _, answers = (generations / "previous.jsonl").read_bytes().partition(b"\n")
    assert json.loads(named)["release"] == "tickets@v1.0.0"
    assert answers == (generations / "adapter.jsonl").read_bytes()
    gate = json.loads((copy / "metrics/gates.json").read_text(encoding="utf-8"))["gates"]["no_loss"]
    assert (gate["state"], gate["value"]) == ("PASS", 0)

    set_params(copy, {"evaluate": {"previous": "tickets@v9.0.0"}})
    failed = run(copy, "dvc", "repro", "evaluate", check=False)
    assert failed.returncode
    assert "error: evaluate.previous: there is no tag tickets@v9.0.0" in failed.stderr
