"""What transformers answers in this process: the likeliest label, JSON by a grammar, and what it takes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import llguidance
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import save_tiny_model
from tokenizers import decoders

from stages.core.errors import UserError
from stages.engines import in_process
from stages.engines.in_process import MOST_LABELS, Grammar, cost, in_process_rows
from stages.model.answers import answer, rows_with_likelihood
from stages.model.chat import Chat, make_chat
from stages.model.loading import Weights, load_tokenizer
from stages.params.model import Generation
from stages.records.record import make_record
from stages.text.json_schema import Schema
from stages.text.strict_json import BrokenContract, parse_json

RECORDS = [make_record(f"order {n}", "refund", "refund", "s", f"s:{n}") for n in range(6)]
LABELS = ["refund", "refunds", "größer", 'a "quoted" one']
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # of which a random model would write without end
}
FEW = Generation(max_new_tokens=12)
FREE = [None] * len(RECORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("in_process") / "model", seed=3)


@pytest.fixture
def weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.chdir(tmp_path)
    return Weights(folder)


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return make_chat(load_tokenizer(folder), "Answer.")


def test_the_label_is_the_likeliest_whole_completion_one_by_one(weights: Weights, chat: Chat) -> None:
    held = [{"labels": LABELS}] * 5 + [None]
    rows = in_process_rows(weights, chat, RECORDS, FEW, held, "labels")
    free = rows_with_likelihood(weights, chat, RECORDS, FEW, "free")
    for row, record in zip(rows[:5], RECORDS[:5], strict=True):
        nats = []
        for label in LABELS:
            prompt, completion = chat.prompt_ids(record), chat.completion_ids(label)
            assert completion[-1] == chat.stop_id
            with torch.inference_mode():
                logits = weights.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            nats.append(-logits.log_softmax(-1)[range(len(completion)), completion].sum().item())
        assert row["output"] == LABELS[nats.index(min(nats))]
        assert (row["stopped"], row["tokens"]) == (True, len(chat.completion_ids(row["output"])))
    assert rows[5] == free[5]
    assert [row["nats"] for row in rows] == [row["nats"] for row in free]


def test_more_labels_than_a_short_list_are_decoded_by_a_grammar(
    weights: Weights, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [f"label {n:03}" for n in range(MOST_LABELS + 1)]
    monkeypatch.setattr(in_process, "_likeliest", None)
    rows = in_process_rows(weights, chat, RECORDS[:2], FEW, [{"labels": labels}] * 2, "many")
    assert {row["output"] for row in rows} <= {*labels}
    assert all(row["stopped"] for row in rows)


def test_answers_held_to_a_schema_are_valid_in_any_batch_and_greedy_within_it(weights: Weights, chat: Chat) -> None:
    """Rows leave the batch at different times; what each says is what it says alone."""
    records = [replace(record, prompt="go on " * n + record.prompt) for n, record in enumerate(RECORDS)]
    long, held = Generation(max_new_tokens=60), {"schema": SCHEMA}
    together = answer(weights.model, chat, records, long, "held", Grammar(held, chat))
    alone = [answer(weights.model, chat, [one], long, "held", Grammar(held, chat))[0] for one in records]
    assert together == alone
    ended = [json.loads(one.output) for one in together if one.stopped]
    assert ended
    assert all(one.keys() == {"a", "b"} and one["a"] in "xy" for one in ended)
    assert all(one.output.lstrip().startswith("{") for one in together)
    rows = in_process_rows(weights, chat, records, long, [held] * 6, "held")
    assert [row["output"] for row in rows] == [one.output for one in together]


LEAVES = st.one_of(
    st.lists(st.sampled_from(["x", 'a "b"', "größer", 7, 2.5, True, None, {"a": [1]}]), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["boolean", "null"]).map(lambda kind: {"type": kind}),
    st.tuples(st.integers(-300, 0), st.integers(0, 300)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
    ),
    st.tuples(st.integers(0, 2), st.integers(2, 5)).map(
        lambda ends: {"type": "string", "minLength": ends[0], "maxLength": ends[1]}
    ),
    st.sampled_from([r"^[A-Z]-\d{1,3}$", r"^(\w\w|é)$", "^.?$"]).map(lambda one: {"type": "string", "pattern": one}),
    st.sampled_from(["date", "time", "ipv4", "uuid"]).map(lambda one: {"type": "string", "format": one}),
)


def closed(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects whose names are all given, lists of few items, and a choice of two."""
    objects = st.dictionaries(st.sampled_from(["a", "b", "ö", 'q"']), inner, max_size=3).flatmap(
        lambda named: st.sets(st.sampled_from(sorted(named)) if named else st.nothing()).map(
            lambda required: {
                "type": "object",
                "properties": named,
                "required": sorted(required),
                "additionalProperties": False,
            }
        )
    )
    lists = inner.map(lambda one: {"type": "array", "items": one, "minItems": 1, "maxItems": 2})
    return st.one_of(objects, lists, st.tuples(inner, inner).map(lambda two: {"anyOf": [*two]}))


