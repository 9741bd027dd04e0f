"""Likelihoods by their definition, for the kinds of layers and heads that small models have."""

from typing import Any

import pytest
import torch
from layer_kinds import CAPPED, KINDS, SMALL, WORDS, model_of
from transformers import AutoConfig, AutoModelForCausalLM

from stages.model.chat import Chat
from stages.model.likelihoods import likelihoods
from stages.records.record import Record, make_record

COMMON = [7, 9, 4, 30, 11]


class Numbers(Chat):
    """Texts are token ids in words."""

    def __init__(self) -> None:
        super().__init__(None, "", 2, False)

    def prompt_ids(self, record: Record) -> list[int]:
        return COMMON + [int(word) for word in record.prompt.split()]

    def completion_ids(self, completion: str) -> list[int]:
        return [*(int(word) for word in completion.split()), self.stop_id]


def scaled() -> Any:
    """A model that divides its last states, not its logits."""
    torch.manual_seed(5)
    small = {name: value for name, value in SMALL.items() if name != "initializer_range"}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    config = AutoConfig.for_model("inkling_text", **small, **experts, logits_mup_width_multiplier=4.0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("kind", [*KINDS, CAPPED, "inkling with scaled states"])
def test_likelihoods_are_those_of_one_by_one(kind: str) -> None:
    model: Any = scaled() if kind.startswith("inkling") else model_of(kind)
    generator = torch.Generator().manual_seed(2)
    records = []
    for asked, said in ((1, 1), (12, 3), (3, 12), (12, 3), (20, 0)):
        words = torch.randint(3, WORDS, (asked + said,), generator=generator).tolist()
        prompt, completion = (" ".join(map(str, part)) for part in (words[:asked], words[asked:]))
        records.append(make_record(prompt, completion, None, "s", "s:1"))
    for few in (records, records[:1]):
        for record, found in zip(few, likelihoods(model, Numbers(), few), strict=True):
            prompt_ids, answer = Numbers().prompt_ids(record), Numbers().completion_ids(record.completion)
            with torch.inference_mode():
                logits = model(torch.tensor([prompt_ids + answer])).logits[0, len(prompt_ids) - 1 : -1]
            chosen = logits.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            assert found.nats == pytest.approx(-chosen.sum().item(), rel=1e-4)
            assert found.tokens == len(answer)
            assert found.agreed == int((logits.argmax(-1) == torch.tensor(answer)).sum())
