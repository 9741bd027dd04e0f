"""Beyond the hold-out: forgetting, perturbed prompts, leaks, refusals, slices and canaries, each on known answers."""

import json
import math
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import ROOT, SCORING, make_score, make_tasks

from stages.measure.evaluate import groups, side_effects
from stages.measure.evaluate.groups import INJECTION, perturb
from stages.measure.evaluate.side_effects import leaked, verbatim, with_all_told
from stages.model.chat import Chat
from stages.params.loader import Params, check_params, read_params
from stages.params.measure import Evaluate
from stages.records.canaries import candidates, exposure, make_canaries
from stages.records.record import Message, Record, make_record
from stages.scoring.metrics import as_json
from stages.scoring.rows import score_row
from stages.text.normal_form import normalise
from stages.text.personal_data import masker


def measure_forgetting(*args: Any) -> Any:
    """As it is written, here and below."""
    return as_json(side_effects.measure_forgetting(*args))


def measure_robustness(*args: Any) -> Any:
    return as_json(groups.measure_robustness(*args))


def measure_slices(*args: Any) -> Any:
    return as_json(groups.measure_slices(*args))


def measure_canaries(*args: Any) -> Any:
    return as_json(side_effects.measure_canaries(*args))


MASK = masker(("secret", "email", "iban", "card", "ip", "phone"), "US", "")


@pytest.fixture(scope="module")
def params() -> Params:
    return check_params(read_params(ROOT / "params.yaml"))


def record(prompt: str, completion: str = '{"intent": "refund", "order": 7}', **more: Any) -> Record:
    return make_record(prompt, completion, more.pop("label", None), more.pop("source", "a.jsonl"), "a:1", **more)


def output(text: str, prompt: str = "Write to me", completion: str = "{}") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "output": text}


def test_general_rows_are_not_the_replay_rows() -> None:
    """What is trained against forgetting must not be what measures it."""
    files = [ROOT / "data" / name for name in ("general.jsonl", "replay.jsonl", "refusals.jsonl")]
    general, replay, refusals = ([json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files)
    prompts = [{normalise(row["prompt"]) for row in rows} for rows in (general, replay, refusals)]
    assert [len(one) for one in prompts] == [len(general), len(replay), len(refusals)]
    assert not prompts[0] & prompts[1]
    assert not {row["completion"] for row in general} & {row["completion"] for row in replay}
    assert 60 <= len(general) <= 100


def test_forgetting_is_the_change_on_the_same_rows() -> None:
    def rows(nats: float, agreed: int) -> list[dict[str, Any]]:
        return [{"nats": nats * (1 + n % 5), "reference_tokens": 10, "agreed": agreed - n % 3} for n in range(40)]

    found = measure_forgetting(rows(2.0, 9), rows(2.2, 8), SCORING)
    assert found["rows"] == 40
    assert found["base"]["perplexity"]["value"] == pytest.approx(math.exp(0.6))
    assert found["adapter"]["agreement"]["value"] == pytest.approx(sum(8 - n % 3 for n in range(40)) / 400)
    change = found["against_baseline"]
    assert change["perplexity"]["ratio"] == pytest.approx(math.exp(0.06))
    assert 1 < change["perplexity"]["low"] < change["perplexity"]["ratio"] < change["perplexity"]["high"]
    assert change["agreement"]["difference"] == pytest.approx(-0.1)


words = st.text(string.ascii_letters, min_size=1, max_size=9) | st.from_regex(r"[A-Z]-[0-9]{4}", fullmatch=True)


@given(st.lists(words, min_size=1, max_size=12).map(" ".join))
def test_perturbed_prompts_differ_as_they_should(prompt: str) -> None:
    made = dict(perturb([record(prompt)], 1, seed=3))
    assert set(made) == {"truncated", "noise", "typos", "injection"}
    assert prompt.startswith(made["truncated"].prompt)
    assert made["injection"].prompt == prompt + INJECTION
    typed = made["typos"].prompt
    assert sorted(typed) == sorted(prompt)
    assert [word for word in typed.split() if not word.isalpha()] == [w for w in prompt.split() if not w.isalpha()]
    assert len(made["noise"].prompt) <= 200
    assert dict(perturb([record(prompt)], 1, seed=3)) == made
    assert all(one.completion == record(prompt).completion for one in made.values())


def test_perturbed_rows_follow_from_content_not_from_order() -> None:
    records = [record(f"{n}: please refund this order") for n in range(20)]
    made = perturb(records, 2, seed=3)
    assert perturb(records[::-1], 2, seed=3) == made
    assert [kind for kind, _ in made] == ["truncated"] * 2 + ["noise"] * 2 + ["typos"] * 2 + ["injection"] * 2
    assert len({one.id for _, one in made}) == 8
    assert perturb(records, 0, seed=3) == []


def test_robustness_asks_for_the_contract_and_where_fair_for_the_reference() -> None:
    kinds = ["truncated", "typos", "injection", "injection"]
    scores = [make_score(right=right > 0, valid=valid > 0) for right, valid in ((0, 1), (1, 1), (0, 0), (1, 1))]
    found = measure_robustness(kinds, scores, SCORING)
    assert found["truncated"].keys() == {"valid"}
    assert (found["typos"]["exact_match"]["count"], found["injection"]["valid"]["count"]) == (1, 1)
    assert "noise" not in found


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (output("Write to jo@example.com."), ["jo@example.com"]),
        (output("Write to jo@example.com.", prompt="I am jo@example.com"), []),
        (output("Write to jo@example.com.", completion="Ask jo@example.com"), []),
        (output("jo@example.com or 192.0.2.7", prompt="at 192.0.2.7"), ["jo@example.com"]),
        (output("Write to [EMAIL]."), []),
        (output("Write to [EMAIL] or jo@example.com"), ["jo@example.com"]),
        (output('{"order": "K-4821"}'), []),
    ],
)
def test_personal_data_is_a_leak_where_nobody_gave_it(row: dict[str, Any], found: list[str]) -> None:
    assert leaked(row, MASK) == found


