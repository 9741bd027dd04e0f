"""How the machine computes a run. None of it changes the result beyond rounding, except `train.precision`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version

from stages.core.errors import UserError
from stages.core.machine import Machine
from stages.model.loading import compute_dtype, has_tied_embeddings
from stages.params.model import Train
from stages.tune.train import devices
from stages.tune.train.fused.attention import can_pack
from stages.tune.train.fused.batches import LOSS_BYTES
from stages.tune.train.fused.merged import MERGED_BYTES, worth_merging

_ENOUGH_TOKENS = {"fused": 16384, "trl": 4096}  # at once on a card; more make none of today faster
# On a CPU: TRL's padding-free attention looks at all pairs of tokens of a micro-batch, the fused one within examples.
_CPU_TOKENS = {"fused": 2048, "trl": 512}
_GRAPH_STEPS = 100  # from here on, captures of a few seconds repay themselves
_WIDEST_HEAD = 256  # of the variable-length kernel
_RESERVE = 0.15  # of the free memory, for what the estimate leaves out and for fragments
_COPIES = 0.2  # of the free memory at most, for weights with their adapters added
_UNFUSED = 2  # times the memory that fused layers take
# Before, FSDP gathers the unit of tied embeddings anew only after all its layers were called; TRL never calls the head.
_SHARDING_TORCH = Version("2.13")
_FITS = 0.7  # of the free memory, that a base model may take to leave room for training


@dataclass(frozen=True)
class Plan:
    """What is computed how."""

    engine: str
    precision: torch.dtype
    packing: bool
    attention: str
    checkpointing: bool
    micro_batch_tokens: int
    compile: str
    sharding: bool = False
    merged: bool = False  # adapters are added to their layers' weights in each step

    def described(self) -> dict[str, Any]:
        """For the terminal and metrics/env/train.json."""
        return asdict(self) | {"precision": str(self.precision).removeprefix("torch.")}


def choose_precision(train: Train) -> torch.dtype:
    """The dtype of matrix products; a card that computes in 16 bit does so."""
    return compute_dtype() if train.precision == "auto" else getattr(torch, train.precision)


def choose_sharding(train: Train, machine: Machine, base: Path, memory: int | None) -> bool:
    """Whether FSDP spreads the base model over the devices: where its weights leave one of them too little room.

    `memory` is what is free on the one with the least, in bytes; None without cards.

    Raises:
        UserError: when it is asked for and there is nobody to share with, or the engine is fused, or torch cannot.
    """
    possible = devices.count() > 1 and train.engine != "fused" and train.method != "qlora"
    if machine.sharding is True and not possible:
        raise UserError(
            "machine setting sharding: true needs several devices (machine setting processes), train.engine: trl and "
            "no qlora; write auto or false"
        )
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    wanted = possible and memory is not None and weights > _FITS * memory
    wanted = wanted if machine.sharding == "auto" else machine.sharding
    if wanted and Version(torch.__version__) < _SHARDING_TORCH and has_tied_embeddings(base):
        raise UserError(
            f"sharding a model with tied embeddings needs torch {_SHARDING_TORCH} or newer, and this is "
            f"{torch.__version__}; install it, or set the machine setting sharding to false and train.method to qlora"
        )
    return wanted


def make_plan(
    engine: str,
    train: Train,
    machine: Machine,
    model: Any,
    lengths: Sequence[int],
    steps: int,
    memory: int | None,
    sharding: bool = False,
) -> Plan:
    """Settle what is `auto` for this engine, loaded model and rows.

    `lengths` are those of all rows in tokens; `memory` is what the model leaves free on the card in bytes, None
    without a card.

    Raises:
        UserError: for a setting that this model or machine does not have.
    """
    config, precision = model.config.get_text_config(), choose_precision(train)
    on_card, fused = memory is not None, engine == "fused"
    obstacle = can_pack(config)
    if machine.packing is True and obstacle:
        raise UserError(f"machine setting packing: true is not possible: the model has {obstacle}; write auto or false")

    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kernel = fused and on_card and precision == torch.bfloat16 and width <= _WIDEST_HEAD
    if machine.attention == "varlen" and not kernel:
        raise UserError(
            "machine setting attention: varlen needs the fused engine, a CUDA card that computes in bfloat16 and heads "
            f"of at most {_WIDEST_HEAD}; write auto or sdpa"
        )
    attention = _settled(machine.attention, "varlen" if kernel else "sdpa")

    longest, whole, recomputed = max(lengths), _CPU_TOKENS[engine], _CPU_TOKENS[engine]
    copies = MERGED_BYTES * worth_merging(model) if kernel else 0
    merged = memory is not None and 0 < copies <= memory * _COPIES
    if memory is not None:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        left = memory * (1 - _RESERVE) - LOSS_BYTES - 16 * trained - merged * copies
        costs = bytes_per_token(config, precision)
        whole, recomputed = (max(1, int(left // (cost * (1 if fused else _UNFUSED)))) for cost in costs)
    checkpointing = _settled(machine.checkpointing, on_card and whole < longest)

    # What an optimiser batch hardly exceeds: its mean and three standard deviations, by the rows' spread. TRL takes
    # equally many rows at a time, however long they are.
    batch = math.ceil(train.batch_size * np.mean(lengths) + 3 * math.sqrt(train.batch_size) * np.std(lengths))
    batch = batch if fused else train.batch_size * longest
    room = recomputed if checkpointing else whole
    tokens = max(longest, min(room, batch, _ENOUGH_TOKENS[engine] if on_card else _CPU_TOKENS[engine]))

    # Graphs need the variable-length kernel; layers that are recomputed with dropout cannot be captured.
    graphs = attention == "varlen" and not (checkpointing and train.dropout)
    if fused and machine.compile == "graphs" and not graphs:
        raise UserError(
            "machine setting compile: graphs is not possible without the variable-length kernel, or where layers with "
            "dropout are recomputed; write auto or none"
        )
    return Plan(
        engine,
        precision,
        _settled(machine.packing, not obstacle),
        attention,
        checkpointing,
        _settled(machine.micro_batch_tokens, tokens),
        _settled(machine.compile, "graphs" if graphs and steps >= _GRAPH_STEPS else "none") if fused else "none",
        sharding,
        merged,
    )


def _settled(asked: Any, best: Any) -> Any:
    return best if asked == "auto" else asked


def bytes_per_token(config: Any, precision: torch.dtype) -> tuple[int, int]:
    """What a token leaves in memory for the backward pass: without and with layers recomputed.

    Counted for a gated decoder layer: float32 copies and outputs of its norms, queries, keys, values and outputs of
    attention; four tensors of the feed-forward width. In 16 bit that is 2.1 MB for the shape of Llama-3.2-1B and
    2.4 MB for Gemma-3-1B, where an H100 took 1.5 and 2.0.
    """
    size = 2 if precision == torch.bfloat16 else 4
    width, layers = config.hidden_size, config.num_hidden_layers
    layer = 16 * size * width + 4 * size * (getattr(config, "intermediate_size", None) or 4 * width)
    return layers * layer, layers * size * width + layer


def rows_at_once(plan: Plan, lengths: Sequence[int], batch_size: int) -> int:
    """Rows of a device's micro-batch where all have equally many: the most that fit and divide the batch.

    Raises:
        UserError: when the devices cannot share the batch evenly.
    """
    share, rest = divmod(batch_size, devices.count())
    if rest:
        raise UserError(
            f"an optimiser batch of {batch_size} rows cannot be shared evenly by {devices.count()} devices; set "
            f"train.batch_size to a multiple of {devices.count()}"
        )
    longest = sorted(lengths, reverse=True)
    for rows in range(share, 1, -1):
        tokens = sum(longest[:rows]) if plan.packing else rows * longest[0]
        if share % rows == 0 and tokens <= plan.micro_batch_tokens:
            return rows
    return 1
