"""The benchmark of intents, from rows to its page: here with a tiny model and few labels."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from tiny_model import save_tiny_model

from benchmarks import intent_rows, intents
from benchmarks.intents_table import page
from stages.core.yaml_reader import load_yaml

TRIAL = {
    "labels": 4,
    "changes": {
        "train": {"rank": 4, "alpha": 8, "epochs": 1, "max_tokens": 400, "layers_to_transform": None},
        "generation": {"max_new_tokens": 4},
    },
}
RECIPES = {name: intents.RECIPES[name] for name in ("as it stands", "the message twice", "no dropout")}


def test_recipes_are_tried_one_is_asked_and_the_page_has_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # and back: the benchmark works in its projects
    (tmp_path / "snips").mkdir()
    for name, value in (("RECIPES", RECIPES), ("RESULTS", tmp_path / "results"), ("SEEDS", (17, 18))):
        monkeypatch.setattr(intents, name, value)
    monkeypatch.setattr(intents, "SETS", {"tiny, 10 rows": ("generated", 10, True)})
    base = str(save_tiny_model(tmp_path / "base"))
    told = [
        "--base",
        base,
        "--snips",
        "snips",
        "--workers",
        "0",
        "--trial",
        json.dumps(TRIAL),
        "--results",
        "all.jsonl",
    ]
    intents.main(["--tune", *told])
    lines = [json.loads(line) for line in Path("all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "error" in line]
    kinds = Counter(line["kind"] for line in lines)
    assert {"described", "prepare", "linear", "final", "averaged"} == {kind for kind, n in kinds.items() if n == 1}
    assert kinds["validated"] in (3, 4)  # and both changes together, if both helped
    final, linear = (next(line for line in lines if line["kind"] == kind) for kind in ("final", "linear"))
    assert len(final["right"]) == len(linear["right"]) == 4 * intent_rows.TEST_ROWS
    prepared = next(line for line in lines if line["kind"] == "prepare")
    assert final["train"] == prepared["train"] + prepared["validation"]
    tried = {line["recipe"]: line for line in lines if line["kind"] == "validated"}
    assert {line["n"] for line in tried.values()} == {prepared["validation"]}
    assert len({line["nats"] for line in tried.values()}) == len(tried)  # each recipe is another model
    assert tried[final["recipe"]]["right"] == max(line["right"] for line in tried.values())
    assert tried["as it stands"]["decodings"].keys() == {"none", "rows", "labels", "likeliest"}

    intents.main(["--tune", *told])  # what stands in the file is not measured again, but for the rows
    again = [json.loads(line) for line in Path("all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in again[len(lines) :]] == ["prepare"]

    intents.main(["--render", "all.jsonl"])
    text = (tmp_path / "results" / "intents.md").read_text(encoding="utf-8")
    right = f"{sum(final['right'])} of {len(final['right'])}"
    assert f"| tiny, 10 rows | 4 | {final['train']} | {sum(linear['right']) / 24:.2%} | {right}" in text
    assert all(f"| {recipe} |" in text for recipe in tried)
    assert "Not measured" not in text


def line(**keys: Any) -> dict[str, Any]:
    return {"set": "a, 5 rows", **keys}


def test_the_page_tells_where_the_interval_lies_above_0_and_what_failed() -> None:
    better, same = [1] * 60, [1] * 20 + [0] * 40
    finals = [line(kind="final", set=name, recipe="r", right=better, train=9, seconds=2) for name in ("a, 5", "b, 5")]
    base = [line(kind="linear", set="a, 5", right=same), line(kind="linear", set="b, 5", right=better)]
    text = page([*finals, *base, line(kind="final", recipe="r", error="OutOfMemory: full")], ["r"])
    assert "On 1 of 2 sets the whole interval" in text
    assert "Not measured: final a, 5 rows r (OutOfMemory: full)." in text
    assert "| a, 5 |  | 9 | 33.33% | 60 of 60: 100.00% (94.0% to 100.0%) | +66.67 (" in text


def test_changes_that_helped_are_combined_the_best_of_each_kind() -> None:
    names = ["as it stands", "learning rate 3e-4", "learning rate 2e-3", "no dropout", "rank 16", "a head of labels"]
    scores = [(name, right, 0.0) for name, right in zip(names, (50, 53, 52, 51, 50, 60), strict=True)]
    assert intents.combined(scores) == ["learning rate 3e-4 + no dropout"]
    assert intents.combined([*scores, ("weight decay 0.1", 54, 0.0)]) == [
        "weight decay 0.1 + learning rate 3e-4 + no dropout",
        "weight decay 0.1 + learning rate 3e-4",
    ]
    assert intents.combined(scores[:1]) == []
    assert intents.changes_of("learning rate 3e-4 + no dropout") == {"learning_rate": 3e-4, "dropout": 0.0}


def test_each_recipe_is_one_of_the_parameters() -> None:
    from stages.params.loader import check_params

    for recipe in intents.RECIPES:
        params = load_yaml(intents.SETTINGS.read_text(encoding="utf-8"))
        params["train"] |= {key: value for key, value in intents.changes_of(recipe).items() if key != "template"}
        check_params(load_yaml(dumps_yaml(params)))


def test_rows_are_as_many_as_asked_for_and_of_test_wordings_none_is_trained_on() -> None:
    train, test = intent_rows.draw_rows("generated", 5)
    assert len({row["label"] for row in train}) == 120
    assert (len(train), len(test)) == (600, 120 * intent_rows.TEST_ROWS)
    said = load_yaml(intent_rows.PHRASES.read_text(encoding="utf-8"))
    for opening in said["openings"][-intent_rows.HELD_OUT :]:
        assert not [row for row in train if row["prompt"].startswith(opening)]
    assert intent_rows.draw_rows("generated", 5) == [train, test]
    codes = intent_rows.draw_rows("codes", 5)[0]
    assert [row["prompt"] for row in codes] == [row["prompt"] for row in train]
    pairs = {(row["label"], code["label"]) for row, code in zip(train, codes, strict=True)}
    assert len(pairs) == len({code for _, code in pairs}) == 120


def test_snips_rows_have_an_intent_and_its_slots(tmp_path: Path) -> None:
    slots = {"artist": "a", "track": "b"}
    row = {"prompt": "x", "completion": json.dumps({"intent": "Play", "slots": slots}), "label": "Play"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert list(intent_rows.snips(tmp_path)) == [("Play: artist, track", "x")]
