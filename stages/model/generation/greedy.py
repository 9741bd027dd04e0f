"""Greedy answers of many prompts at once: a row that ends makes room for the next prompt.

Continuous batching as in Yu et al. 2022 (Orca, OSDI), with the prompts' common beginning computed once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from stages.model.generation.graphs import Graphs
from stages.model.generation.slots import TOKENS_AT_ONCE, Slots, bytes_a_token, common_prefix

_CPU_TOKENS, _GPU_TOKENS = 16384, 131072
_MEMORY_SHARE = 4  # of a card's memory, one part in so many holds keys and values
_STEPS, _WIDTH_UNIT = 4, 64  # on a card: tokens between two looks at what ended; sizes of what is looked at
_REFILL_SHARE = 8  # of the slots, one in so many must be free before new prompts come in


class Greedy:
    """The answers to `prompts`, token ids each, by the causal model `causal`; prompts of like length lie together.

    An answer ends with `stop_id` or has `limit` tokens. `batch_tokens` prompt and answer tokens are in memory at once.
    """

    def __init__(
        self, causal: Any, prompts: Sequence[list[int]], stop_id: int, limit: int, batch_tokens: int | Literal["auto"]
    ) -> None:
        self._prompts, self._stop, self._limit = prompts, stop_id, limit
        self._head, self._device = causal.get_output_embeddings(), causal.device
        self._prefix = common_prefix(prompts)
        unit = _WIDTH_UNIT if self._device.type == "cuda" else 1
        self._capacity = _rounded(max(map(len, prompts)) + limit, unit)
        budget = _budget(causal) if batch_tokens == "auto" else batch_tokens
        self._count = max(1, min(len(prompts), budget // self._capacity))
        self._slots = Slots(causal, self._count, self._capacity)
        # Of each slot: the next token to read and its position, what was said, how much of it, and whether it ended.
        self._ids = torch.zeros(self._count, 1, dtype=torch.long, device=self._device)
        # A slot that is not in use writes to its last place, which its next row writes anew before it reads it.
        self._positions = torch.full_like(self._ids, self._capacity - 1)
        self._said = torch.zeros(self._count, limit + 1, dtype=torch.long, device=self._device)
        self._spoken = torch.zeros(self._count, dtype=torch.long, device=self._device)
        self._ended = torch.ones(self._count, dtype=torch.bool, device=self._device)
        self._running: list[int] = []  # the prompts in the first slots
        self._furthest: list[int] = []  # the position that each of them may have reached
        self._graphs = Graphs(self._advance) if self._device.type == "cuda" else None

    @torch.inference_mode()
    def answers(self) -> Iterator[tuple[int, list[int]]]:
        """(index of the prompt, its answer's token ids with the stop token), in the order in which they end."""
        waiting = deque(range(len(self._prompts)))
        with self._slots.in_use():
            self._slots.begin(self._prompts[0][: self._prefix])
            while waiting or self._running:
                free = self._count - len(self._running)
                if waiting and free * _REFILL_SHARE >= self._count:
                    self._admit([waiting.popleft() for _ in range(min(free, len(waiting)))])
                else:
                    self._step()
                yield from self._leave()
        self._graphs = None  # it holds this object, and with it the memory of the slots

    def _admit(self, prompts: list[int]) -> None:
        """Read prompts into the next slots, as many at a time as the memory for activations allows."""
        at_once = max(1, TOKENS_AT_ONCE[self._device.type] // (len(self._prompts[prompts[0]]) - self._prefix))
        for start in range(0, len(prompts), at_once):
            self._read(prompts[start : start + at_once])

    def _read(self, prompts: list[int]) -> None:
        rest = [self._prompts[i][self._prefix :] for i in prompts]
        first, here = len(self._running), slice(len(self._running), len(self._running) + len(rest))
        hidden = self._slots.read(rest, self._stop, first, self._prefix)
        ends = torch.tensor([len(row) for row in rest], device=self._device)
        last = hidden[torch.arange(len(rest), device=self._device), ends - 1]
        self._positions[here, 0] = ends + (self._prefix - 1)
        self._spoken[here] = 0
        self._ended[here] = False
        self._say(here, last)
        self._running += prompts
        self._furthest += [len(self._prompts[i]) for i in prompts]

    def _step(self) -> None:
        """One token for every running row; on a card, some tokens in sizes that come again, before it is waited for."""
        if self._graphs is None:
            self._advance(len(self._running), max(self._furthest) + 1)
            self._furthest = [position + 1 for position in self._furthest]
            return
        rows = next(size for size in self._sizes() if size >= len(self._running))
        width = min(_rounded(max(self._furthest) + _STEPS, _WIDTH_UNIT), self._capacity)
        for _ in range(_STEPS):
            self._graphs.run(rows, width)
        self._furthest = [min(position + _STEPS, self._capacity - 1) for position in self._furthest]

    def _sizes(self) -> list[int]:
        """All slots, or a quarter, or a sixteenth: few graphs, and the last rows do not carry many empty slots."""
        return [max(1, self._count // part) for part in (16, 4)] + [self._count]

    def _advance(self, rows: int, width: int) -> None:
        here = slice(0, rows)
        hidden = self._slots.forward(self._ids[here], self._positions[here], 0, width)
        self._say(here, hidden[:, -1])

    def _say(self, here: slice, hidden: torch.Tensor) -> None:
        """Take the likeliest token after each of the slots' last hidden states; no wait for the device."""
        token = self._head(hidden).argmax(-1)
        going = ~self._ended[here]
        place = torch.where(going, self._spoken[here], self._limit)  # the last column is for those that ended
        self._said[here].scatter_(1, place[:, None], token[:, None])
        self._spoken[here] += going
        self._positions[here, 0] += going
        self._ended[here] |= (token == self._stop) | (self._spoken[here] >= self._limit)
        self._ids[here, 0] = token

    def _leave(self) -> Iterator[tuple[int, list[int]]]:
        """Hand out the answers that ended, and close the gaps they leave with the last slots."""
        ended = self._ended[: len(self._running)].nonzero().flatten().tolist()
        if not ended:
            return
        said, spoken = self._said[ended].tolist(), self._spoken[ended].tolist()
        answers = [(self._running[slot], row[:n]) for slot, row, n in zip(ended, said, spoken, strict=True)]
        left = len(self._running) - len(ended)
        gaps = [slot for slot in ended if slot < left]
        movers = [slot for slot in range(left, len(self._running)) if slot not in set(ended)]
        if gaps:
            self._slots.move(movers, gaps, max(self._furthest))
            for state in (self._ids, self._positions, self._said, self._spoken, self._ended):
                state[gaps] = state[movers]
            for gap, mover in zip(gaps, movers, strict=True):
                self._running[gap], self._furthest[gap] = self._running[mover], self._furthest[mover]
        self._ended[left:] = True
        del self._running[left:], self._furthest[left:]
        yield from answers


def _budget(causal: Any) -> int:
    """Tokens to hold at once: more gain little on a CPU; on a card, a fixed share of its memory, never of what is free.

    A number that changed from run to run would change the batches, and with them how sums are rounded.
    """
    if causal.device.type == "cpu":
        return _CPU_TOKENS
    memory = torch.cuda.get_device_properties(causal.device).total_memory
    return min(_GPU_TOKENS, memory // _MEMORY_SHARE // bytes_a_token(causal))


def _rounded(number: int, unit: int) -> int:
    """The smallest multiple of `unit` from `number` on."""
    return -(-number // unit) * unit
