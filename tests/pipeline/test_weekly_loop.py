"""The weekly loop on a real training of the tiny model: served traffic becomes rows, and gates decide what ships."""

import json
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, commit, run, set_params

from stages.measure.review.annotate import Session
from stages.params.loader import load_params

WEEK, LOG = Path("data/inbox/2026-48.jsonl"), Path("log.jsonl")
# A model this small gives no right answer; how likely it holds the references is what it can get better at.
GATES: dict[str, Any] = {
    "exact_match": {"model": "adapter", "metric": "exact_match", "minimum": 0.0},
    "schema_valid": {"model": "adapter", "metric": "schema_valid", "minimum": 0.0},
    "better_than_baseline": {"model": "adapter", "metric": "perplexity", "against": "base", "maximum": 1.0},
    "better_than_linear": {"model": "adapter", "metric": "label_accuracy", "against": "linear", "minimum": -1.0},
    "no_loss": {
        "model": "adapter",
        "metric": "perplexity",
        "against": "previous",
        "maximum": 1.0,
        "evidence": "against",
    },
}


def test_a_week_from_one_release_to_the_next(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_params(copy, {"gates": GATES, "quantize": {"formats": ["merged"]}})
    with (copy / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write(f"/{LOG}\n")
    run(copy, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))

    def trained(message: str, **settings: Any) -> str:
        set_params(copy, settings)
        run(copy, "dvc", "repro")
        commit(copy, message)
        run(copy, "dvc", "push")
        return str(json.loads((copy / "metrics/gates.json").read_text(encoding="utf-8"))["verdict"])

    assert trained("The first model") == "PASS", run(copy, "tunetrail", "gates", check=False).stdout
    run(copy, "tunetrail", "release", "1.0.0", "--stage", "prod")

    # A week of its traffic, with an intent that no row had; people give it a thumb down.
    log = run(copy, "python", str(ROOT / "examples/weekly/traffic.py"), "--rows", "120", "--new", "0.3").stdout
    (copy / LOG).write_text(log, encoding="utf-8")
    requests = [json.loads(line) for line in log.splitlines()]
    truth = {one["request"]["messages"][0]["content"]: one["truth"] for one in requests}
    run(copy, "tunetrail", "collect", str(LOG), "--week", WEEK.stem)
    schema = json.loads((copy / "data/schema.json").read_text(encoding="utf-8"))
    schema["properties"]["intent"]["enum"].append("complaint")
    (copy / "data/schema.json").write_text(json.dumps(schema), encoding="utf-8")
    monkeypatch.chdir(copy)
    anna = Session(WEEK, "anna", [], 0, load_params("task"))
    for number, row in enumerate(list(anna.rows.values())):
        assert anna.save(number, truth[row["prompt"]], None, False) == {"problem": None}
    said = run(copy, "tunetrail", "append", str(WEEK.with_suffix("") / "anna.jsonl")).stdout
    assert "label complaint" in said

    # What hardly learnt is worse than the release, and is refused; what learnt more is not.
    train = {"learning_rate": 1e-9}
    assert trained("Hardly trained", train=train, evaluate={"previous": "support-tickets@v1.0.0"}) == "FAIL"
    refused = run(copy, "tunetrail", "release", "1.1.0", "--stage", "prod", check=False)
    assert refused.returncode == 1
    assert "the gates are FAIL" in refused.stderr
    assert "no_loss                 FAIL" in run(copy, "tunetrail", "gates", check=False).stdout
    assert trained("Trained on the week", train={"learning_rate": 3e-3, "epochs": 3}) == "PASS", run(
        copy, "tunetrail", "gates", check=False
    ).stdout
    run(copy, "tunetrail", "release", "1.1.0", "--stage", "prod")
    compared = run(copy, "tunetrail", "compare", "support-tickets@v1.0.0").stdout
    assert f"{len(anna.rows)} rows added" in compared
    live = json.loads(run(copy, "tunetrail", "history", "--stage", "prod", "--json").stdout)
    assert [(one["version"], one["verdict"]) for one in live] == [("v1.0.0", "PASS"), ("v1.1.0", "PASS")]
