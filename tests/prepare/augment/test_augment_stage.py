import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import read_json
from stages.near_duplicates.rule import is_near
from stages.params.loader import read_params
from stages.prepare.augment.__main__ import main
from stages.records.record import Record, make_record, read_records, write_records, write_rows
from stages.text.normal_form import normalise, prompt_hash

AUGMENT = {
    "value_swapped_per_row": 0,
    "smallest_task_share": 0,
    "malformed_every": 10,
    "malformed_completion": '{"intent": "unreadable"}',
    "structured_share": 0.5,
    "replay_file": "data/replay.jsonl",
    "replay_share": 0.1,
    "canaries": 0,
    "canary_repeats": 3,
}
PARAMS = read_params(Path(__file__).parents[3] / "params.yaml")
REPLAY = Path("data/replay.jsonl")


def row(number: int, completion: str, task: str | None = None) -> Record:
    return make_record(f"Prompt of the row {number}", completion, None, "raw", f"raw.jsonl:{number}", task=task)


TRAIN = [row(n, '{"n": 1}' if n < 5 else "text") for n in range(40)]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params()
    write_records(paths.SPLIT_TRAIN, TRAIN)
    write_records(paths.VALIDATION, [row(100, "text")])
    hold_out(row(101, "text"))
    Path("data/schema.json").write_text('{"type": "object", "required": ["intent"]}')
    REPLAY.write_text("".join(f'{{"prompt": "general {n}", "completion": "yes"}}\n' for n in range(5)))


def hold_out(*rows: Record, gone: Sequence[Record] = ()) -> None:
    """These rows, and others that are locked though no longer in the data."""
    write_records(paths.HOLDOUT, rows)
    write_rows(paths.LOCKED, [{"id": one.id, "prompt_sha256": prompt_hash(one.prompt)} for one in (*rows, *gone)])


def write_params(task: dict[str, Any] | None = None, **changes: Any) -> None:
    params = PARAMS | {"seed": 17, "augment": AUGMENT | changes, "task": PARAMS["task"] | (task or {})}
    paths.PARAMS.write_text(dumps_yaml(params), encoding="utf-8")


def by_source() -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in read_records(paths.TRAIN):
        found.setdefault(record.source, []).append(record)
    return found


def test_every_kind_is_added() -> None:
    main()
    found = by_source()
    # 9 of the 44 rows with the malformed ones are JSON: 9 + 31 of 44 + 31 + 5 is the least half.
    assert {source: len(rows) for source, rows in found.items()} == {
        "raw": 40,
        "augment:malformed": 4,
        "augment:structured": 31,
        "augment:replay": 5,
    }
    assert json.loads(paths.AUGMENT_METRICS.read_text()) == {
        "rows": {"in": 40, "out": 80, "structured": 40},
        "added": {
            "value_swapped": 0,
            "task_balance": 0,
            "malformed": 4,
            "structured": 31,
            "replay": 5,
            "canary": 0,
        },
    }
    assert sorted(record.origin for record in found["augment:replay"]) == [f"replay.jsonl:{n}" for n in range(1, 6)]
    assert {record.origin for record in found["augment:structured"]} == {f"raw.jsonl:{n}" for n in range(5)}
    known = {normalise(record.prompt) for record in TRAIN}
    assert not known & {normalise(record.prompt) for record in found["augment:malformed"]}


def test_an_audit_run_plants_each_canary_so_often() -> None:
    write_params(canaries=2)
    main()
    planted = by_source()["augment:canary"]
    assert sorted(Counter(record.prompt for record in planted).values()) == [3, 3]
    assert read_json(paths.AUGMENT_METRICS)["added"]["canary"] == 6
    assert read_json(paths.AUGMENT_METRICS)["rows"]["out"] == 86


def test_the_order_of_the_files_changes_no_byte() -> None:
    main()
    before = paths.TRAIN.read_bytes()
    write_records(paths.SPLIT_TRAIN, TRAIN[::-1])
    main()
    assert paths.TRAIN.read_bytes() == before


