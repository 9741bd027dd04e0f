"""vLLM's real server on a tiny model with two adapters: `make test-vllm` runs this, and without vLLM it skips."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from held_answers import PROMPTS, check_held_answers, check_judged
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_model import save_tiny_model

from stages.core.machine import machine_settings
from stages.engines.engine_server import (
    CHAT,
    EngineError,
    Server,
    addressed,
    ask,
    call,
    prompt_ids,
    request,
    serving,
)
from stages.model.chat import Chat, make_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params.model import Generation
from stages.records.record import make_record

pytestmark = pytest.mark.skipif(
    not shutil.which(machine_settings().vllm_python or " "),
    reason="TUNETRAIL_VLLM_PYTHON names no Python that has vLLM; `make test-vllm` makes one and runs this",
)
RECORDS = [make_record(prompt, "x", None, "s", f"s:{n}") for n, prompt in enumerate(PROMPTS)]
FEW = Generation(max_new_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In 16 bit, as a release's merged model is; louder than it was drawn, so that its answers are no near ties."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("vllm") / "model", seed=3, heads=2
    )  # the smallest that vLLM has kernels for
    loud = load_model(folder, dtype=torch.float32)
    for name, weight in loud.named_parameters():
        if "norm" not in name:
            weight.data *= 8
    loud.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(model: Path) -> dict[str, Path]:
    found = {}
    for number, name in enumerate(("returns", "billing")):
        torch.manual_seed(number)
        tuned = get_peft_model(load_model(model), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
        for weight_name, weight in tuned.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=1.0)
        tuned.save_pretrained(model.with_name(name))
        found[name] = model.with_name(name)
    return found


@pytest.fixture(scope="module")
def chat(model: Path) -> Chat:
    return make_chat(load_tokenizer(model), "Answer.")


@pytest.fixture(scope="module")
def server(model: Path, adapters: dict[str, Path]) -> Iterator[Server]:
    with serving(model, "vllm", name="tiny", slots=4, context=256, adapters=adapters) as running:
        yield running
    assert running.process is not None
    assert running.process.poll() is not None
    with pytest.raises(ProcessLookupError):  # nor is anything left of what it started
        os.killpg(running.process.pid, 0)


def test_it_says_what_transformers_says_to_the_same_tokens(server: Server, model: Path, chat: Chat) -> None:
    """Each token that it takes is, up to rounding, the likeliest by transformers after those before it.

    Whole answers are not compared: those of random models part where 16 bit are rounded otherwise, as in a batch.
    """
    conversations = [chat.messages(record) for record in RECORDS]
    assert [prompt_ids(server, one) for one in conversations] == [chat.prompt_ids(record) for record in RECORDS]
    plain, agreed = load_model(model, dtype=torch.bfloat16), []
    for record, messages in zip(RECORDS, conversations, strict=True):
        asked = request(server, messages, FEW) | {"logprobs": True, "return_tokens_as_token_ids": True}
        (choice,) = call(server, CHAT, asked)["choices"]
        said = [int(one["token"].removeprefix("token_id:")) for one in choice["logprobs"]["content"]]
        prompt = chat.prompt_ids(record)
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].float()
        behind = logits.max(-1).values - logits.gather(-1, torch.tensor(said)[:, None])[:, 0]
        assert behind.max() < 0.5
        agreed += (behind == 0).tolist()
        assert (len(said), choice["finish_reason"]) == (FEW.max_new_tokens, "length")
    assert sum(agreed) > 0.8 * len(agreed)


def test_an_adapter_answers_by_its_name(server: Server, model: Path, adapters: dict[str, Path], chat: Chat) -> None:
    """By the likelihoods of the first token: the answers of random models part where 16 bit are rounded otherwise."""
    record = RECORDS[0]
    ids = torch.tensor([chat.prompt_ids(record)])
    for name in (server.model, *adapters):
        asked = request(replace(server, model=name), chat.messages(record), FEW)
        asked |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 5, "return_tokens_as_token_ids": True}
        body = call(server, CHAT, asked)
        assert body["model"] == name
        first = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        told = [int(one["token"].removeprefix("token_id:")) for one in first]
        theirs = torch.tensor([one["logprob"] for one in first])
        off = {}
        for other in (server.model, *adapters):
            plain = load_model(model)
            tuned = PeftModel.from_pretrained(plain, adapters[other]).eval() if other in adapters else plain
            with torch.inference_mode():
                ours = tuned(input_ids=ids).logits[0, -1].log_softmax(-1)[told]
            off[other] = float((theirs - ours).abs().max())
        assert off.pop(name) < 0.2 < 0.5 < min(off.values())
    assert {row["id"] for row in call(server, "/v1/models")["data"]} == {"tiny", *adapters}
    with pytest.raises(EngineError, match="HTTP 404"):
        ask(replace(server, model="nobody"), [chat.messages(record)], FEW)


def test_an_answer_is_held_to_labels_and_to_a_schema(server: Server) -> None:
    check_held_answers(server)
    free = ask(server, [[{"role": "user", "content": PROMPTS[0]}]], Generation(max_new_tokens=3))
    assert (free[0].tokens, free[0].stopped) == (3, False)


def test_merge_quantize_judges_by_it_freely_and_held(
    server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "merged")
    check_judged(server, model, tmp_path / "merged", tmp_path, monkeypatch)


def test_the_same_request_gets_the_same_answer_and_nothing_is_left_to_chance(server: Server) -> None:
    messages = [{"role": "user", "content": PROMPTS[0]}]
    body = request(server, messages, FEW)
    assert {body[name] for name in ("temperature", "frequency_penalty", "presence_penalty", "min_p")} == {0.0}
    assert body.items() >= {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0, **addressed(server)}.items()
    assert ask(server, [messages], FEW) == ask(server, [messages], FEW)


def test_what_it_refuses_is_a_sentence_with_its_status(server: Server) -> None:
    with pytest.raises(EngineError, match="HTTP 400") as refused:
        ask(server, [[{"role": "user", "content": "word " * 300}]], FEW)
    assert refused.value.status == 400
    with pytest.raises(EngineError, match="HTTP 401"):  # another user of this machine has no key
        call(replace(server, api_key=None), "/v1/models")
