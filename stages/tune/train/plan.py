"""How the machine computes a run: what `auto` in the train section comes to, and why.

None of it changes the result beyond rounding, except `train.precision`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stages.core.errors import UserError
from stages.model.loading import compute_dtype
from stages.params import Train
from stages.tune.train.attention import can_pack
from stages.tune.train.loss import LOSS_BYTES

_ENOUGH_TOKENS = 16384  # at once; more make a card of today no faster
_CPU_TOKENS = 2048
_GRAPH_STEPS = 100  # from here on, captures of a few seconds repay themselves
_WIDEST_HEAD = 256  # of the variable-length kernel
_RESERVE = 0.15  # of the free memory, for what the estimate leaves out and for fragments


@dataclass(frozen=True)
class Plan:
    """The settings of the train section without `auto`; `why` gives the reason for each that was chosen here."""

    precision: torch.dtype
    packing: bool
    attention: str
    checkpointing: bool
    micro_batch_tokens: int
    compile: str
    sharding: bool = False
    why: dict[str, str] = field(default_factory=dict)

    def smaller(self) -> "Plan":
        """For a second try when memory ran out."""
        tokens = max(1, self.micro_batch_tokens // 2)
        return replace(self, micro_batch_tokens=tokens, checkpointing=True, compile="none", why=_RAN_OUT)

    def described(self) -> dict[str, Any]:
        """For the terminal and metrics/env/train.json."""
        chosen = {name: getattr(self, name) for name in _NAMES}
        return chosen | {"precision": str(self.precision).removeprefix("torch."), "why": self.why}


_RAN_OUT = dict.fromkeys(("micro_batch_tokens", "checkpointing", "compile"), "memory ran out with more")
_NAMES = ("precision", "packing", "attention", "checkpointing", "micro_batch_tokens", "compile", "sharding")


def choose_precision(train: Train) -> torch.dtype:
    """The dtype of matrix products; a card that computes in 16 bit does so."""
    return compute_dtype() if train.precision == "auto" else getattr(torch, train.precision)


def make_plan(
    train: Train, model: Any, lengths: Sequence[int], steps: int, memory: int | None, sharding: bool = False
) -> Plan:
    """Settle what is `auto` for this loaded model and these rows.

    `lengths` are those of all rows in tokens; `memory` is what the model leaves free on the card in bytes, None
    without a card.

    Raises:
        UserError: for a setting that this model or machine does not have.
    """
    why: dict[str, str] = {}
    config = model.config.get_text_config()
    precision = choose_precision(train)
    card = memory is not None

    packing = _packing(train, config, why)
    attention = _attention(train, config, packing, card and precision == torch.bfloat16, why)
    batch = _largest_batch(lengths, train.batch_size)
    room, checkpointing = _room(train, config, precision, model, max(lengths), memory, why)
    if train.micro_batch_tokens == "auto":
        tokens = max(max(lengths), min(room, batch, _ENOUGH_TOKENS if card else _CPU_TOKENS))
        reason = f"memory for {room}, batches of up to {batch}" if card else "a CPU gains no more"
        why["micro_batch_tokens"] = reason
    else:
        tokens = train.micro_batch_tokens
    compile_ = _compile(train, attention, checkpointing, sharding, steps, why)
    if train.sharding == "auto":
        why["sharding"] = "the base model leaves a device too little room" if sharding else "each device holds all"
    return Plan(precision, packing, attention, checkpointing, tokens, compile_, sharding, why)


def _packing(train: Train, config: Any, why: dict[str, str]) -> bool:
    obstacle = can_pack(config)
    if train.packing == "auto":
        why["packing"] = f"the model has {obstacle}" if obstacle else "no token is spent on padding"
        return not obstacle
    if train.packing and obstacle:
        raise UserError(f"train.packing: true is not possible: the model has {obstacle}; write auto or false")
    return train.packing


def _attention(train: Train, config: Any, packing: bool, half_on_card: bool, why: dict[str, str]) -> str:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    possible = packing and half_on_card and width <= _WIDEST_HEAD
    if train.attention == "varlen" and not possible:
        raise UserError(
            "train.attention: varlen needs packed rows, a CUDA card that computes in bfloat16 and heads of at most "
            f"{_WIDEST_HEAD}; write auto or sdpa"
        )
    if train.attention != "auto":
        return train.attention
    why["attention"] = "one kernel for all examples of a row" if possible else "no variable-length kernel for this"
    return "varlen" if possible else "sdpa"


def _room(
    train: Train, config: Any, precision: torch.dtype, model: Any, longest: int, memory: int | None, why: dict[str, str]
) -> tuple[int, bool]:
    """Tokens that fit the memory at once, and whether layers are recomputed."""
    if memory is None:
        if train.checkpointing == "auto":
            why["checkpointing"] = "no card whose memory could run out"
        return _CPU_TOKENS, train.checkpointing is True
    left = memory * (1 - _RESERVE) - LOSS_BYTES - 16 * trained_parameters(model)
    whole, recomputed = (int(left // cost) for cost in bytes_per_token(config, precision))
    if train.checkpointing == "auto":
        checkpointing = whole < longest
        why["checkpointing"] = f"without it, {whole} tokens fit the memory and the longest row has {longest}"
    else:
        checkpointing = train.checkpointing
    return max(recomputed if checkpointing else whole, 1), checkpointing


def bytes_per_token(config: Any, precision: torch.dtype) -> tuple[int, int]:
    """What a token leaves in memory for the backward pass: without and with layers recomputed.

    Counted for a gated decoder layer: float32 copies and outputs of its norms, queries, keys, values and outputs of
    attention; four tensors of the feed-forward width. In 16 bit that is 2.1 MB for the shape of Llama-3.2-1B and
    2.4 MB for Gemma-3-1B, where an H100 took 1.5 and 2.0.
    """
    size = 2 if precision == torch.bfloat16 else 4
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = 16 * size * width + 4 * size * inner
    return layers * layer, layers * size * width + layer


def trained_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _largest_batch(lengths: Sequence[int], batch_size: int) -> int:
    """Tokens that an optimiser batch hardly exceeds: its mean and three standard deviations, by the rows' spread."""
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
    return math.ceil(batch_size * mean + 3 * math.sqrt(batch_size) * spread)


def _compile(train: Train, attention: str, checkpointing: bool, sharding: bool, steps: int, why: dict[str, str]) -> str:
    obstacle = _no_graphs(train, attention, checkpointing, sharding)
    if train.compile == "auto":
        if obstacle or steps < _GRAPH_STEPS:
            why["compile"] = obstacle or f"{steps} steps do not repay a capture"
            return "none"
        why["compile"] = f"{steps} steps repay a capture of a few seconds"
        return "graphs"
    if train.compile == "graphs" and obstacle:
        raise UserError(f"train.compile: graphs is not possible: {obstacle}; write auto or none")
    return train.compile


def _no_graphs(train: Train, attention: str, checkpointing: bool, sharding: bool) -> str | None:
    if attention != "varlen":
        return "CUDA graphs need the variable-length kernel"
    if train.method != "full" and train.adapter != "lora":
        return f"{train.adapter} changes its course from step to step"
    if sharding:
        return "sharded weights come and go"
    if checkpointing and train.dropout:
        return "layers that are recomputed with dropout cannot be captured"
    return None
