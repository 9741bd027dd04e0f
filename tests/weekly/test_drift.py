"""drift: no alarm on two halves of one set, an alarm on a new kind of request, and chance as often as it says."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import ROOT

from stages.core import paths
from stages.core.errors import UserError
from stages.params.loader import Params
from stages.records.record import make_record, write_records
from stages.text.normal_form import normalise
from stages.weekly.drift import _areas, as_text, drift, two_samples

SNIPS = ROOT.parent / "shared/data/snips/train.jsonl"  # not in the repository
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "kelp", "lotus", "maple", "nectar"]
PARAMS = Params.model_validate(
    {"task": {"kind": "classification", "labels": ["a", "b"], "instruction": "Do it."}}
    | {"model": {"source": "path:x", "licence": "MIT"}, "gates": {}}
)


def prompts(count: int, seed: int, words: Sequence[str] = WORDS) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(words, size=int(draw.integers(4, 9)))) for _ in range(count)]


def new_kind(count: int) -> list[str]:
    return [f"refund ticket {one}" for one in prompts(count, 99, WORDS[:6])]


def test_two_halves_give_no_alarm_and_a_tenth_of_another_kind_gives_one() -> None:
    then = prompts(500, 1)
    found = two_samples(then, prompts(500, 2), 3, 399)
    assert not found["alarm"]
    assert found["words"] == []
    found = two_samples(then, [*prompts(450, 2), *new_kind(50)], 3, 399)
    assert found["alarm"]
    assert found["first_tenth"]["p"] < 0.003
    assert found["first_tenth"]["value"] > found["first_tenth"]["by_chance"][1]
    assert {one["word"] for one in found["words"]} >= {"refund", "ticket"}
    assert next(one["share"] for one in found["words"] if one["word"] == "refund") == [0.0, 0.1]


def test_prompts_without_a_letter_are_compared_too() -> None:
    marks = ["!", "?", "…", "→"]
    then, now = (["".join(draw) + end for draw in itertools.product(marks, repeat=3)] for end in ("?", "!"))
    found = two_samples(then, now, seed=3, permutations=399)
    assert found["alarm"]


def test_longer_prompts_give_an_alarm() -> None:
    found = two_samples(prompts(100, 1), [f"{one} {one}" for one in prompts(100, 2)], seed=3, permutations=9)
    assert found["length"]["p"] < 1e-6
    assert found["alarm"]


def test_where_nothing_differs_p_values_are_those_of_chance() -> None:
    """Each side a draw of one pool: the rank of the measured area among the permuted ones is uniform."""
    pool = prompts(60, 1)
    ranks = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        areas, _ = _areas([pool[i] for i in draw.permutation(60)], 30, draw, 19)
        ranks.append(1 + int((areas[1:] >= areas[0]).sum()))
    assert 20 < sum(rank <= 10 for rank in ranks) < 40
    assert sum(rank == 1 for rank in ranks) <= 9  # 3 are expected


def test_the_area_is_that_of_scikit_learn() -> None:
    """Of perfect scores it is 1, and of each column what roc_auc_score says."""
    texts = [*("old thing" for _ in range(30)), *("new stuff" for _ in range(30))]
    whole, tenth = _areas(texts, 30, np.random.default_rng(0), 5)
    assert (whole[0], tenth[0]) == (1.0, 1.0)
    assert all(0 <= one <= 1 for one in [*whole, *tenth])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [make_record(text, "ab"[n % 2], "ab"[n % 2], "t", f"t:{n}") for n, text in enumerate(prompts(200, 1))]
    write_records(paths.SPLIT_TRAIN, rows)
    (tmp_path / "data/schema.json").write_text("{}")
    return tmp_path


def log(texts: Sequence[str]) -> Path:
    lines = [{"prompt": text, "output": "a", "release": "r"} for text in texts]
    Path("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Path("log.jsonl")


def test_logs_against_training_rows_in_words_and_json(project: Path) -> None:
    same = drift([log(prompts(150, 2))], PARAMS)
    assert (same["alarm"], same["rows"]) == (False, [200, 150])
    assert same["labels"] == {"a": [0.5, 1.0], "b": [0.5, 0.0]}
    assert as_text(same).splitlines()[-1] == "no alarm"
    json.dumps(same)
    texts = [*prompts(120, 2), *new_kind(30)]
    found: dict[str, Any] = drift([log([*texts, *texts])], PARAMS)
    assert (found["alarm"], found["rows"][1]) == (True, len({*texts}))  # a repeated prompt counts once
    said = as_text(found)
    assert "word refund: 0.0% -> 20.0% of the prompts" in said
    assert said.splitlines()[-1] == "alarm: the input has drifted, p <= 0.0033"


def test_labels_are_those_of_sound_answers_by_the_contract_of_their_task(project: Path) -> None:
    """What breaks its contract is no label: it may be anything, such as a person's data."""
    task = {"kind": "classification", "labels": ["a", "b"], "instruction": "Do it.", "instructions": {"t": "Do that."}}
    params = Params.model_validate({**PARAMS.model_dump(), "task": task | {"tags": {"t": {"labels": ["c"]}}}})
    lines = [
        {"messages": [{"role": "system", "content": told}, {"role": "user", "content": text}], "output": said}
        for n, text in enumerate(prompts(40, 2))
        for told, said in [("Do that.", "c") if n % 4 else ("Do it.", "mail anna@example.com")]
    ]
    Path("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert drift([Path("log.jsonl")], params)["labels"] == {"a": [0.5, 0.0], "b": [0.5, 0.0], "c": [0.0, 0.75]}


def test_too_few_prompts_are_a_sentence(project: Path) -> None:
    with pytest.raises(UserError, match="200 and 19 different prompts; drift cannot be told from less than 20"):
        drift([log(prompts(19, 2))], PARAMS)


def test_halves_of_snips_and_a_new_intent() -> None:
    if not SNIPS.is_file():
        pytest.skip("SNIPS is not here")
    rows = [json.loads(line) for line in SNIPS.read_text().splitlines()]
    label = {normalise(row["prompt"]): row["label"] for row in rows}
    texts = sorted(label)
    order = np.random.default_rng(5).permutation(len(texts))[:1600]
    old, new = ([texts[i] for i in order if (label[texts[i]] == "RateBook") is kind] for kind in (False, True))
    assert not two_samples(old[:500], old[500:1000], 1, 399)["alarm"]
    assert two_samples(old[:500], [*old[500:950], *new[:50]], 1, 399)["alarm"]