def test_everything_off_leaves_the_rows() -> None:
    write_params(malformed_every=None, structured_share=0, replay_share=0)
    REPLAY.unlink()
    main()
    assert sorted(read_records(paths.TRAIN), key=lambda r: r.id) == sorted(TRAIN, key=lambda r: r.id)


def test_replay_takes_no_row_twice() -> None:
    REPLAY.write_text('{"prompt": "general", "completion": "yes"}\n' * 9)
    write_params(replay_share=0.5)
    main()
    assert [record.origin for record in by_source()["augment:replay"]] == ["replay.jsonl:1"]


def test_replay_of_a_held_prompt_is_refused() -> None:
    hold_out(row(101, "text"), gone=[row(102, "text")])
    for number in (100, 101, 102):
        REPLAY.write_text(
            '{"prompt": "general", "completion": "yes"}\n'
            f'{{"prompt": "prompt of  the ROW {number}", "completion": "yes"}}\n'
        )
        with pytest.raises(UserError, match=r"data/replay\.jsonl, line 2: the prompt is in the hold-out"):
            main()
    assert not paths.TRAIN.exists()


def test_replay_that_is_missing_or_no_pairs_is_a_user_error() -> None:
    REPLAY.unlink()
    with pytest.raises(UserError, match=r"augment\.replay_file: 'data/replay\.jsonl' cannot be read"):
        main()
    for line, message in [
        (b"no json", "line 2: not JSON"),
        (b"\xff", "cannot be read"),
        (b"[]", "line 2: expected an object of texts"),
        (b'{"prompt": "a"}', "line 2: expected an object of texts"),
        (b'{"prompt": "a", "completion": 1}', "line 2: expected an object of texts"),
        (b'{"prompt": " ", "completion": "b"}', "line 2: expected an object of texts"),
        (b'{"prompt": "a", "completion": "b", "more": 1}', "line 2: expected an object of texts"),
    ]:
        REPLAY.write_bytes(b'{"prompt": "a", "completion": "b"}\n' + line + b"\n")
        with pytest.raises(UserError, match=message):
            main()


def test_replay_of_nearly_a_held_prompt_is_refused() -> None:
    hold_out(row(101, "text"), make_record("Write a poem about rain", "x", None, "raw", "r:1"))
    REPLAY.write_text('{"prompt": "Write a poem about rain!", "completion": "yes"}\n')
    with pytest.raises(UserError, match=r"line 1: the prompt is 97\.87 % like one in the hold-out"):
        main()


def test_a_row_of_the_holdout_in_the_training_rows_is_refused_and_named() -> None:
    """Whoever puts it there: by hand, or an augmentation gone wrong."""
    hold_out(row(101, "text"), gone=[row(102, "text")])
    for leak in (row(101, "text"), make_record("prompt of the  ROW 102", "other", None, "raw", "raw.jsonl:101")):
        write_records(paths.SPLIT_TRAIN, [*TRAIN, leak])
        with pytest.raises(Refusal, match=rf"1 rows of the training rows .*: raw\.jsonl:101 \({leak.id[:12]}\)"):
            main()
        assert not paths.TRAIN.exists()


def test_the_answer_to_malformed_input_keeps_the_contract_of_the_task() -> None:
    write_params(malformed_completion='{"n": 1}')
    with pytest.raises(UserError, match=r"malformed_completion: '{\"n\": 1}' is no answer of the task \('intent' is"):
        main()
    write_params(malformed_completion="unreadable")
    with pytest.raises(UserError, match=r"is no answer of the task \(not JSON"):
        main()
    write_params({"kind": "text"}, malformed_completion="unreadable")
    main()
    write_params({"kind": "classification", "labels": ["a", "b"]}, malformed_completion="unreadable")
    with pytest.raises(UserError, match="none of its labels: a, b"):
        main()
    write_params(malformed_every=None, malformed_completion="unreadable")
    main()


def test_only_rows_of_tasks_that_can_refuse_are_broken() -> None:
    write_records(paths.SPLIT_TRAIN, [*TRAIN, *(row(n, "a", "triage") for n in range(200, 220))])
    write_params({"tags": {"triage": {"kind": "classification", "labels": ["a", "b"]}}})
    main()
    assert {record.task for record in by_source()["augment:malformed"]} == {None}
    assert len(by_source()["augment:malformed"]) == 4


