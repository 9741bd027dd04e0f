"""The shapes in which instruction data come, and what makes a row none of them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stages.prepare.clean.rejected_rows import Rejected
from stages.prepare.clean.shapes import SHAPES, Pair, detect, read_pair
from stages.records.record import Message

SYSTEM, HI, YES = Message("system", "Be brief."), Message("user", "Hi."), Message("assistant", "Yes?")
ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def pair(row: dict[str, Any], shape: str = "auto") -> Pair:
    return read_pair(row, shape, keep=[], ignore=[])


def messages(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def reason(row: dict[str, Any], shape: str = "auto") -> tuple[str, str]:
    with pytest.raises(Rejected) as caught:
        pair(row, shape)
    return caught.value.reason, caught.value.detail


def test_prompt_and_completion() -> None:
    found = pair({"prompt": "a", "completion": "b", "label": "x", "source": "mail", "task": "t", "id": 7})
    assert found == Pair("prompt_completion", "a", "b", context=[], label="x", source="mail", task="t")


def test_what_the_pipeline_wrote_it_reads() -> None:
    context = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    row = {"prompt": "a", "completion": "b", "context": [*context, {"role": "assistant", "content": "Yes?"}]}
    assert pair(row) == Pair("prompt_completion", "a", "b", context=[SYSTEM, HI, YES])


@pytest.mark.parametrize(
    ("given", "prompt"), [("text", "do it\n\ntext"), ("", "do it"), (" ", "do it"), (None, "do it")]
)
def test_alpaca(given: str | None, prompt: str) -> None:
    row = {"instruction": "do it", "input": given, "output": "done"}
    assert pair(row) == Pair("alpaca", prompt, "done", context=[])
    assert pair({"instruction": "do it", "output": "done"}).prompt == "do it"


def test_alpaca_with_a_history_and_a_system_message() -> None:
    row = {"instruction": "a", "output": "b", "system": "Be brief.", "history": [["Hi.", "Yes?"]]}
    assert pair(row) == Pair("alpaca", "a", "b", context=[SYSTEM, HI, YES])


def test_sharegpt_and_openai_messages_say_the_same() -> None:
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Yes?"), ("user", "a"), ("assistant", "b")]
    shared = {"conversations": [{"from": ROLES[role], "value": text} for role, text in turns]}
    assert pair(messages(*turns)) == Pair("messages", "a", "b", context=[SYSTEM, HI, YES])
    assert pair(shared) == Pair("sharegpt", "a", "b", context=[SYSTEM, HI, YES])
    shared["conversations"].pop(0)
    assert pair({**shared, "system": "Be brief."}) == pair({**shared, "system": "Be brief.", "id": "x_0"})
    assert pair({**shared, "system": "Be brief."}).context == [SYSTEM, HI, YES]


def test_a_list_may_come_as_text_and_a_content_in_parts() -> None:
    row = messages(("developer", "Be brief."), ("user", [{"type": "text", "text": "a"}]), ("assistant", "b"))
    assert pair(row) == pair({"messages": json.dumps(row["messages"])}) == Pair("messages", "a", "b", context=[SYSTEM])


def test_an_empty_system_message_is_none() -> None:
    assert pair(messages(("system", " "), ("user", "a"), ("assistant", "b"))).context == []


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "a", "completion": "b", "messages": None}, "prompt_completion"),
        ({"prompt": "a", "completion": "b", "messages": []}, "prompt_completion"),
        ({"prompt": "", "completion": "", "conversations": [{}]}, "sharegpt"),
        ({"prompt": None, "instruction": "a"}, "alpaca"),
        ({"messages": []}, "messages"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "a"}, "alpaca"),
        ({"output": "a"}, "alpaca"),
        ({"instruction": "a", "prompt": "b"}, "prompt_completion"),
        ({}, "prompt_completion"),
    ],
)
def test_a_shape_is_found_by_the_columns_of_the_row(row: dict[str, Any], shape: str) -> None:
    assert detect(row) == shape


def test_a_fixed_shape_is_not_looked_for() -> None:
    row = {"instruction": "a", "output": "b"}
    assert reason(row, "messages")[0] == "unknown_column"
    with pytest.raises(Rejected, match="missing_field"):
        read_pair(row, "messages", keep=[], ignore=["*"])
    assert read_pair({**row, "messages": 1}, "alpaca", keep=["messages"], ignore=[]).fields == {"messages": "1"}


@pytest.mark.parametrize(
    ("row", "why", "detail"),
    [
        (messages(("user", "a")), "no_answer", "the last turn is the user's"),
        (messages(("user", "a"), ("assistant", "b"), ("user", "c")), "no_answer", "there is no answer to learn"),
        (messages(), "bad_turns", "found no turns"),
        (messages(("system", "a")), "bad_turns", "found system"),
        (messages(("assistant", "a")), "bad_turns", "found assistant"),
        (messages(("user", "a"), ("user", "b"), ("assistant", "c")), "bad_turns", "found user, user, assistant"),
        (messages(("user", "a"), ("system", "b"), ("assistant", "c")), "bad_turns", "found user, system, assistant"),
        (messages(("user", "a"), ("tool", "b"), ("assistant", "c")), "unknown_role", "turn 2 of 'messages' has"),
        (messages((["user"], "a")), "unknown_role", "known are system"),
        (messages(("user", None)), "wrong_type", "'content' must be a string, found null"),
        (messages(("user", [{"type": "image_url"}])), "wrong_type", "parts that are no text"),
        ({"messages": [1]}, "wrong_type", "turn 1 of 'messages' must be an object, found a number"),
        ({"messages": "[{"}, "wrong_type", "text that is no JSON"),
        ({"messages": 1}, "wrong_type", "'messages' must be a list, found a number"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "unknown_role", "has tool_calls"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "wrong_type", "list of pairs"),
        ({"instruction": "a"}, "missing_field", "'output' is missing"),
        ({"messages": [], "lable": "x"}, "unknown_column", "did you mean 'label'?"),
    ],
)  # fmt: skip
def test_a_row_that_fits_no_shape_says_why(row: dict[str, Any], why: str, detail: str) -> None:
    found, sentence = reason(row)
    assert found == why
    assert detail in sentence


OPTIONAL: dict[str, dict[str, Any]] = {
    "prompt_completion": {"context": []},
    "alpaca": {"input": "", "system": "", "history": []},
    "sharegpt": {"system": ""},
    "messages": {},
}
PAIRS: dict[str, dict[str, Any]] = {
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "alpaca": {"instruction": "a", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "messages": messages(("user", "a"), ("assistant", "b")),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [None, "", [], {}, 0, False, 0.0], ids=repr)
def test_what_is_empty_says_nothing_in_any_column_and_0_and_false_are_values(shape: str, value: Any) -> None:
    plain, is_empty = PAIRS[shape], value in (None, "", [], {})
    others = {column: value for columns in PAIRS.values() for column in columns if column not in plain and is_empty}
    assert detect({**others, **plain}) == shape
    for column in (*OPTIONAL[shape], "source", "task", "label", "annotator", "kept"):
        row = {**plain, column: value}
        if is_empty:
            assert read_pair(row, "auto", keep=["kept"], ignore=[]) == pair(plain), column
        elif column in ("annotator", "kept"):
            assert read_pair(row, "auto", keep=["kept"], ignore=[]).fields == {column: json.dumps(value)}
        elif column == "label" and value is not False and isinstance(value, int):
            assert pair(row).label == "0"
        else:
            assert reason(row)[0] == "wrong_type", column
    for column in plain if value != "" else ():  # an empty text is judged by its length, when it is clean
        assert reason({**plain, column: value})[0] in ("wrong_type", "bad_turns")


TALK = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "output_with_loss"])
@pytest.mark.parametrize(("yes", "no"), [(1, 0), (True, False), (None, 0.0), ("true", "False"), ("1", "0")])
def test_an_answer_that_is_not_to_be_trained_on_is_no_completion(key: str, yes: Any, no: Any) -> None:
    names = {"messages": ("role", "content"), "conversations": ("from", "value")}
    for column, (role, text) in names.items():
        for marks, learnt in {(no, yes): "d", (yes, no): "b", (yes, yes): "d", (no, no): None}.items():
            turns = [{role: who, text: said} for who, said in TALK]
            for turn, mark in zip(turns[1::2], marks, strict=True):
                turn[key] = mark
            if learnt is None:
                assert reason({column: turns})[0] == "not_to_train"
            else:
                found = pair({column: turns})
                assert (found.completion, len(found.context), found.left_out) == (learnt, 2 * (learnt == "d"), ())
    for row in ({"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}, messages(*TALK)):
        assert pair({**row, key: yes}) == pair(row)
        assert reason({**row, key: no})[0] == "not_to_train"
        with pytest.raises(Rejected, match="not_to_train"):
            read_pair({**row, key: no}, "auto", keep=[], ignore=["*"])
        assert reason({**row, key: 0.5})[0] == "wrong_type"


@given(
    key=st.text(min_size=1) | st.sampled_from(["reasoning_content", "name", "weihgt", "cache_control", "refusal"]),
    value=st.none() | st.just([]) | st.integers(2) | st.text() | st.lists(st.integers(), min_size=1),
    at=st.integers(0, 3),
    column=st.sampled_from(["messages", "context", "conversations"]),
)
def test_a_key_of_a_turn_is_as_a_column_of_a_row(key: str, value: Any, at: int, column: str) -> None:
    role, text = ("from", "value") if column == "conversations" else ("role", "content")
    assume(key not in {role, text, "weight", "train", "training", "trainable", "loss", "output_with_loss"})
    turns: list[dict[str, Any]] = [{role: who, text: said} for who, said in TALK]
    turns[at][key] = value
    row = {"prompt": "p", "completion": "q", "context": turns} if column == "context" else {column: turns}
    plain = {name: ([{role: t[role], text: t[text]} for t in turns] if name == column else row[name]) for name in row}
    if not value:  # binary formats give every turn the keys of all
        assert pair(row) == pair(plain)
        return
    if key in ("tool_calls", "function_call", "audio", "image", "images", "video", "videos"):
        assert reason(row)[0] == "unknown_role"
        return
    why, detail = reason(row)
    assert (why, f"{column}.{key}"[:20] in detail or repr(key)[1:-1] in detail) == ("unknown_column", True)
    for ignored in (key, f"{column}.{key}", "*"):
        found = read_pair(row, "auto", keep=[], ignore=[ignored])
        assert found == replace(pair(plain), left_out=(f"{column}.{key}",))


def test_what_an_answer_speaks_of_is_not_lost() -> None:
    for key in ("images", "tool_calls", "audio"):
        row: dict[str, Any] = {"messages": [{"role": "user", "content": "a", key: ["x"]}, *messages(*TALK)["messages"]]}
        with pytest.raises(Rejected, match="which no record can hold"):
            read_pair(row, "auto", keep=[], ignore=["*"])
    parts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]
    assert reason(messages(("user", parts), ("assistant", "b")))[0] == "wrong_type"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner),
    max_leaves=8,
)
COLUMNS = "prompt completion context instruction input output system history conversations messages label task id x"
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": JSON})


@given(
    row=st.dictionaries(st.sampled_from(COLUMNS.split()), JSON | st.lists(TURN)),
    shape=st.sampled_from(["auto", *SHAPES]),
)
def test_whatever_the_columns_hold_there_is_a_pair_or_a_reason(row: dict[str, Any], shape: str) -> None:
    try:
        found = read_pair(row, shape, keep=["x"], ignore=["*"])
    except Rejected:
        return
    assert isinstance(found.prompt, str)
    assert isinstance(found.completion, str)
    assert all(isinstance(message.content, str) for message in found.context)
    roles = [message.role for message in found.context if message.role != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(message.role != "system" for message in found.context[1:])