def held_texts(schema: dict[str, Any], chat: Chat, seed: int) -> list[str]:
    """What four rows of a batch say that are drawn at random among what the grammar allows, where they end."""
    grammar, noise = Grammar({"schema": schema}, chat), torch.Generator().manual_seed(seed)
    grammar.begin(4)
    ids = torch.zeros(4, 1, dtype=torch.long)
    while not all(chat.stop_id in row for row in ids.tolist()) and ids.shape[1] < 300:
        scores = torch.randn(4, len(chat.tokenizer), generator=noise)
        scores[:, chat.stop_id] += 3
        ids = torch.cat([ids, grammar(ids, scores).argmax(-1, keepdim=True)], 1)
    rows = [row[1:] for row in ids.tolist()]
    return [chat.text(row[: row.index(chat.stop_id)]) for row in rows if chat.stop_id in row]


@settings(max_examples=60)
@given(schema=st.recursive(LEAVES, closed, max_leaves=5), seed=st.integers(0, 1 << 20))
def test_an_answer_that_the_stop_token_ends_always_fits_its_schema(
    schema: dict[str, Any], seed: int, chat: Chat, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draft = "http://json-schema.org/draft-07/schema#"  # which asserts `format`
    schema = {"$schema": draft, "x-guidance": {"whitespace_flexible": False}, **schema}
    file = tmp_path_factory.getbasetemp() / "held.json"
    file.write_text(json.dumps(schema), encoding="utf-8")
    texts = held_texts(schema, chat, seed)
    assert texts
    # llguidance lets every minute have a leap second, and the standard the last one of a day in UTC.
    texts = [text for text in texts if not re.search(r":\d\d:60", text)]
    assert [(text, Schema(file).problem(parse_json(text))) for text in texts] == [(text, None) for text in texts]


def test_of_an_object_with_open_names_a_grammar_cannot_know_which_ones_stand_there_already(chat: Chat) -> None:
    """The one way in which answers of such a schema break their contract."""
    schema = {
        "type": "object",
        "patternProperties": {"^[ab]$": {"type": "null"}},
        "additionalProperties": False,
        "minProperties": 3,
        "maxProperties": 3,
        "x-guidance": {"whitespace_flexible": False},
    }
    (text, *_) = held_texts(schema, chat, 0)
    with pytest.raises(BrokenContract, match="occurs more than once"):
        parse_json(text)


def test_what_cannot_be_held_is_a_sentence(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="llguidance cannot hold answers to it: Pointer '/nowhere'"):
        Grammar({"schema": {"$ref": "#/nowhere"}}, chat)
    for key, value in (("uniqueItems", True), ("not", {"type": "null"}), ("contains", {"type": "null"})):
        with pytest.raises(UserError, match=rf"cannot hold answers to it: Unimplemented keys: \[\"{key}\"\]"):
            Grammar({"schema": {key: value}}, chat)
    monkeypatch.setattr(in_process, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tunetrail\[enforce\]"):
        Grammar({"schema": SCHEMA}, chat)


def test_an_answer_held_by_another_llguidance_is_not_remembered(
    weights: Weights, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> bool:
        in_process_rows(weights, chat, RECORDS[:1], FEW, [{"schema": SCHEMA}], "held")
        return bool(weights.spent["held"]["remembered"])

    assert [known(), known()] == [False, True]
    monkeypatch.setattr(llguidance, "__version__", "0.0.1")
    assert not known()


def test_a_schema_that_says_nothing_allows_any_json(chat: Chat) -> None:
    texts = held_texts({}, chat, 3)
    assert texts
    assert all(json.loads(text) is not texts for text in texts)


def test_cost_is_that_of_the_artefact_and_is_measured_once(weights: Weights, chat: Chat) -> None:
    taken = cost(weights, chat, RECORDS, FEW, FREE)
    answered = answer(weights.model, chat, RECORDS, FEW, "again")
    assert (taken["tokens"], taken["at_once"]) == (sum(one.tokens for one in answered), len(RECORDS))
    assert all(taken[name] > 0 for name in ("seconds_to_load", "tokens_per_second", "peak_memory_mib"))
    assert cost(Weights(weights.folder), chat, RECORDS, FEW, FREE) == {**taken, "remembered": True}
    labelled = cost(Weights(weights.folder), chat, RECORDS[:2], FEW, [{"labels": LABELS}] * 2)
    assert not labelled["remembered"]
    ballast = torch.ones(100 << 18)  # 100 MiB of a model before this one
    del ballast
    assert cost(weights, chat, RECORDS[:2], FEW, FREE[:2])["peak_memory_mib"] < taken["peak_memory_mib"] + 50


def test_a_tokenizer_that_llguidance_reads_as_other_text_holds_no_answer(folder: Path) -> None:
    """Its bytes are letters such as Ġ, and its decoder names byte pieces: answers lost 22 points under the schema."""
    tokenizer = load_tokenizer(folder)
    backend = tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.ByteLevel()])
    with pytest.raises(UserError, match="reads the tokens of this tokenizer as other text"):
        Grammar({"schema": SCHEMA}, make_chat(tokenizer, "Answer."))