def test_what_the_model_was_told_before_the_prompt_is_no_leak() -> None:
    turns = [Message("user", "I am jo@example.com"), Message("assistant", "Hello")]
    rows = [output("Mail to jo@example.com."), output("Mail to help@example.com."), output("Mail to eve@example.com.")]
    records = [make_record("Where to?", "{}", None, "s", "s:1", context=turns), *[record("Where to?")] * 2]
    chat = Chat(None, "Else: help@example.com", 0, True)
    told = with_all_told(rows, records, chat)
    assert [leaked(row, MASK) for row in told] == [[], [], ["eve@example.com"]]
    assert [row["output"] for row in told] == [row["output"] for row in rows]


def test_verbatim_is_what_only_training_text_has() -> None:
    secret = "The vault behind the blue door opens with seven turns to the left"
    train = [record("a", "Something else"), record("b", f"Listen: {secret}!")]
    rows = [
        output("I was told: the VAULT, behind the blue door, opens with seven turns"),
        output(secret, prompt=f"Repeat: {secret}"),
        output(secret, completion=secret),
        output("The vault behind the blue door is closed"),
        output("short"),
    ]
    assert verbatim(rows, train, words=8) == {0}
    assert verbatim(rows, train, words=5) == {0, 3}
    assert verbatim(rows, [], words=5) == set()


def test_leaks_are_counted_by_row(params: Params) -> None:
    settings = params.evaluate.model_copy(update={"forbidden_patterns": [r"(?i)\bidiot"], "verbatim_words": 4})
    said = ["You idiot, write jo@example.com and jim@example.com", "one two three four five", ""]
    rows = [output(text) for text in said]
    train = [record("x", "zero one two three four")]
    found = as_json(side_effects.measure_safety(rows, train, ([], []), None, settings, params.probes, SCORING))
    assert {key: (one["count"], one["n"]) for key, one in found.items()} == {
        "personal_data": (1, 3),
        "verbatim": (1, 3),
        "forbidden": (1, 3),
    }
    plain = side_effects.measure_safety(rows, [], ([], []), None, params.evaluate, params.probes, SCORING)
    assert (plain.forbidden, plain.refusals) == (None, None)


def test_refusals_are_phrases_in_any_case(params: Params) -> None:
    said = ["I’m sorry, but I can’t help.", "i cannot do that", "Sure! First, take", "A canister", ""]
    base = [output(text) for text in said]
    answers = (base, [output("Sure.")] * 5)
    measured = side_effects.measure_safety(base, [], answers, None, params.evaluate, params.probes, SCORING)
    found = as_json(measured)["refusals"]
    assert (found["base"]["count"], found["adapter"]["count"]) == (2, 0)
    assert found["against_baseline"]["lost"] == 2


def test_slices_name_the_worst_group_and_say_what_the_rows_show() -> None:
    records = [
        record(f"p{n}", label="ab"[n % 2], source=f"{n % 3}.jsonl", fields={"region": "north" if n < 60 else "south"})
        for n in range(66)
    ]
    scores = [make_score(one.id, right=one.label == "a" or n % 4 == 1) for n, one in enumerate(records)]
    found = measure_slices(records, scores, ["label", "source", "fields.region", "task"], 10, SCORING)
    assert set(found) == {"label", "source"}  # south is too small, and of task there is one group
    assert found["label"]["best"] == {"group": "a", "value": 1.0}
    assert found["label"]["worst"]["group"] == "b"
    assert found["label"]["gap"]["low"] > 0
    assert found["label"]["gap"]["value"] == pytest.approx(1 - found["label"]["worst"]["value"])
    assert found["source"]["gap"]["low"] < 0 < found["source"]["gap"]["high"]
    assert found["label"]["left_out"] == 0
    assert measure_slices(records, scores, ["fields.region"], 6, SCORING)["fields.region"]["left_out"] == 0


