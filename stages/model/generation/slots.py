"""Keys and values of many rows, each as far along as it is, under any decoder model of transformers.

The model's own layers call `attend` through transformers' AttentionInterface in place of their attention. A row
keeps its own length: none is padded on the left, and the same positions mean the same as alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

# Tokens that go through the model at once where their number is free: memory for activations against speed.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
_NAME = "tunetrail_slots"
_LAYERS = {"full_attention", "sliding_attention"}


def fits(causal: Any) -> bool:
    """Whether every layer of the model is attention of a kind that `Slots` computes."""
    config = causal.config.get_text_config()
    return (
        bool(getattr(causal, "_supports_attention_backend", False))
        and set(getattr(config, "layer_types", None) or ()) <= _LAYERS
        and not getattr(config, "attn_logit_softcapping", None)
        and not getattr(config, "num_kv_shared_layers", 0)
        and not config.is_encoder_decoder
    )


def bytes_a_token(causal: Any) -> int:
    """Memory of one token's keys and values in all layers."""
    config = causal.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * causal.dtype.itemsize)


class Slots:
    """A cache of `count` rows of up to `capacity` tokens for the causal model `causal`."""

    def __init__(self, causal: Any, count: int, capacity: int) -> None:
        self._inner = causal.base_model
        self._shape = (count, capacity)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model attends through slots in this block, and as before after it."""
        before = self._inner.config._attn_implementation
        self._inner.set_attn_implementation(_NAME)
        try:
            yield
        finally:
            self._inner.set_attn_implementation(before)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, first: int, width: int) -> torch.Tensor:
        """Hidden states, rows x tokens x width of the model, of tokens that go to the slots from `first` on.

        `ids` and `positions` are rows x tokens. Each token sees the tokens of its slot up to its own position,
        all of which lie below `width`.
        """
        self._rows = slice(first, first + len(ids))
        self._positions, self._width = positions, width
        self._index = torch.arange(first, first + len(ids), device=ids.device)[:, None]
        self._masks: dict[int | None, torch.Tensor] = {}
        out = self._inner(input_ids=ids, position_ids=positions, use_cache=False, slots=self)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def begin(self, tokens: list[int]) -> None:
        """Read the tokens that every slot begins with, once for all."""
        if not tokens:
            return
        self.read([tokens], pad=0, first=0, begun=0)
        for pair in self._layers.values():
            for store in pair:
                store[1:, : len(tokens)] = store[:1, : len(tokens)]

    def read(self, rows: Sequence[list[int]], pad: int, first: int, begun: int) -> torch.Tensor:
        """Hidden states of rows, each after the `begun` tokens of its slot, as wide as the longest of them."""
        longest, device = max(map(len, rows)), self._inner.device
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
        positions = torch.arange(begun, begun + longest, device=device).expand(len(rows), -1)
        return self.forward(ids, positions, first, begun + longest)

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Copy the first `width` tokens of slots to other slots."""
        for pair in self._layers.values():
            for store in pair:
                store[targets, :width] = store[sources, :width]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of rows x heads x tokens x width; returns rows x tokens x heads x width.

        The query heads that share a key head are laid out as more tokens of it, so no key is ever copied.
        """
        keys, values = self._store(layer, key)
        keys[self._index, self._positions] = key.transpose(1, 2)
        values[self._index, self._positions] = value.transpose(1, 2)
        rows, heads, tokens, width = query.shape
        groups = heads // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query.reshape(rows, heads // groups, groups * tokens, width),
            keys[self._rows, : self._width].transpose(1, 2),
            values[self._rows, : self._width].transpose(1, 2),
            attn_mask=self._mask(window, groups, query.dtype),
            scale=scale,
        )
        return out.reshape(rows, heads, tokens, width).transpose(1, 2)

    def _store(self, layer: int, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros at first: what a mask hides must still be a number."""
        if layer not in self._layers:
            shape = (*self._shape, key.shape[1], key.shape[3])
            self._layers[layer] = (key.new_zeros(shape), key.new_zeros(shape))
        return self._layers[layer]

    def _mask(self, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """What each token must not see as minus infinity, rows x 1 x groups * tokens x keys; once for all layers."""
        if window not in self._masks:
            seen = torch.arange(self._width, device=self._positions.device)
            last = self._positions[:, None, :, None]
            hidden = seen > last
            if window is not None:
                hidden = hidden | (seen <= last - window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[window] = mask.masked_fill_(hidden, float("-inf")).repeat(1, 1, groups, 1)
        return self._masks[window]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slots: Slots | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert slots is not None, "the model does not hand its keywords to its attention"
    return slots.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


def common_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with; each keeps at least one of its own."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # in the order of lists, all others lie between these two
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return min(shared, min(map(len, rows)) - 1)


AttentionInterface.register(_NAME, _attend)
