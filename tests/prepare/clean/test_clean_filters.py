"""What keeps a clean record out: refusals, repetition, another language."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from clean_project import ROOT, CleanProject, row
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.core.yaml_reader import load_yaml
from stages.params.prepare import Clean
from stages.prepare.clean.cleaning import chosen_filters, repeated_share
from stages.prepare.clean.rejected_rows import Rejected
from stages.records.record import Message, make_record

OFF: dict[str, Any] = {"refusals": [], "max_repetition": None, "languages": []}
REFUSALS = Clean().refusals
NEEDS_LINGUA = pytest.mark.skipif(not find_spec("lingua"), reason="the extra `language` is not installed")


def why(prompt: str, completion: str = "{}", context: tuple[Message, ...] = (), **on: Any) -> tuple[str, str] | None:
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))["clean"]
    record = make_record(prompt, completion, None, "s", "s:1", context=context)
    try:
        for keep_out in chosen_filters(Clean(**{**params, **OFF, **on})):
            keep_out(record)
    except Rejected as rejected:
        return rejected.reason, rejected.detail
    return None


@pytest.mark.parametrize(
    "completion",
    [
        "I'm sorry, but I cannot do that.",
        "“I’m sorry, but I can’t help with that”",
        "As an AI language model, I",
        "**I can't assist with",
    ],
)
def test_a_refusal_is_known_by_how_it_opens(completion: str) -> None:
    found = why("How do I return it?", completion, refusals=REFUSALS)
    assert found is not None
    assert found[0] == "refusal"
    assert why("How do I return it?", completion) is None


@pytest.mark.parametrize(
    "completion",
    [
        "I'm sorry, but I can see that it is late.",
        "He said: as an AI language model",
        '{"answer": "I cannot assist with"}',
        "",
    ],
)
def test_what_only_sounds_like_a_refusal_stays(completion: str) -> None:
    assert why("How do I return it?", completion, refusals=REFUSALS) is None


def slow_share(text: str) -> float:
    """By the definition: mark every word of a run of five that occurred before."""
    words = text.split()
    marked = set()
    for start in range(len(words) - 4):
        gram = words[start : start + 5]
        if any(words[before : before + 5] == gram for before in range(start)):
            marked |= set(range(start, start + 5))
    return len(marked) / len(words)


@given(st.lists(st.sampled_from(["a", "b", "c", "other", "word"]), min_size=40, max_size=90).map(" ".join))
def test_the_repeated_share_is_that_of_its_definition(text: str) -> None:
    assert repeated_share(text) == pytest.approx(slow_share(text))


def test_repetition() -> None:
    plain = " ".join(f"word{number}" for number in range(200))
    stuck = "I do not know what to say about it. " * 20
    assert (repeated_share(plain), repeated_share("yes " * 39)) == (0, 0)
    assert repeated_share(stuck) > 0.9
    assert repeated_share("请问" * 100) > 0.9
    assert repeated_share("a" * 500) > 0.9
    assert why("ask " + plain, plain, max_repetition=0.5) is None
    assert (why(stuck, max_repetition=0.5) or ("",))[0] == "repetitive_prompt"
    assert (why("why", stuck, max_repetition=0.5) or ("",))[0] == "repetitive_completion"
    assert why("list", json.dumps([{"name": "x", "size": 1}] * 50), max_repetition=0.5) is None
    assert why(stuck, stuck) is None


@NEEDS_LINGUA
def test_only_what_is_surely_of_another_language_goes() -> None:
    on: dict[str, Any] = {"languages": ["en"], "other_languages": ["de", "fr", "es"], "language_confidence": 0.9}
    german = "Guten Tag, meine Bestellung ist noch nicht angekommen, wo bleibt sie denn?"
    found = why(german, **on)
    assert found is not None
    assert found[0] == "other_language"
    assert found[1].startswith("de with confidence")
    assert why("Where is my order? It has not arrived yet.", **on) is None
    assert why("play La Mejor Música", **on) is None  # a title, too short to be sure
    assert why(german, **{**on, "languages": ["en", "de"]}) is None


@NEEDS_LINGUA
@pytest.mark.parametrize(
    ("codes", "what"), [((["xx"], ["en"]), "cannot tell en, xx apart"), ((["en"], []), "cannot tell en apart")]
)
def test_languages_that_lingua_cannot_tell_apart(codes: tuple[list[str], list[str]], what: str) -> None:
    with pytest.raises(UserError, match=what):
        why("a", languages=codes[0], other_languages=codes[1])


@pytest.mark.parametrize(
    ("switch", "what"),
    [({"languages": ["en"]}, "tunetrail[language]"), ({"mask_personal_data": ["person"]}, "tunetrail[names]")],
)
def test_an_extra_that_is_not_installed_is_named(
    switch: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("prepare.clean.cleaning", "text.personal_data"):
        monkeypatch.setattr(f"stages.{module}.find_spec", lambda name: None)
    project = CleanProject(tmp_path, **switch)
    project.write(row())
    with pytest.raises(UserError) as caught:
        project.clean()
    assert what in str(caught.value)
