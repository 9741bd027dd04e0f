"""What an engine's server says of an artefact, held to the contract or not; and the engine that reads other tokens."""

from pathlib import Path
from typing import Any

import pytest
from tiny_model import save_tiny_model
from tokenizers import normalizers

from stages.core.errors import Refusal, UserError
from stages.engines.gguf_export import write_gguf
from stages.model.answers import answer_rows
from stages.model.chat import make_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params.loader import Params
from stages.params.model import Engine, Generation
from stages.params.task import Task
from stages.records.record import make_record
from stages.ship.merge_quantize.served_answers import served_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("served") / "model", seed=3)
    write_gguf(folder, folder.with_name("gguf") / "model.gguf", "F16", 1)
    return folder


def params() -> Params:
    task = Task.model_validate({"kind": "classification", "instruction": "Answer.", "labels": ["refund", "invoice"]})
    sections: dict[str, Any] = {"task": task, "generation": Generation(max_new_tokens=12), "engine": Engine()}
    return Params.model_construct(**sections)


RECORDS = [make_record(f"order {n} is late", "refund", "refund", "s", f"s:{n}") for n in range(3)]


def test_rows_are_those_of_transformers_and_are_asked_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chat, settings = make_chat(load_tokenizer(model), "Answer."), params()
    artefact = model.with_name("gguf")
    rows, notes = served_rows(artefact, "llama.cpp", chat, RECORDS, settings, "none")
    assert rows == answer_rows(load_model(model), chat, RECORDS, settings.generation, "tiny")
    assert (notes["remembered"], notes["tokens"]) == (False, sum(row["tokens"] for row in rows))
    again, notes = served_rows(artefact, "llama.cpp", chat, RECORDS, settings, "none")
    assert (again, notes["remembered"]) == (rows, True)
    held, _ = served_rows(artefact, "llama.cpp", chat, RECORDS, settings, "labels")
    assert {row["output"] for row in held} <= {"refund", "invoice"}
    assert all(row["stopped"] for row in held)
    with pytest.raises(UserError, match="no row of the hold-out has a contract of the kind schema"):
        served_rows(artefact, "llama.cpp", chat, RECORDS, settings, "schema")


def test_an_engine_that_shows_the_model_another_prompt_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(model)
    template = tokenizer.chat_template.replace("['role']", "['role'] | upper")
    tokenizer.chat_template = template.replace("assistant", "ASSISTANT")
    chat = make_chat(tokenizer, "Answer.")
    with pytest.raises(
        Refusal, match=r"llama\.cpp shows the model another prompt than training did: row .* tokens there"
    ):
        served_rows(model.with_name("gguf"), "llama.cpp", chat, RECORDS, params(), "none")


def test_what_is_remembered_of_an_engine_says_nothing_of_other_tokens(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, asked the same, of a base model whose tokenizer has changed."""
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(model)
    served_rows(model.with_name("gguf"), "llama.cpp", make_chat(tokenizer, "Answer."), RECORDS, params(), "none")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(Refusal, match=r"llama\.cpp shows the model another prompt"):
        served_rows(model.with_name("gguf"), "llama.cpp", make_chat(tokenizer, "Answer."), RECORDS, params(), "none")