def test_small_tasks_are_brought_up_to_their_share() -> None:
    rows = [row(n, "{}", "big") for n in range(20)] + [row(n, "{}", "small") for n in range(20, 23)]
    write_records(paths.SPLIT_TRAIN, rows)
    write_params(smallest_task_share=0.5, malformed_every=None, replay_share=0.1)
    main()
    copies = by_source()["augment:task_balance"]
    assert {record.task for record in copies} == {"small"}
    assert len(copies) == 7
    assert sorted(Counter(record.id for record in copies).values()) == [2, 2, 3]
    metrics = read_json(paths.AUGMENT_METRICS)
    assert metrics["tasks"] == {"big": {"in": 20, "out": 20}, "small": {"in": 3, "out": 10}}
    assert metrics["added"]["task_balance"] == 7
    write_params(smallest_task_share=0, malformed_every=None)
    main()
    assert read_json(paths.AUGMENT_METRICS)["tasks"]["small"] == {"in": 3, "out": 3}


def test_no_training_rows() -> None:
    write_records(paths.SPLIT_TRAIN, [])
    with pytest.raises(UserError, match="has no rows"):
        main()


def test_swapped_rows_keep_away_from_the_held_ones() -> None:
    def weather(city: str, when: str, line: int) -> Record:
        return make_record(f"Weather in {city} {when}", json.dumps({"city": city}), "x", "raw", f"raw.jsonl:{line}")

    whens = [letter * 40 for letter in "abcdefghijkl"]
    write_records(paths.SPLIT_TRAIN, [weather(f"Town{n}", when, n) for n, when in enumerate(whens)])
    held = weather("Town1", whens[0] + "!", 50)
    hold_out(held)
    write_params(value_swapped_per_row=3, malformed_every=None, replay_share=0.0, structured_share=0.0)
    main()
    swapped = by_source()["augment:value_swap"]
    assert len(swapped) > 12
    assert all(
        not is_near(normalise(row.prompt), normalise(held.prompt), PARAMS["dedup"]["threshold"]) for row in swapped
    )
    metrics = read_json(paths.AUGMENT_METRICS)
    assert metrics["added"]["value_swapped"] == len(swapped)
    assert metrics["left_out"] == {"value_swapped": {"near_prompt": 36 - len(swapped)}}
    assert metrics["rows"]["out"] == 12 + len(swapped)


def test_made_rows_keep_away_from_the_held_ones_by_all_the_rules_of_the_split() -> None:
    def weather(city: str, words: str, line: int) -> Record:
        return make_record(f"{words} {city}", json.dumps({"city": city}), "x", "raw", f"raw.jsonl:{line}")

    letter = "The ferry to the northern islands left at seven"
    words = [
        "Weather, please, for the whole of this long week in",
        "Should I take an umbrella tomorrow to",
        "Is it cold",
    ]
    write_records(paths.SPLIT_TRAIN, [weather(f"Town{n}", words[n % 3], n) for n in range(9)])
    pair = weather("Town1", words[0].replace("the whole of", "all"), 50)  # near Town1 in words[0] at 80 alone
    text = make_record(f"{letter}\nHow late was it?", "{}", "x", "raw", "raw.jsonl:51")
    hold_out(pair, text)
    REPLAY.write_text(json.dumps({"prompt": "A new question", "completion": "yes"}) + "\n")
    write_params(value_swapped_per_row=2, malformed_every=None, replay_share=0.1, structured_share=0.0)
    main()
    answers = [(row.prompt, row.completion) for row in by_source()["augment:value_swap"]]
    assert (f"{words[0]} Town1", pair.completion) not in answers
    assert read_json(paths.AUGMENT_METRICS)["left_out"]["value_swapped"] == {"near_pair": 1}
    REPLAY.write_text(json.dumps({"prompt": f"Translate into French:\n{letter}", "completion": "Le ferry"}) + "\n")
    with pytest.raises(UserError, match=r"line 1: a line of the prompt, which few rows have, is in the hold-out"):
        main()
