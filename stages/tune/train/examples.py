"""Records as token ids and labels: the loss sees the completion and its stop token, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stages.core.errors import UserError
from stages.model.chat import Chat
from stages.records.record import Record

IGNORED = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of equal-length `input_ids` and `labels`; rows over the token limit are left out, never cut.

    `left_out` has the number of tokens of each row that was left out.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    left_out: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def too_long(self) -> int:
        return len(self.left_out)

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids in self.input_ids)

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for row in self.labels for label in row)


def make_examples(chat: Chat, records: Sequence[Record], max_tokens: int) -> Examples:
    """Encode records as generation shows them to the model."""
    inputs, labels, left_out = [], [], []
    for record in records:
        prompt = chat.prompt_ids(record)
        completion = chat.completion_ids(record.completion)
        if len(prompt) + len(completion) > max_tokens:
            left_out.append(len(prompt) + len(completion))
            continue
        inputs.append(prompt + completion)
        labels.append([IGNORED] * len(prompt) + completion)
    return Examples(inputs, labels, left_out)


def assert_stop_token_trained(examples: Examples, stop_id: int) -> None:
    """Check that every row teaches the model to stop.

    Raises:
        UserError: when the last label of a row is not the stop token.
    """
    for labels in examples.labels:
        if labels[-1] != stop_id:
            raise UserError(
                f"the stop token {stop_id} is masked out of the loss or missing, so the model would never learn to stop"
            )
