"""Nothing is computed twice for the same files, and nothing is taken for what it is not."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_model import save_tiny_model

from stages.core import paths
from stages.model.answers import answer
from stages.model.chat import Chat, make_chat
from stages.model.likelihoods import likelihoods
from stages.model.loading import Weights, load_tokenizer, remember
from stages.params.model import Generation
from stages.records.record import make_record

RECORDS = [make_record(prompt, "{}", None, "s", "s:1") for prompt in ("a", "another one", "c")]
SETTINGS = Generation(max_new_tokens=6)


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", seed=3)


def chat_of(folder: Path, instruction: str = "Say something.") -> Chat:
    return make_chat(load_tokenizer(folder), instruction)


def was_remembered(weights: Weights, chat: Chat, settings: Generation = SETTINGS, records: Any = RECORDS) -> bool:
    answer(weights, chat, records, settings, "test")
    known: bool = weights.spent["test"]["remembered"]
    return known


def test_a_model_is_asked_once_and_then_not_even_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, first = chat_of(folder), Weights(folder)
    said = answer(first, chat, RECORDS, SETTINGS, "test")
    held = likelihoods(first, chat, RECORDS)
    assert first.spent["test"]["tokens_per_second"] > 0

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("stages.model.loading.load_model", refuse)
    again = Weights(folder)
    assert answer(again, chat, RECORDS[::-1], SETTINGS, "test") == said[::-1]
    assert likelihoods(again, chat, RECORDS) == held
    assert again.spent["test"]["remembered"]


def test_a_loaded_model_is_always_asked(folder: Path) -> None:
    chat, weights = chat_of(folder), Weights(folder)
    remembered = answer(weights, chat, RECORDS, SETTINGS, "test")
    assert answer(weights.model, chat, RECORDS, SETTINGS, "test") == remembered
    weights.model.model.norm.weight.data.mul_(-1)
    assert answer(weights.model, chat, RECORDS, SETTINGS, "test") != remembered


def other_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def other_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


@pytest.mark.parametrize("change", [other_weight, other_config])
def test_another_file_is_another_model(folder: Path, change: Callable[[Path], None]) -> None:
    chat = chat_of(folder)
    assert not was_remembered(Weights(folder), chat)
    assert was_remembered(Weights(folder), chat)
    change(folder)
    assert not was_remembered(Weights(folder), chat)


def test_another_question_is_another_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = chat_of(folder)
    assert not was_remembered(Weights(folder), chat)
    assert not was_remembered(Weights(folder), chat_of(folder, "Say nothing."))
    assert not was_remembered(Weights(folder), chat, records=RECORDS[:2])
    assert not was_remembered(Weights(folder), chat, SETTINGS.model_copy(update={"max_new_tokens": 7}))
    monkeypatch.setenv("TUNETRAIL_GENERATION_TOKENS", "100")  # another batch may round otherwise
    assert not was_remembered(Weights(folder), chat)
    monkeypatch.delenv("TUNETRAIL_GENERATION_TOKENS")
    other_stop = Chat(chat.tokenizer, chat.instruction, chat.stop_id + 1, chat.takes_system)
    assert not was_remembered(Weights(folder), other_stop)
    monkeypatch.setattr("stages.model.loading.library_versions", lambda: {"torch": "0"})
    assert not was_remembered(Weights(folder), chat)


def test_texts_come_from_the_tokenizer_that_is_there(folder: Path) -> None:
    chat = chat_of(folder)
    answer(Weights(folder), chat, RECORDS, SETTINGS, "test")
    for file in paths.GENERATIONS_MEMORY.iterdir():
        assert all(isinstance(token, int) for ids in json.loads(file.read_text()) for token in ids)


@pytest.mark.parametrize("content", [b"", b"[[1, 2", b'{"a": 1}', b"\xff\xfe"])
def test_a_file_that_is_no_result_is_computed_anew(content: bytes) -> None:
    assert remember({"x": 1}, lambda: [1, 2]) == ([1, 2], False)
    (file,) = paths.GENERATIONS_MEMORY.iterdir()
    file.write_bytes(content)
    assert remember({"x": 1}, lambda: [1, 2]) == ([1, 2], False)
    assert remember({"x": 1}, lambda: [3]) == ([1, 2], True)


def test_a_copy_for_an_experiment_knows_what_its_checkout_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember({"x": 1}, lambda: [1])
    for copy in ("tmp1", "standalone/tmp2"):
        folder = tmp_path / ".dvc/tmp/exps" / copy
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        assert remember({"x": 1}, lambda: [2]) == ([1], True)
        assert remember({"of": copy}, lambda: [2]) == ([2], False)
    monkeypatch.chdir(tmp_path)
    assert remember({"of": "tmp1"}, lambda: [3]) == ([2], True)


def test_a_run_that_dies_leaves_nothing_that_counts() -> None:
    def die() -> list[Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember({"x": 1}, die)
    assert remember({"x": 1}, lambda: [1]) == ([1], False)


def test_runs_with_the_same_request_do_not_disturb_each_other() -> None:
    results: list[tuple[list[Any], bool]] = []
    gate = threading.Barrier(8)

    def one_run() -> None:
        gate.wait()
        results.append(remember({"x": 1}, lambda: list(range(20000))))

    threads = [threading.Thread(target=one_run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result for result, _ in results] == [list(range(20000))] * 8
    assert [file.suffix for file in paths.GENERATIONS_MEMORY.iterdir()] == [".json"]
