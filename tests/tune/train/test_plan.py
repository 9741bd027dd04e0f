"""What `auto` comes to, from a card's memory, a model's shape and the length of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from stages.core.errors import UserError
from stages.core.machine import Machine
from stages.core.yaml_reader import load_yaml
from stages.params.model import Train
from stages.tune.train import plan as planning
from stages.tune.train.plan import Plan, bytes_per_token, choose_sharding, make_plan, rows_at_once

GIB = 2**30
LENGTHS = [200] * 990 + [1024] * 10
LLAMA_1B = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32)


class Model:
    """Stands for a model with adapters of 11 million weights."""

    def __init__(self, config: Any = LLAMA_1B) -> None:
        self.config = config

    def parameters(self) -> list[torch.Tensor]:
        return [torch.empty(11_000_000, device="meta").requires_grad_(), torch.empty(10**9, device="meta")]


def settings(**changes: Any) -> Train:
    values = load_yaml((Path(__file__).parents[3] / "params.yaml").read_text(encoding="utf-8"))["train"]
    return Train(**(values | {"batch_size": 16, "max_tokens": 1024} | changes))


def planned(
    memory: float | None, model: Any = None, steps: int = 400, engine: str = "fused", dropout: float = 0.0, **speed: Any
) -> Plan:
    train, free = settings(dropout=dropout), None if memory is None else int(memory * GIB)
    return make_plan(engine, train, Machine(**speed), model or Model(), LENGTHS, steps, free)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "compute_dtype", lambda: torch.bfloat16)


@pytest.mark.usefixtures("card")
def test_a_large_card_takes_a_whole_batch_at_once_without_recomputing() -> None:
    plan = planned(70)
    assert (plan.packing, plan.attention, plan.checkpointing, plan.compile) == (True, "varlen", False, "graphs")
    assert 16 * 208 < plan.micro_batch_tokens < 1.6 * 16 * 208
    assert plan.precision == torch.bfloat16


@pytest.mark.usefixtures("card")
def test_a_small_card_takes_less_and_then_recomputes() -> None:
    smaller, small = planned(8), planned(2.5)
    assert not smaller.checkpointing
    assert 1024 <= smaller.micro_batch_tokens < planned(70).micro_batch_tokens
    assert small.checkpointing
    assert small.micro_batch_tokens >= 1024, "the longest row must fit"


@pytest.mark.usefixtures("card")
def test_a_short_run_is_not_captured() -> None:
    assert planned(70, steps=20).compile == "none"
    assert planned(2.5, dropout=0.1).compile == "none", "recomputed with dropout"


@pytest.mark.usefixtures("card")
def test_adapters_of_a_small_model_are_merged_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not planned(70).merged
    monkeypatch.setattr(planning, "worth_merging", lambda model: 10**8)
    assert planned(70).merged
    assert not planned(70, engine="trl").merged
    assert not planned(3).merged
    assert not planned(None).merged


def test_a_cpu_computes_in_float32_and_launches_kernel_by_kernel() -> None:
    plan = planned(None)
    assert plan.described() == {
        "engine": "fused",
        "precision": "float32",
        "packing": True,
        "attention": "sdpa",
        "checkpointing": False,
        "micro_batch_tokens": 2048,
        "compile": "none",
        "sharding": False,
        "merged": False,
    }


def test_a_model_with_other_attention_is_padded() -> None:
    assert not planned(None, Model(Gemma2Config())).packing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": "varlen"}, "attention: varlen needs"),
        ({"compile": "graphs"}, "compile: graphs is not possible"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(None, **changes)


def test_packing_that_a_model_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="packing: true is not possible"):
        planned(None, Model(Gemma2Config()), packing=True)


def test_what_is_set_by_hand_is_taken() -> None:
    plan = planned(
        None, packing=False, micro_batch_tokens=77, checkpointing=True, compile="none", attention="sdpa", sharding=False
    )
    assert (plan.packing, plan.micro_batch_tokens, plan.checkpointing) == (False, 77, True)


def test_recomputing_layers_takes_a_fraction_of_the_memory() -> None:
    whole, recomputed = bytes_per_token(LLAMA_1B, torch.bfloat16)
    assert 1e6 < whole < 4e6
    assert recomputed < whole / 5


@pytest.mark.usefixtures("card")
def test_trl_launches_kernel_by_kernel_and_takes_less_at_once() -> None:
    plan = planned(70, engine="trl")
    assert (plan.attention, plan.compile) == ("sdpa", "none")
    assert plan.micro_batch_tokens <= 4096


@pytest.mark.parametrize(("tokens", "rows"), [(10_000, 12), (1199, 6), (600, 6), (599, 4), (100, 1), (1, 1)])
def test_equal_parts_of_a_batch_fit_and_divide_it(tokens: int, rows: int) -> None:
    plan = planned(None, micro_batch_tokens=tokens)
    assert rows_at_once(plan, [100] * 50, 12) == rows


def test_trl_takes_the_whole_batch_where_its_longest_rows_fit() -> None:
    """They are more tokens than mean and spread foresee of a batch."""
    lengths = [80] * 90 + [120] * 10
    plan = make_plan("trl", settings(batch_size=4), Machine(), Model(), lengths, 100, None)
    assert plan.micro_batch_tokens == 480
    assert rows_at_once(plan, lengths, 4) == 4


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert rows_at_once(planned(None, micro_batch_tokens=200), [100] * 50, 12) == 2
    with pytest.raises(UserError, match=r"train\.batch_size to a multiple of 2"):
        rows_at_once(planned(None), [100] * 50, 7)


def test_weights_are_sharded_where_several_devices_share_what_fits_on_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, base = settings(), tmp_path
    with (base / "model.safetensors").open("wb") as file:
        file.truncate(10 * GIB)  # nothing but a length
    LlamaConfig(tie_word_embeddings=True).save_pretrained(base)
    assert not choose_sharding(train, Machine(), base, 12 * GIB)
    with pytest.raises(UserError, match="sharding: true needs several devices"):
        choose_sharding(train, Machine(sharding=True), base, None)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert choose_sharding(train, Machine(), base, 12 * GIB)
    assert not choose_sharding(train, Machine(), base, 40 * GIB)
    assert not choose_sharding(train, Machine(), base, None)
    assert choose_sharding(train, Machine(sharding=True), base, None)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    for machine in (Machine(), Machine(sharding=True)):
        with pytest.raises(UserError, match=r"tied embeddings needs torch 2\.13 or newer, and this is 2\.11\.0\+cu130"):
            choose_sharding(train, machine, base, 12 * GIB)
    assert not choose_sharding(train, Machine(), base, 40 * GIB)
    LlamaConfig(tie_word_embeddings=False).save_pretrained(base)
    assert choose_sharding(train, Machine(), base, 12 * GIB)
