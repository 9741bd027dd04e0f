"""The requests sent to vLLM, against a stand-in with the signatures that vLLM 0.33 documents."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_model import save_tiny_model

from stages.core.errors import UserError
from stages.model.chat import make_chat
from stages.model.generation import Weights, answer, vllm_engine
from stages.model.loading import load_tokenizer
from stages.params import Generation
from stages.records.record import make_record

RECORDS = [make_record(prompt, "{}", None, "s", "s:1") for prompt in ("a", "another one", "a")]
SETTINGS = Generation(engine="vllm", max_new_tokens=5, batch_tokens="auto")


@dataclass
class Said:
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: int | None


@dataclass
class Output:
    outputs: list[Said]


class Sampling:
    """Every field by name, as msgspec has it; the defaults sample."""

    def __init__(
        self,
        *,
        n: int = 1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: Any = None,
        stop_token_ids: list[int] | None = None,
        ignore_eos: bool = False,
        max_tokens: int = 16,
        min_tokens: int = 0,
        detokenize: bool = True,
    ) -> None:
        self.sent = dict(locals())


class Lora:
    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str = "") -> None:
        assert lora_int_id > 0
        self.path = lora_path


class Engine:
    """Says as many tokens as the prompt has, then stops; at most `max_tokens`."""

    calls: list["Engine"] = []  # noqa: RUF012
    keeps_stop = True

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        **kwargs: Any,
    ) -> None:
        self.options = {"model": model, "dtype": dtype, **kwargs}
        Engine.calls.append(self)

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None
    ) -> list[Output]:
        self.sent, self.lora = sampling_params.sent, lora_request
        limit, (stop,) = self.sent["max_tokens"], self.sent["stop_token_ids"]
        outputs = []
        for prompt in prompts:
            ids = list(prompt["prompt_token_ids"])[-4:]
            length = len(prompt["prompt_token_ids"]) % 7
            stops = length < limit
            said = (ids * 3)[: min(length, limit)] + ([stop] if stops and Engine.keeps_stop else [])
            outputs.append(Output([Said(tuple(said), "stop" if stops else "length", stop if stops else None)]))
        return outputs


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    monkeypatch.chdir(tmp_path)
    top, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    for module, name, value in (
        (top, "LLM", Engine),
        (top, "SamplingParams", Sampling),
        (request, "LoRARequest", Lora),
    ):
        setattr(module, name, value)
    for module in (top, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vllm_engine, "version", lambda: "0.33.0")
    monkeypatch.setattr(Engine, "calls", [])
    return Engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", seed=3)


def adapter_in(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 12} | config))
    return folder


def test_every_sampling_parameter_is_sent(engine: type[Engine], folder: Path) -> None:
    chat = make_chat(load_tokenizer(folder), "Say something.")
    answer(Weights(folder), chat, RECORDS, SETTINGS, "test")
    (call,) = engine.calls
    sent = {name: value for name, value in call.sent.items() if name != "self"}
    assert sent == {
        "n": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "stop": None,
        "stop_token_ids": [chat.stop_id],
        "ignore_eos": True,
        "min_tokens": 0,
        "max_tokens": 5,
        "detokenize": False,
    }
    assert call.options["generation_config"] == "vllm"
    assert call.options["model"] == str(folder)
    assert call.lora is None


@pytest.mark.parametrize("keeps_stop", [True, False])
def test_the_answers_are_read_alike_with_and_without_the_stop_token(
    engine: type[Engine], folder: Path, keeps_stop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "keeps_stop", keeps_stop)
    chat = make_chat(load_tokenizer(folder), "Say something.")
    for record, said in zip(RECORDS, answer(Weights(folder), chat, RECORDS, SETTINGS, "test"), strict=True):
        prompt = chat.prompt_ids(record)
        length = len(prompt) % 7
        assert said.stopped == (length < 5)
        assert said.tokens == min(length + 1, 5)
        assert said.output == chat.text((prompt[-4:] * 3)[: min(length, 5)])


def test_answers_of_vllm_are_remembered_apart_from_those_of_transformers(engine: type[Engine], folder: Path) -> None:
    chat = make_chat(load_tokenizer(folder), "Say something.")
    first = answer(Weights(folder), chat, RECORDS, SETTINGS, "test")
    assert answer(Weights(folder), chat, RECORDS, SETTINGS, "test") == first
    assert len(engine.calls) == 1
    other = Weights(folder)
    answer(other, chat, RECORDS, SETTINGS.model_copy(update={"engine": "transformers"}), "test")
    assert not other.spent["test"]["remembered"]


def test_an_adapter_goes_with_the_base_model(engine: type[Engine], folder: Path, tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "adapter")
    vllm_engine.ask(Weights(folder, adapter), [[1, 2]], 0, 4)
    (call,) = engine.calls
    assert call.options["model"] == str(folder)
    assert call.options["max_lora_rank"] == 16
    assert call.lora.path == str(adapter)


def test_a_model_trained_whole_is_the_model(engine: type[Engine], folder: Path, tmp_path: Path) -> None:
    vllm_engine.ask(Weights(tmp_path / "base", folder), [[1, 2]], 0, 4)
    assert engine.calls[0].options["model"] == str(folder)
    assert engine.calls[0].lora is None


@pytest.mark.parametrize("config", [{"peft_type": "ADALORA"}, {"use_dora": True}, {"r": 1000}])
def test_an_adapter_that_vllm_cannot_serve_is_a_sentence(
    engine: type[Engine], folder: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="set generation\\.engine to"):
        vllm_engine.ask(Weights(folder, adapter_in(tmp_path / "adapter", **config)), [[1, 2]], 0, 4)


def test_without_vllm_the_message_says_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chat = make_chat(load_tokenizer(folder), "Say something.")
    with pytest.raises(UserError, match="pip install 'tunetrail\\[vllm\\]'"):
        answer(Weights(folder), chat, RECORDS, SETTINGS, "test")
