"""Preferences as rows: what is read, what never reaches training, what an answer is worth; TRL's private names."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import make_tasks
from tiny_model import tiny_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stages.core import paths
from stages.core.errors import UserError
from stages.model.answers import Answer
from stages.model.chat import Chat, make_chat
from stages.params.loader import Params
from stages.params.model import Prefer, Train
from stages.params.task import Task
from stages.records.record import make_record, write_records, write_rows
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks
from stages.text.normal_form import normalise
from stages.tune.prefer import beyond_imitation
from stages.tune.prefer.beyond_imitation import Lesson, make_lesson
from stages.tune.prefer.objectives import reward, rewards
from stages.tune.prefer.preference_rows import Preference, held_back, read_preferences

CHAT = make_chat(tiny_tokenizer(), "")
PROMPTS = st.one_of(
    st.sampled_from(["Play some jazz", "play  some jazz!", "plays some jazzy", "Stop the music", "STOP THE MUSIC"]),
    st.text("abc ", min_size=1, max_size=12).filter(str.strip),
)


def opinion(prompt: str) -> Preference:
    return Preference(make_record(prompt, "yes", None, "people", "a:1"), "no", True)


@settings(max_examples=60)
@given(st.lists(PROMPTS, max_size=12), st.floats(0, 1), st.integers(0, 5))
def test_no_prompt_is_learnt_and_held_back(asked: list[str], share: float, seed: int) -> None:
    rows = [opinion(prompt) for prompt in asked]
    learnt, measured = held_back(rows, share, seed)
    assert len(learnt) + len(measured) == len(rows)
    assert not {normalise(r.record.prompt) for r in learnt} & {normalise(r.record.prompt) for r in measured}
    assert bool(learnt) == bool(rows)


SAID = st.one_of(
    st.builds(
        json.dumps, st.fixed_dictionaries({}, optional={"intent": st.sampled_from(["a", "b"]), "order": st.none()})
    ),
    st.text(max_size=8),
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    tags = {"tone": {"kind": "classification", "labels": ["kind", "a"]}, "reply": {"kind": "text", "max_words": 1}}
    return make_tasks(tmp_path_factory.mktemp("tasks"), tags=tags)


@settings(max_examples=25)
@given(st.lists(st.tuples(SAID, SAID, st.sampled_from([None, "tone", "reply"]), st.booleans()), min_size=1, max_size=5))
def test_the_reward_is_what_the_scores_say(tasks: Tasks, rows: list[tuple[str, str, str | None, bool]]) -> None:
    chat = CHAT
    records = [make_record("ask", right, None, "a", "a:1", task=task) for right, _, task, _ in rows]
    ids = [chat.completion_ids(said)[: None if ended else -1] for _, said, _, ended in rows]
    found = rewards(records, tasks, chat)(completion_ids=ids, row=list(range(len(rows))), prompts=[], completions=[])
    for worth, record, one in zip(found, records, ids, strict=True):
        output = chat.text(one[:-1] if one[-1:] == [chat.stop_id] else one)
        row = {"id": "", "completion": record.completion, "label": None, "output": output, "tokens": 1}
        score = score_row(row | ({"task": record.task} if record.task else {}), tasks)
        assert worth == reward(score)
        assert 0 <= worth <= 1
        if score.kind != "text":
            assert (worth == 1) == (score.valid and score.exact_match)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "expected a JSON object"),
        ({"prompt": "a", "chosen": "b", "source": "s"}, "expected either chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "label": True, "source": "s"}, "expected either"),
        ({"prompt": "a", "chosen": "b", "rejected": "b ", "source": "s"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "é", "rejected": "e\u0301", "source": "s"}, "chosen and rejected are the same"),
        ({"prompt": "a", "completion": "b", "label": 1, "source": "s"}, "label must be true or false"),
        ({"prompt": " ", "completion": "b", "label": True, "source": "s"}, "prompt must be a text"),
        ({"prompt": "a", "completion": "b", "label": True}, "source must be a text"),
        (
            {"prompt": "a", "completion": "b", "label": True, "source": "s", "context": [1]},
            "context a list of messages",
        ),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path: Path, row: Any, words: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{words}"):
        read_preferences(tmp_path)


def test_rows_keep_their_place_and_repeats_count_once(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c\r\n", "source": "s", "annotator": "ann"}
    thumb = {"prompt": "a", "completion": "b", "label": False, "source": "s", "task": "t"}
    (tmp_path / "below").mkdir()
    (tmp_path / "below/rows.jsonl").write_text("\n".join(map(json.dumps, [pair, thumb, pair])))
    first, second = read_preferences(tmp_path)
    assert (first.record.origin, first.rejected, first.good) == ("below/rows.jsonl:1", "c\n", True)
    assert (second.record.task, second.rejected, second.good) == ("t", None, False)
    assert list(first.thumbs()) == [("b", True), ("c\n", False)]


def chat_without(letter: str) -> Chat:
    """Of a tokenizer that has no token for the letter, and leaves it out."""
    tokenizer = tiny_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["model"]["vocab"][letter]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="<|im_end|>")
    made.chat_template = tokenizer.chat_template
    return make_chat(made, "")


def lesson(monkeypatch: pytest.MonkeyPatch, folder: Path, chat: Chat, **prefer: Any) -> Lesson:
    monkeypatch.chdir(folder)
    sections: dict[str, Any] = {"prefer": Prefer(max_new_tokens=4, **prefer), "train": Train(max_tokens=60), "seed": 1}
    sections |= {"task": Task(kind="text", instruction=""), "dedup": SimpleNamespace(threshold=90)}
    for file in (paths.HOLDOUT, paths.LOCKED, paths.VALIDATION):
        write_records(file, [])
    write_records(paths.TRAIN, [make_record(one, "x", None, "raw", f"raw:{one}") for one in "abcd"])
    return make_lesson(Params.model_construct(**sections), chat, like=False)


@pytest.mark.parametrize("said", [("Q", "b"), ("b", "aQ")])
def test_a_preferred_or_rejected_answer_that_the_tokenizer_cannot_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: tuple[str, str]
) -> None:
    row = {"prompt": "a", "chosen": said[0], "rejected": said[1], "source": "s"}
    write_rows(tmp_path / paths.PREFERENCES / "rows.jsonl", [row])
    with pytest.raises(UserError, match=r"rows\.jsonl:1 is of those rows that have a completion that the tokenizer"):
        lesson(monkeypatch, tmp_path, chat_without("Q"), objective="dpo")


def test_answers_of_a_teacher_that_the_model_cannot_learn_as_they_were_said_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(
        [[Answer("yes", 2, True), Answer("Q", 2, True), Answer("x" * 90, 2, True), Answer("", 4, False)], []]
    )
    monkeypatch.setattr(beyond_imitation, "answer", lambda *_: next(answers))
    monkeypatch.setattr(beyond_imitation, "load_tokenizer", lambda _: tiny_tokenizer())
    found = lesson(monkeypatch, tmp_path, chat_without("Q"), objective="distil", teacher="teacher")
    assert [record.completion for record in found.train] == ["yes"]
    assert found.left_out == {"general": 0, "too_long": 0, "unfinished_by_the_teacher": 3}


def test_trl_has_the_private_names() -> None:
    for trainer in (trl.DPOTrainer, trl.KTOTrainer):
        assert list(inspect.signature(trainer._prepare_dataset).parameters)[1] == "dataset"
    for trainer in (trl.GRPOTrainer, trl.DistillationTrainer):
        assert list(inspect.signature(trainer._tokenize_prompts).parameters) == ["self", "prompts"]
        assert "prompt_ids, images, multimodal_fields" in inspect.getsource(trainer._tokenize_prompts)
