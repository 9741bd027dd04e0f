"""An optimiser batch, the micro-batches it is cut into, and the loss of each.

How it is cut, and how many positions the loss takes at a time, changes speed and memory, not the result: the logits of
a whole batch would not fit.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from stages.tune.train.examples import Examples, SeededBatches

UNSEEN = -100  # a target that the loss leaves out
_LOGITS_AT_ONCE = 1 << 25
APART = 512  # tokens between the widths of batches that nobody foresaw
_FORESEEN, _MULTIPLE = 1000, 64  # optimiser batches of a run, and what widths are multiples of for the card's sake
_RECORDING = 1 << 15  # tokens that an H200 trains of a model of 1B while it records a width: 0.4 s
LOSS_BYTES = 20 * _LOGITS_AT_ONCE  # logits in 16 and 32 bit, their logarithms, and what goes back through each


@dataclass(frozen=True, slots=True)
class Row:
    """One example: its token ids, the positions that predict a completion token, and those tokens."""

    ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    tokens: int = field(init=False)  # a tensor takes a microsecond or two to tell its length, and is asked often
    trained: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", len(self.ids))
        object.__setattr__(self, "trained", len(self.targets))

    def __len__(self) -> int:
        return self.tokens


class MicroBatch(NamedTuple):
    """What the model computes at once: `ids` and `positions` are 1 x tokens, `ends` says where each example ends.

    `predictors` are positions, `targets` the tokens that they predict.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    ends: list[int]


class Room(NamedTuple):
    """The most predictors and segments, filler included, of the batches of a width."""

    predictors: int
    segments: int


def make_rows(examples: Examples) -> list[Row]:
    rows = []
    for ids, mask in zip(examples.input_ids, examples.completion_mask, strict=True):
        tokens = torch.tensor(ids)
        predictors = torch.tensor(mask[1:]).nonzero().flatten()
        rows.append(Row(tokens, predictors, tokens[predictors + 1]))
    return rows


def trained_tokens(rows: Sequence[Row]) -> int:
    return sum(row.trained for row in rows)


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


def widths_to_fill(sizes: Sequence[int], recording: float, multiple: int) -> list[int]:
    """The widths, multiples of `multiple`, that cost the fewest tokens in all, from narrow to wide.

    A batch of one of these `sizes` costs the width to which it is filled up, each width `recording` tokens. Exact, by
    dynamic programming over the different sizes: the last width is the largest, and what the widths up to a size cost
    hangs on no width above it (Bruce 1965, "Optimum quantization").
    """
    values, times = np.unique(-(-np.asarray(sizes) // multiple) * multiple, return_counts=True)
    before, least, starts = np.concatenate([[0], np.cumsum(times)]), np.zeros(len(values) + 1), []
    for last, value in enumerate(values):
        costs = least[: last + 1] + value * (before[last + 1] - before[: last + 1]) + recording
        starts.append(int(costs.argmin()))
        least[last + 1] = costs.min()
    widths, end = [], len(values)
    while end:
        widths.append(int(values[end - 1]))
        end = starts[end - 1]
    return widths[::-1]


def planned_widths(
    rows: Sequence[Row],
    batches: SeededBatches | Sequence[list[int]],
    devices: int,
    tokens: int,
    recording: int = _RECORDING,
) -> dict[int, Room]:
    """The widths for the micro-batches of a run, by its first optimiser batches, and what each needs room for.

    So many that one more would take longer to record, `recording` tokens on each device, than it saves in the whole
    run. They are those of all devices, which wait for each other while one records.
    """
    foreseen = list(itertools.islice(batches, _FORESEEN))
    shares = (share for batch in foreseen for share in deal([rows[i] for i in batch], devices))
    parts = [(sum(map(len, part)), trained_tokens(part), len(part)) for share in shares for part in cut(share, tokens)]
    recording_of_all = recording * devices * len(foreseen) / len(batches)
    widths = widths_to_fill([size for size, *_ in parts], recording_of_all, _MULTIPLE)
    most = dict.fromkeys(widths, Room(0, 0))
    for size, predictors, count in parts:
        width = widths[bisect.bisect_left(widths, size)]
        segments = count - (size - width) // APART
        most[width] = Room(max(most[width].predictors, predictors), max(most[width].segments, segments))
    return most


def pack(rows: Sequence[Row], width: int = 0, longest: int = APART) -> MicroBatch:
    """All rows end to end; what is missing to `width` is segments of at most `longest`, which the loss does not see."""
    missing, sizes = width - sum(map(len, rows)), [len(row) for row in rows]
    if missing > 0:
        sizes += [longest] * (missing // longest) + ([missing % longest] if missing % longest else [])
    ends = list(itertools.accumulate(sizes))
    lengths, starts = torch.tensor(sizes), torch.tensor([0, *ends[:-1]])
    trained = torch.tensor([row.trained for row in rows])
    return MicroBatch(
        ids=torch.cat([*(row.ids for row in rows), torch.zeros(max(0, missing), dtype=torch.long)])[None],
        positions=(torch.arange(ends[-1]) - starts.repeat_interleave(lengths))[None],
        predictors=torch.cat([row.predictors for row in rows]) + starts[: len(rows)].repeat_interleave(trained),
        targets=torch.cat([row.targets for row in rows]),
        ends=ends,
    )


def completion_loss(
    hidden: torch.Tensor,
    predictors: torch.Tensor,
    targets: torch.Tensor,
    head: Any,
    count: int | torch.Tensor,
    gradient: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of the negative log-likelihoods, in nats, of `targets` (n), over `count`; without those that are `UNSEEN`.

    `hidden` is positions x width; `predictors` (n) are the positions whose next tokens are the targets. What the loss
    gives back to `hidden` is written into `gradient`, where there is one, and the head's own gradient added to.
    A chunk's backward pass follows its forward pass at once, so no more than one chunk of logits is ever held
    (as in Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989; compare Wijmans et al. 2024, arXiv 2411.09009).
    """
    total, size = hidden.new_zeros((), dtype=torch.float32), max(16, _LOGITS_AT_ONCE // head.vocabulary)
    if gradient is None:
        for part, wanted in zip(torch.split(predictors, size), torch.split(targets, size), strict=True):
            total += _summed(head(hidden[part]), wanted) / count
        return total
    gradient.zero_()
    for part, wanted in zip(torch.split(predictors, size), torch.split(targets, size), strict=True):
        piece = hidden[part].detach().requires_grad_()
        logits = head(piece)
        if head.loss_kernel:
            trained = torch.as_tensor(count, device=logits.device)
            loss = head.loss_kernel(logits.detach(), wanted, trained, UNSEEN)
            logits.backward(logits.detach())  # which are now what goes back to them
        else:
            loss = _summed(logits, wanted) / count
            loss.backward()  # type: ignore[no-untyped-call]
        gradient[part] = piece.grad.to(gradient.dtype)  # type: ignore[union-attr]
        total += loss.detach()
    return total


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=UNSEEN, reduction="sum")


class Head:
    """From hidden states to logits as the model itself does, scaled or capped where its configuration says so.

    `loss_kernel` is a card's own, if it has one: `triton_kernels.cross_entropy`.
    """

    def __init__(self, causal: Any, loss_kernel: Any = None) -> None:
        self.loss_kernel = loss_kernel
        config = causal.config.get_text_config()
        self._project = causal.get_output_embeddings()
        self._factor = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self.vocabulary: int = self._project.weight.shape[0]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._project(hidden)
        if self._factor != 1:
            logits = logits * self._factor
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits
