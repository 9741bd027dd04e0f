"""An optimiser batch and the micro-batches it is cut into; how it is cut changes speed and memory, not the result."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.tune.train.examples import Examples


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
    """What the model computes at once: `ids` and `positions` are 1 x tokens, `ends` says where each example ends.

    `predictors` are positions, `targets` the tokens that they predict.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    ends: list[int]


def make_rows(examples: Examples) -> list[Row]:
    rows = []
    for ids, mask in zip(examples.input_ids, examples.completion_mask, strict=True):
        tokens = torch.tensor(ids)
        predictors = torch.tensor(mask[1:]).nonzero().flatten()
        rows.append(Row(tokens, predictors, tokens[predictors + 1]))
    return rows


def trained_tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.targets) for row in rows)


def deal(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """Rows in `parts` shares of nearly equal length: the longest row left goes to the lightest share.

    (Graham 1969, "Bounds on multiprocessing timing anomalies": at most a third over the best.)
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
        weight, part = heapq.heappop(heap)
        shares[part].append(index)
        heapq.heappush(heap, (weight + len(rows[index]), part))
    return [[rows[index] for index in sorted(share)] for share in shares]


def cut(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Parts of at most `tokens` tokens; a longer row is a part of its own."""
    if not rows:
        return []
    parts = max(1, math.ceil(sum(map(len, rows)) / tokens))
    while True:
        shares = [share for share in deal(rows, parts) if share]
        if all(len(share) == 1 or sum(map(len, share)) <= tokens for share in shares):
            return shares
        parts += 1


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
