"""Limits that contradict each other are found before any time is spent: for any limits, by their definition."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer

from stages.core import paths
from stages.core.files import write_json
from stages.limits import unanswerable, unreachable_gates
from stages.model.chat import make_chat
from stages.params.measure import Gate
from stages.records.record import Record, make_record
from stages.scoring.intervals import proportion_interval

CHAT = make_chat(tiny_tokenizer(), "")
FRAME = len(CHAT.prompt_ids(make_record("p", "c", None, "s", "s:1"))) - 1


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("limits"))
        yield


def records(prompt: int, answers: list[int]) -> list[Record]:
    """One token is one byte."""
    return [make_record("p" * prompt, "c" * n, None, "s", f"s:{number}") for number, n in enumerate(answers)]


def found(rows: list[Record], limit: int, positions: int | None) -> list[str]:
    write_json(paths.BASE / "config.json", {"max_position_embeddings": positions})
    return list(unanswerable(CHAT, rows, limit))


def test_references_that_are_all_longer_than_an_answer_may_be_are_named(tmp_path: Path) -> None:
    (problem,) = found(records(5, [41] * 18), 40, 512)
    assert problem.startswith("18 of 18 reference answers are longer than generation.max_new_tokens = 40")
    assert problem.endswith("set it to 41")
    assert found(records(5, [41] * 18), 41, 512) == [], "the stop token is not said"
    assert found(records(5, [41] + [40] * 19), 40, 512) == [], "one of twenty is tolerated"


@given(
    answers=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    prompt=st.integers(1, 40),
    limit=st.integers(1, 40),
    room=st.integers(2, 80),
)
def test_what_it_names_is_what_no_model_could_say(answers: list[int], prompt: int, limit: int, room: int) -> None:
    rows = records(prompt, answers)
    said = found(rows, limit, FRAME + room)
    longer = sum(n > limit for n in answers)
    wider = sum(prompt + n > room for n in answers)
    expected = [f"{n} of {len(answers)} {what}" for n, what in ((longer, "reference"), (wider, "rows"))]
    wanted = [one for one, n in zip(expected, (longer, wider), strict=True) if 20 * n > len(answers)]
    assert [" ".join(one.split()[:4]) for one in said] == wanted
    assert found(rows, max(answers), None) == [], "a limit of the longest holds all"


@given(rows=st.integers(0, 400), minimum=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_a_gate_that_no_answers_could_pass_is_named(rows: int, minimum: float, confidence: float) -> None:
    gate = Gate(model="adapter", metric="exact_match", minimum=minimum)
    params: Any = SimpleNamespace(gates={"good": gate}, scoring=SimpleNamespace(confidence=confidence))
    most = proportion_interval(rows, rows, confidence)[0] if rows else 0
    assert len(list(unreachable_gates(params, rows))) == (most < minimum)
    others = {
        "advisory": gate.model_copy(update={"required": False}),
        "by value": gate.model_copy(update={"evidence": "value"}),
        "a part": gate.model_copy(update={"of": {"label": "a"}}),
        "a change": gate.model_copy(update={"against": "base"}),
        "a maximum": Gate(model="adapter", metric="exact_match", maximum=0.5),
    }
    params = SimpleNamespace(gates=others, scoring=SimpleNamespace(confidence=confidence))
    assert list(unreachable_gates(params, rows)) == []