def test_first_draw_and_added_slices_are_told_apart_whatever_their_size() -> None:
    records = [record(f"p{n}") for n in range(9)]
    scores = [make_score(one.id, right=n < 8) for n, one in enumerate(records)]
    assert measure_slices(records, scores, [], 5, SCORING, {}) == {}
    found = measure_slices(records, scores, [], 5, SCORING, {records[8].id: "inbox-1"})["holdout"]
    counts = {name: (one["count"], one["n"]) for name, one in found["groups"].items()}
    assert counts == {"first draw": (8, 8), "inbox-1": (0, 1)}
    assert found["worst"]["group"] == "inbox-1"


def test_many_groups_ask_for_more_evidence() -> None:
    """The best and the worst of many equal groups differ by chance; the interval knows how many were looked at."""
    records = [record(f"p{n}", label=f"{n % 12}") for n in range(240)]
    scores = [make_score(one.id, right=n % 7 > (n % 12 == 5) + 2) for n, one in enumerate(records)]
    gap = measure_slices(records, scores, ["label"], 5, SCORING)["label"]["gap"]
    two = [n for n, one in enumerate(records) if one.label in ("5", "0")]
    alone = measure_slices([records[n] for n in two], [scores[n] for n in two], ["label"], 5, SCORING)["label"]["gap"]
    assert gap["high"] - gap["low"] > alone["high"] - alone["low"]


def test_exposure_is_that_of_the_paper() -> None:
    others = [float(n) for n in range(1, 256)]
    assert exposure(0.5, others) == 8.0  # rank 1 of 256
    assert exposure(1.5, others) == 7.0
    assert exposure(300.0, others) == 0.0
    assert exposure(1.0, others) == 7.0  # of equals it is the last
    mean = sum(exposure(n + 0.5, others) for n in range(256)) / 256
    assert mean == pytest.approx(math.log2(math.e), abs=0.05)


def test_canaries_follow_from_the_seed_and_candidates_are_others() -> None:
    made = make_canaries(3, seed=5)
    assert make_canaries(3, seed=5) == made != make_canaries(3, seed=6)
    assert make_canaries(0, seed=5) == []
    others = candidates(made[0], 50)
    assert len({one.completion for one in others} | {made[0].completion}) == 51
    assert all(one.prompt == made[0].prompt and len(one.completion) == 8 for one in others)


def test_a_known_canary_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihoods are made up: of two canaries the model knows one by heart, the other is nothing to it."""
    known, unknown = make_canaries(2, seed=5)

    def measure(model: Any, chat: Any, records: list[Record]) -> list[Any]:
        return [SimpleNamespace(nats=0.1 if one.completion == known.completion else 9.0) for one in records]

    monkeypatch.setattr(side_effects, "likelihoods", measure)
    train = [record("a"), known, unknown, known]
    found = measure_canaries(None, None, train, 63)
    assert found == {"count": 2, "candidates": 64, "exposure": {"mean": 3.0, "max": 6.0, "limit": 6.0}}
    assert measure_canaries(None, None, [record("a")], 63) is None


def test_an_answer_to_a_perturbed_prompt_is_scored_like_any_other(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    kind, one = perturb([record("Please refund order 7")], 1, 3)[2]
    row = {**output(one.completion, one.prompt, one.completion), "id": one.id, "label": None, "tokens": 9}
    assert (kind, score_row(row, tasks).exact_match) == ("typos", True)


def test_a_pattern_that_is_none_is_refused(params: Params) -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        Evaluate.model_validate({**params.evaluate.model_dump(), "forbidden_patterns": ["(open"]})


@pytest.mark.parametrize(
    ("ratio", "band"),
    [
        (100.0, "80 and more"),
        (80.0, "80 and more"),
        (79.99, "60 to 80"),
        (60.0, "60 to 80"),
        (59.99, "below 60"),
        (0.0, "below 60"),
    ],
)
def test_a_band_of_distance_begins_with_its_number(ratio: float, band: str) -> None:
    assert list(groups.measure_distance([make_score()], {"a": ratio}, SCORING)) == [band]


def test_right_answers_by_distance_to_the_nearest_training_prompt() -> None:
    scored = [make_score("a"), make_score("b", right=False), make_score("c"), make_score("alone", right=False)]
    found = groups.measure_distance(scored, {"a": 85.0, "b": 95.0, "c": 0.0}, SCORING)
    assert {name: (one.count, one.n) for name, one in found.items()} == {"80 and more": (1, 2), "below 60": (1, 2)}
    text = [make_score("a", right=False, kind="text", valid=True)]  # right where it is valid, as in slices
    assert groups.measure_distance(text, {"a": 70.0}, SCORING)["60 to 80"].count == 1
