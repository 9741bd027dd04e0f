"""Candidates for the base model: what is said of each, and what it costs to do without training."""

import re
import shutil
from pathlib import Path

import pytest
from project import ROOT
from tiny_model import CHAT_TEMPLATE, save_tiny_model
from training_project import lay_out, training_records

from stages.cli import main
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import tree_digest
from stages.model.chat import make_chat
from stages.model.loading import load_tokenizer
from stages.records.record import Message, make_record, write_records
from stages.scoring.metrics import Share
from stages.tune.bases import (
    Answered,
    Candidate,
    _measure,
    examples,
    licence_of,
    look_at,
    notes,
    table,
    whether_it_pays,
    with_examples,
)
from stages.tune.estimate import Prices, read_prices

ONE = Share(1, 4, 0.1, 0.8)
PRICES = "currency: EUR\nprompt_million_tokens: 0.1\nanswer_million_tokens: 0.4\nrun_hour: 2\n"


def answered(prompt_tokens: float, over: int = 0) -> Answered:
    return Answered(ONE, None, prompt_tokens, 20.0, 10.0, over)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_out(tmp_path)
    for name in ("data/schema.json", "data/chat_template.jinja"):
        shutil.copy(ROOT / name, tmp_path / name)
    write_records(tmp_path / paths.SPLIT_TRAIN, training_records(40))
    shutil.copy(tmp_path / paths.VALIDATION, tmp_path / "data/split/held.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_candidate_is_asked_the_validation_rows_with_and_without_examples(project: Path) -> None:
    source = save_tiny_model(project / "candidate")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    found = _measure("path:candidate", rows=4, shots=2)
    assert (found.fault, found.licence, found.sha256) == ("", "mit", tree_digest(source))
    assert found.template == "its own"
    tokenizer = load_tokenizer(source)
    rows = training_records(40)
    pieces = sum(len(tokenizer(f"{r.prompt} {r.completion}", add_special_tokens=False)["input_ids"]) for r in rows)
    assert found.tokens_a_word == pieces / sum(len(f"{r.prompt} {r.completion}".split()) for r in rows)
    assert found.zero_shot
    assert found.few_shot
    assert found.zero_shot.exact_match.n == found.few_shot.exact_match.n == 4
    assert found.few_shot.prompt_tokens > found.zero_shot.prompt_tokens
    assert found.memory_mib > 0
    shown = table([found, Candidate("path:broken", "", "not said", "it has no weights")])
    assert list(shown.columns) == ["path:candidate"]
    assert shown.loc["Licence", "path:candidate"] == "mit"
    assert re.fullmatch(r"\d+\.\d% \(\d+\.\d% to \d+\.\d%\)", shown.loc["Exact match", "path:candidate"])


def test_a_template_that_cannot_be_used_gives_way_to_the_projects(project: Path) -> None:
    source = save_tiny_model(project / "candidate")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (project / "data/chat_template.jinja").write_text(CHAT_TEMPLATE)
    found = _measure("path:candidate", rows=2, shots=0)
    assert found.template.startswith("the project's: the chat template")
    assert found.few_shot is None
    (project / "data/chat_template.jinja").write_text("{# its own #}")
    assert "the chat template" in _measure("path:candidate", rows=2, shots=0).fault


def test_a_source_that_cannot_be_had_is_a_sentence_beside_the_others(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bases", "path:nowhere", "--rows", "0"])
    assert ended.value.code == 2
    main(["bases", "path:nowhere", "--write", str(project / "bases.md")])
    assert "path:nowhere cannot be used: nowhere does not exist" in capsys.readouterr().out
    assert "nowhere does not exist" in (project / "bases.md").read_text()


def test_without_rows_it_says_which_stage_writes_them(project: Path) -> None:
    (project / paths.VALIDATION).unlink()
    with pytest.raises(UserError, match="dvc repro split"):
        list(look_at(["path:x"], 4, 0))


def test_examples_are_of_every_label_before_a_second_of_any() -> None:
    rows = [make_record(f"p{n}", f"c{n}", "abc"[n % 3] if n < 9 else "a", "s", f"s:{n}") for n in range(30)]
    rows.append(
        make_record("turns", "c", "d", "s", "s:99", context=[Message("user", "hi"), Message("assistant", "yo")])
    )
    for seed in range(20):
        assert {row.label for row in examples(rows, 3, seed)} == {"a", "b", "c"}
        assert examples(rows[::-1], 3, seed) == examples(rows, 3, seed)
    assert "d" not in {row.label for row in examples(rows, 40, 1)}


def test_examples_stand_before_the_rows_own_turns_and_after_its_system_message(tmp_path: Path) -> None:
    given = [make_record("one?", "1", None, "s", "s:1")]
    row = make_record("two?", "2", None, "s", "s:2", context=[Message("system", "Count."), Message("user", "hi")])
    asked = with_examples(row, given)
    assert [(m.role, m.content) for m in asked.context] == [
        ("system", "Count."),
        ("user", "one?"),
        ("assistant", "1"),
        ("user", "hi"),
    ]
    chat = make_chat(load_tokenizer(save_tiny_model(tmp_path / "tiny")), "Answer.")
    shown = chat.text(chat.prompt_ids(with_examples(given[0], given)))
    assert shown.count("one?") == 2


def test_what_examples_cost_against_a_run() -> None:
    found = Candidate("path:x", "", "mit", zero_shot=answered(60), few_shot=answered(260))
    prices = Prices("EUR", 0.1, 0.4, 2.0)
    lines = whether_it_pays(found, prices, 0.5)
    # 200 more tokens a prompt are 20 EUR a million requests; a run is 1 EUR
    assert "34.00 EUR" in lines[0]
    assert "14.00 EUR" in lines[0]
    assert lines[1].endswith("repay it after 50,000 requests.")
    assert (
        "never repay"
        in whether_it_pays(Candidate("path:x", "", "", zero_shot=answered(60), few_shot=answered(60)), prices, 0.5)[1]
    )
    assert "tunetrail estimate" in whether_it_pays(found, prices, None)[1]
    assert "--shots" in whether_it_pays(Candidate("path:x", "", "", zero_shot=answered(60)), prices, 1)[0]


def test_prompts_that_the_context_does_not_hold_are_named() -> None:
    found = Candidate("path:x", "", "", zero_shot=answered(60), few_shot=answered(260, over=3))
    assert notes([found]) == ["path:x: 3 prompts with examples are longer than its context, and count as wrong"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("currency: EUR\n", "must have currency"),
        (PRICES + "more: 1\n", "must have currency"),
        (PRICES.replace("run_hour: 2", "run_hour: -2"), "run_hour is -2"),
        (PRICES.replace("run_hour: 2", "run_hour: .inf"), "run_hour is inf"),
        (PRICES.replace("run_hour: 2", "run_hour: yes"), "run_hour is 'yes'"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_prices_that_are_none_are_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        read_prices(tmp_path / "prices.yaml")
    (tmp_path / "prices.yaml").write_text(PRICES)
    assert read_prices(tmp_path / "prices.yaml") == Prices("EUR", 0.1, 0.4, 2)


def test_a_card_without_front_matter_says_nothing_of_the_licence(tmp_path: Path) -> None:
    for text in ("# Title", "---\nlicense: [", "---\n- a\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert licence_of("path:x", tmp_path, tmp_path) == "not said"
