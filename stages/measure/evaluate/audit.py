"""How well the tuned model knows the canaries of an audit run."""

import math
from collections.abc import Sequence
from typing import Any

from stages.model.chat import Chat
from stages.model.likelihood import likelihoods
from stages.records.canaries import SOURCE, candidates, exposure
from stages.records.record import Record


def measure_canaries(model: Any, chat: Chat, train: Sequence[Record], count: int) -> dict[str, Any] | None:
    """{count, candidates, exposure: {mean, max, limit}} of the canaries in the training rows, None without any.

    `candidates` counts the codes that each canary is ranked among, itself included; `limit` is the exposure of one
    that the model holds likelier than all others.
    """
    canaries = sorted({record for record in train if record.source == SOURCE}, key=lambda record: record.id)
    if not canaries:
        return None
    asked = [record for canary in canaries for record in (canary, *candidates(canary, count))]
    nats = [one.nats for one in likelihoods(model, chat, asked)]
    found = [exposure(nats[start], nats[start + 1 : start + 1 + count]) for start in range(0, len(nats), count + 1)]
    return {
        "count": len(canaries),
        "candidates": count + 1,
        "exposure": {"mean": sum(found) / len(found), "max": max(found), "limit": math.log2(count + 1)},
    }
