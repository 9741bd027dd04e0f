"""An optimiser batch and the micro-batches it is cut into; how it is cut changes speed and memory, not the result."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from stages.tune.train.examples import IGNORED, Examples


@dataclass(frozen=True, slots=True)
class Row:
    """One example: its token ids, the positions that predict a completion token, and those tokens."""

    ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What the model computes at once: `ids` and `positions` are rows x width.

    Packed, there is one row and `ends` says where in it each example ends. `predictors` are indices into the
    flattened positions, `targets` the tokens that they predict.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    ends: list[int] | None


def make_rows(examples: Examples) -> list[Row]:
    rows = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        counted = torch.tensor(labels)
        predictors = (counted[1:] != IGNORED).nonzero().flatten()
        rows.append(Row(torch.tensor(ids), predictors, counted[predictors + 1]))
    return rows


def trained_tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.targets) for row in rows)


class SeededBatches:
    """Optimiser batches as lists of row numbers, in an order that seed and epoch alone decide.

    So a run goes on from any checkpoint with the batches that it would have had, on any number of devices.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._rows, self._batch_size, self._seed, self._epoch = rows, batch_size, seed, epoch

    def __len__(self) -> int:
        return math.ceil(self._rows / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self._epoch())
        order: list[int] = torch.randperm(self._rows, generator=generator).tolist()
        for start in range(0, self._rows, self._batch_size):
            yield order[start : start + self._batch_size]


def deal(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """Rows in `parts` hands of nearly equal length: the longest row left goes to the lightest hand.

    (Graham 1969, "Bounds on multiprocessing timing anomalies": at most a third over the best.)
    """
    hands: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
        weight, part = heapq.heappop(heap)
        hands[part].append(index)
        heapq.heappush(heap, (weight + len(rows[index]), part))
    return [[rows[index] for index in sorted(hand)] for hand in hands]


def cut(rows: Sequence[Row], tokens: int, packed: bool) -> list[list[Row]]:
    """Parts of at most `tokens` tokens, padding included; a longer row is a part of its own."""
    if not rows:
        return []
    if not packed:
        return _cut_padded(rows, tokens)
    parts = max(1, math.ceil(sum(map(len, rows)) / tokens))
    while True:
        hands = [hand for hand in deal(rows, parts) if hand]
        if all(len(hand) == 1 or sum(map(len, hand)) <= tokens for hand in hands):
            return hands
        parts += 1


def _cut_padded(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    parts: list[list[Row]] = []
    for row in sorted(rows, key=len, reverse=True):
        if parts and (len(parts[-1]) + 1) * len(parts[-1][0]) <= tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def pack(rows: Sequence[Row], width: int = 0) -> MicroBatch:
    """All rows end to end; what is missing to `width` is a segment of its own, which the loss does not see."""
    blank = max(0, width - sum(map(len, rows)))
    filler = [torch.zeros(blank, dtype=torch.long)] if blank else []
    pieces = [*(row.ids for row in rows), *filler]
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    starts = [0, *ends.tolist()]
    return MicroBatch(
        ids=torch.cat(pieces)[None],
        positions=torch.cat([torch.arange(len(piece)) for piece in pieces])[None],
        predictors=torch.cat([row.predictors + start for row, start in zip(rows, starts, strict=False)]),
        targets=torch.cat([row.targets for row in rows]),
        ends=ends.tolist(),
    )


def pad(rows: Sequence[Row]) -> MicroBatch:
    """One row each, filled up at the right, where causal attention does not look: so it needs no mask."""
    width = max(map(len, rows))
    return MicroBatch(
        ids=torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True),
        positions=torch.arange(width).repeat(len(rows), 1),
        predictors=torch.cat([row.predictors + number * width for number, row in enumerate(rows)]),
        targets=torch.cat([row.targets for row in rows]),
        ends=None,
    )
