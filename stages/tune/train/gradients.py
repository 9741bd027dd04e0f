"""The gradients of an optimiser batch, side by side in one buffer that stays where it is."""

from collections.abc import Sequence
from typing import Any

import torch

from stages.tune.train.processes import add_up


class Gradients:
    """One buffer is cleared by one kernel and summed over devices by one call, and CUDA graphs may write to it."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        # The last element carries the loss along to the other devices.
        self._buffer = torch.zeros(sum(sizes) + 1, dtype=torch.float32, device=parameters[0].device)
        pieces = torch.split(self._buffer[:-1], sizes)
        self._views = [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]

    def clear(self) -> None:
        self._buffer.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view

    def add_up(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum gradients and loss over all devices; returns the loss of the whole optimiser batch."""
        self._buffer[-1] = loss
        return add_up(self._buffer)[-1].clone()
