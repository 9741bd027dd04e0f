"""What all prompts begin with, the instruction as a rule: computed once, its keys and values given to each batch."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch


class Prefix:
    """The `length` tokens that all `rows` begin with, in a cache of the causal model `causal`; 0 where none helps.

    `gap` tells that padding will stand after the prefix. That is right only in models that are told the position of
    each token and attend to all tokens before it: a window, or a bias by distance, would count the padding.
    """

    def __init__(self, causal: Any, rows: Sequence[list[int]], gap: bool) -> None:
        self.length, self._cache = 0, None
        length = common_prefix(rows)
        if not length or (gap and "position_ids" not in inspect.signature(causal.forward).parameters):
            return
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        ids = torch.tensor([rows[0][:length]], device=causal.device)
        cache = causal.base_model(input_ids=ids, use_cache=True).past_key_values
        kinds = {type(layer) for layer in getattr(cache, "layers", [None])}
        if kinds <= ({DynamicLayer} if gap else {DynamicLayer, DynamicSlidingWindowLayer}):
            self.length, self._cache = length, cache

    def cache(self, rows: int) -> Any:
        """A cache of its own for a batch of so many rows; None where there is no prefix."""
        if self._cache is None:
            return None
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        return cache


def common_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with; each keeps at least one of its own."""
    if len(rows) < 2:
        return 0
    low, high = min(rows), max(rows)  # in the order of lists, all others lie between these two
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return min(shared, min(map(len, rows)) - 1)
