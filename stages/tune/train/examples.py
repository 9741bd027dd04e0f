"""Records as token ids: the loss sees the completion and its stop token, and nothing else."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.model.chat import Chat
from stages.records.record import Record

_OPEN, _CLOSE = "⟦", "⟧"


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of equal-length `input_ids` and `completion_mask` (1 for a token of the completion, else 0).

    Rows over the token limit are left out, never cut; `left_out` has the number of tokens of each. `faults` has the
    ids of the rows that the model could not learn as they are, by the reason; `special` those of the rows in which the
    text of a special token stands. `labels` are the numbers of the rows' labels, where a head learns them.
    """

    input_ids: list[list[int]]
    completion_mask: list[list[int]]
    left_out: list[int] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    special: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.input_ids]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def trained_tokens(self) -> int:
        return sum(map(sum, self.completion_mask))

    def filled_up(self, multiple: int) -> "Examples":
        """With rows of which the loss sees nothing, up to a multiple; the longest rows first."""
        blank = -len(self) % multiple
        order = sorted(range(len(self)), key=lambda row: -len(self.input_ids[row]))
        ids = [self.input_ids[row] for row in order] + [self.input_ids[0][:2]] * blank
        masks = [self.completion_mask[row] for row in order] + [[0, 0]] * blank
        return Examples(ids, masks)

    def dataset(self) -> Any:
        """The rows as TRL takes them."""
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()  # of TRL's preparation, which takes a moment
        return Dataset.from_dict({"input_ids": self.input_ids, "completion_mask": self.completion_mask})


def make_examples(chat: Chat, records: Sequence[Record], max_tokens: int, labels: Sequence[str] = ()) -> Examples:
    """Encode records as generation shows them to the model.

    With the `labels` of a head, rows are prompts, and the loss sees the state after the last token.
    """
    examples, numbers = Examples([], []), {label: number for number, label in enumerate(labels)}
    for record, (prompt, completion, faults) in zip(records, chat.encode(records), strict=True):
        for fault in faults:
            examples.faults.setdefault(fault, []).append(record.id)
        if chat.has_special_texts(record):
            examples.special.append(record.id)
        ids, seen = (prompt, 1) if labels else (prompt + completion, len(completion))
        if len(ids) > max_tokens:
            examples.left_out.append(len(ids))
        elif prompt:
            examples.input_ids.append(ids)
            examples.completion_mask.append([0] * (len(ids) - seen) + [1] * seen)
            if labels:
                examples.labels.append(numbers.get(record.completion, -1))  # none: a problem told before training
    return examples


class SeededBatches:
    """Optimiser batches of row numbers: all rows in a new order each epoch, epoch after epoch, cut into full batches.

    Seed and step alone decide a batch, so a run goes on from any checkpoint, on any number of devices and with either
    engine, with the batches that it would have had. Within a batch the longest row comes first: rows of like length
    are then computed together.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> None:
        self._lengths, self._steps, self._seed = lengths, steps, seed
        self.batch_size = min(batch_size, len(lengths))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._rows()
        for _ in range(self._steps):
            yield sorted(itertools.islice(stream, self.batch_size), key=lambda row: (-self._lengths[row], row))

    def _rows(self) -> Iterator[int]:
        import torch

        for epoch in itertools.count():
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            yield from torch.randperm(len(self._lengths), generator=generator).tolist()


def optimiser_steps(rows: int, batch_size: int, epochs: float) -> int:
    """Steps that take every row `epochs` times; the last one is filled up from the next epoch."""
    return math.ceil(rows * epochs / min(batch_size, rows))


def show_example(chat: Chat, ids: list[int], mask: list[int]) -> None:
    """Print the decoded tokens, special ones included; what the loss sees stands between marks."""
    print(f"the first example; the loss sees what stands between {_OPEN} and {_CLOSE}:")
    for trained, run in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]):
        words = chat.tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        print(f"{_OPEN}{words}{_CLOSE}" if trained else words, end="")
    print(flush=True)
