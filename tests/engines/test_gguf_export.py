"""A GGUF file says in llama.cpp what the model says in transformers, for every shape that is written."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from stages.core.errors import UserError
from stages.engines.engine_server import CHAT, LORA_GGUF, EngineError, Server, ask, call, prompt_ids, request, serving
from stages.engines.gguf_export import write_gguf, write_gguf_lora
from stages.model.answers import answer
from stages.model.chat import Chat, make_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params.model import Generation
from stages.records.record import Record, make_record

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # far from ties
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama with scaled waves and an output layer": LlamaConfig(
        **SMALL, rope_parameters=LLAMA3, tie_word_embeddings=False
    ),
    "llama with a flag that its tokenizer has no pieces for": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2 with biases": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3 with wide heads": Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True),
    "gemma3 with windows": Gemma3TextConfig(**SMALL, head_dim=32, sliding_window=16, query_pre_attn_scalar=32),
}
PROMPTS = [f"order {number} is late again, the lamp is broken and «naïve» 日本 too" for number in range(4)]
FEW = Generation(max_new_tokens=16)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words with a visible space, and bytes for what they do not cover."""
    special = ["<bos>", "<end_of_turn>", "<start_of_turn>", "<unk>"]
    words = ["or", "der", "order", "▁is", "la", "te", "late", "▁l", "▁la"]
    letters = sorted({*"".join(words), *"abcdefghijklmnopqrstuvwxyz0123456789,\n"})
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "de", "▁i", *words]
    merges = [("o", "r"), ("d", "e"), ("de", "r"), ("or", "der"), ("l", "a"), ("▁", "l"), ("▁l", "a"), ("▁", "la")]
    merges += [("▁", "i"), ("▁i", "s"), ("t", "e"), ("la", "te")]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<end_of_turn>", pad_token="<end_of_turn>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>"]})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{{ message['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    return tokenizer


def save(folder: Path, shape: str) -> Path:
    torch.manual_seed(5)
    tokenizer = gemma_tokenizer() if shape.startswith("gemma") else tiny_tokenizer()
    config = SHAPES[shape]
    config.vocab_size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.ndim == 1:  # norms and biases are 1 and 0 in a fresh model, which hides mistakes
            weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if "flag" in shape:  # transformers 5.17 sets it for byte-level tokenizers that come out of a GGUF file
        file = folder / "tokenizer.json"
        backend = json.loads(file.read_text(encoding="utf-8"))
        backend["model"]["byte_fallback"] = True
        file.write_text(json.dumps(backend), encoding="utf-8")
    return folder


def check_first_tokens(server: Server, model: Any, chat: Chat, records: list[Record]) -> None:
    """The likeliest first tokens of answers are as likely: an answer can be the same where attention is not."""
    for record in records:
        ids = chat.prompt_ids(record)
        body = call(server, "/completion", {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 5})
        for first in body.get("completion_probabilities", []):  # of the stop token llama.cpp tells none
            with torch.inference_mode():
                ours = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert max(abs(one["logprob"] - float(ours[one["id"]])) for one in first["top_logprobs"]) < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_says_in_llama_cpp_what_it_says_in_transformers(shape: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", shape)
    chat = make_chat(load_tokenizer(folder), "Answer.")
    records = [make_record(prompt, "x", None, "s", f"s:{n}") for n, prompt in enumerate(PROMPTS)]
    conversations = [chat.messages(record) for record in records]
    ours = answer(load_model(folder), chat, records, FEW, "tiny")
    file = tmp_path / "model.gguf"
    write_gguf(folder, file, "F16", chat.stop_id)
    with serving(file, "llama.cpp", context=512) as server:
        assert [prompt_ids(server, one) for one in conversations] == [chat.prompt_ids(record) for record in records]
        theirs = ask(server, conversations, FEW)
        check_first_tokens(server, load_model(folder), chat, records)
    # llama.cpp drops the first bytes of a character that the last token leaves open; the tokenizer shows a mark.
    said = [[(one.output.rstrip("\ufffd"), one.tokens, one.stopped) for one in side] for side in (theirs, ours)]
    assert said[0] == said[1]


@pytest.mark.parametrize(("kind", "types"), [("Q8_0", {"Q8_0"}), ("Q4_0", {"Q4_0", "Q8_0"})])
def test_a_quantised_file_has_the_types_that_are_counted(kind: str, types: set[str], tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    counted = write_gguf(folder, tmp_path / "model.gguf", kind, 1)
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert {name: sum(one.tensor_type.name == name for one in tensors) for name in counted} == counted
    assert counted.keys() == types | {"F32"}
    assert write_gguf(folder, tmp_path / "again.gguf", kind, 1) == counted
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


FULL, NEAR = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 100.0}


@pytest.mark.parametrize(
    ("shape", "key", "value", "words"),
    [
        ("llama", "model_type", "phi3", "this model is a phi3"),
        ("llama", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "positions of the kind yarn"),
        ("llama", "hidden_act", "gelu", "llama.cpp takes hidden_act for silu, and it is gelu; take gguf out"),
        ("qwen2 with biases", "layer_types", ["sliding_attention"] * 3, r"layer_types for \['full_attention'"),
        ("gemma3 with windows", "layer_types", ["full_attention"] * 3, r"layer_types for \['sliding_attention'"),
        ("gemma3 with windows", "query_pre_attn_scalar", 256, "query_pre_attn_scalar for 32, and it is 256"),
        ("gemma3 with windows", "final_logit_softcapping", 30.0, "final_logit_softcapping for None, and it is 30.0"),
        (
            "gemma3 with windows",
            "use_bidirectional_attention",
            True,
            "use_bidirectional_attention for False, and it is True",
        ),
        ("gemma3 with windows", "hidden_activation", "silu", "hidden_activation for gelu_pytorch_tanh, and it is silu"),
        (
            "gemma3 with windows",
            "rope_parameters",
            {"full_attention": FULL, "sliding_attention": NEAR},
            "'rope_theta': 10000.0}}, and it is",
        ),
    ],
)
def test_what_cannot_be_written_is_said(shape: str, key: str, value: object, words: str, tmp_path: Path) -> None:
    """llama.cpp would compute all but the first two without a word, and give other numbers."""
    folder = save(tmp_path / "model", shape)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=words):
        write_gguf(folder, tmp_path / "model.gguf", "Q8_0", 1)
    assert not (tmp_path / "model.gguf").exists()


def test_rows_that_do_not_divide_into_blocks_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = LlamaConfig(**{**SMALL, "hidden_size": 48, "vocab_size": len(tiny_tokenizer())})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(UserError, match=r"blocks of 32, and .* has rows of 48; set it to F16"):
        write_gguf(folder, tmp_path / "model.gguf", "Q4_0", 1)


@pytest.mark.parametrize("shape", ["llama", "qwen2 with biases"])
def test_each_request_is_answered_by_the_lora_that_it_names_as_in_transformers(shape: str, tmp_path: Path) -> None:
    base = save(tmp_path / "base", shape)
    chat = make_chat(load_tokenizer(base), "Answer.")
    write_gguf(base, tmp_path / "base.gguf", "F16", chat.stop_id)
    models, folders = {"base": load_model(base)}, {}
    for seed, name in enumerate(("returns", "billing")):
        torch.manual_seed(seed)
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"])
        models[name] = get_peft_model(load_model(base, dtype=torch.float32), settings)
        for parameter, weight in models[name].named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.1)
        folders[name] = tmp_path / name
        models[name].save_pretrained(folders[name])
        assert write_gguf_lora(base, folders[name], folders[name] / LORA_GGUF)
    compared: list[str] = []
    with serving(tmp_path / "base.gguf", "llama.cpp", name="base", context=256, adapters=folders) as server:
        for prompt, name in itertools.product(PROMPTS, models):
            record = make_record(prompt, "x", None, "s", "s:1")
            asked = request(replace(server, model=name), chat.messages(record), FEW)
            body = call(server, CHAT, {**asked, "max_tokens": 1, "logprobs": True, "top_logprobs": 5})
            said = body["choices"][0].get("logprobs")
            if said is None:  # nothing but the stop token, of which llama.cpp tells none
                continue
            first = said["content"][0]["top_logprobs"]
            compared.append(name)
            theirs = torch.tensor([one["logprob"] for one in first])
            ids = torch.tensor([chat.prompt_ids(record)])
            with torch.inference_mode():
                off = {
                    other: float((theirs - logits[0, -1].log_softmax(-1)[[one["id"] for one in first]]).abs().max())
                    for other, logits in ((key, one.eval()(input_ids=ids).logits) for key, one in models.items())
                }
            assert off.pop(name) < 0.05 < min(off.values())
        with pytest.raises(EngineError, match="HTTP 401"):  # another user of this machine has no key
            call(replace(server, api_key=None), CHAT, {})
    assert {*compared} == {*models}
    with (
        pytest.raises(UserError, match=LORA_GGUF),
        serving(tmp_path / "base.gguf", "llama.cpp", adapters={"none": base}),
    ):
        pass


def test_an_adapter_that_llama_cpp_does_not_know_is_not_written(tmp_path: Path) -> None:
    base, adapter = save(tmp_path / "base", "llama"), tmp_path / "adapter"
    adapter.mkdir()
    for settings in ({"peft_type": "ADALORA"}, {"peft_type": "LORA", "use_dora": True}):
        (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert not write_gguf_lora(base, adapter, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()
