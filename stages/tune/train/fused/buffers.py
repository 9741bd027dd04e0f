"""Trained weights, their gradients and AdamW's moments, each side by side in one buffer that stays where it is.

Clearing, clipping, summing over devices and the optimiser's step are then a kernel or two each, however many weights
there are: for a small model, loops over hundreds of weights take the host longer than the card's passes. And CUDA
graphs may write to the gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.adamw import adamw

from stages.tune.train import devices


class Trained:
    """Weights in float32, which lie in one buffer from now on in the order given, and their gradients in another."""

    def __init__(self, weights: Sequence[Any]) -> None:
        self.weights = list(weights)
        sizes = [weight.numel() for weight in self.weights]
        self._starts = {weight: sum(sizes[:n]) for n, weight in enumerate(self.weights)}
        self.values = torch.empty(sum(sizes), dtype=torch.float32, device=self.weights[0].device)
        # The last element carries the loss along to the other devices.
        self._sums = self.values.new_zeros(sum(sizes) + 1)
        self.gradients = self._sums[:-1]
        self._views = [(self.of(self.values, weight), self.of(self.gradients, weight)) for weight in self.weights]
        self.settle()

    def of(self, buffer: torch.Tensor, weight: Any) -> torch.Tensor:
        """A weight's part of a buffer that is laid out as these are."""
        return self.stacked(buffer, [weight])[0]

    def stacked(self, buffer: torch.Tensor, weights: Sequence[Any]) -> torch.Tensor:
        """The part of weights of one shape, given in their order: weights x shape."""
        return buffer[self.run(weights)].view(len(weights), *weights[0].shape)

    def run(self, weights: Sequence[Any]) -> slice:
        """Where weights lie that have no others between them."""
        start = min(self._starts[weight] for weight in weights)
        last = max(weights, key=self._starts.__getitem__)
        end = start + sum(weight.numel() for weight in weights)
        if self._starts[last] + last.numel() != end:
            raise ValueError("other weights lie between these")
        return slice(start, end)

    def settle(self) -> None:
        """Put the weights into their buffer; who loads a checkpoint may have put others in their place."""
        for weight, (value, _) in zip(self.weights, self._views, strict=True):
            if weight.data_ptr() != value.data_ptr():
                value.copy_(weight.data)
                weight.data = value

    def clear(self) -> None:
        """Gradients of zero."""
        self._sums.zero_()
        for weight, (_, gradient) in zip(self.weights, self._views, strict=True):
            if weight.grad is not gradient:
                weight.grad = gradient

    def clip(self, largest: float) -> torch.Tensor:
        """Scale all gradients to a norm of at most `largest`; returns the norm before."""
        norm: torch.Tensor = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_((largest / (norm + 1e-6)).clamp(max=1.0))  # as torch.nn.utils.clip_grad_norm_ does
        return norm

    def add_up(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum gradients and loss over all devices; returns the loss of the whole optimiser batch."""
        self._sums[-1] = loss
        total: torch.Tensor = devices.add_up(self._sums)[-1].clone()
        return total


class BufferedAdamW(AdamW):
    """torch's AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over `Trained` weights, one kernel a group.

    A checkpoint has the state of each weight, as that of torch's own has, and either goes on from the other's. Each
    group is a run of the weights, in whatever order.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], trained: Trained) -> None:
        super().__init__([*groups])
        self._trained = trained
        self._own: dict[Any, dict[str, torch.Tensor]] = {}
        self._moments = torch.zeros_like(trained.values), torch.zeros_like(trained.values)
        for group in self.param_groups:
            device = trained.values.device if group["fused"] else torch.device("cpu")
            for weight in group["params"]:
                first, second = (trained.of(moment, weight) for moment in self._moments)
                step = torch.zeros((), device=device)  # of the group's first weight until a checkpoint is written
                self._own[weight] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        self.state.update(self._own)
        buffers = (trained.values, trained.gradients, *self._moments)
        self._runs = [
            ([buffer[trained.run(weights)] for buffer in buffers], self._own[weights[0]]["step"]) if weights else None
            for weights in (group["params"] for group in self.param_groups)
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group, run in zip(self.param_groups, self._runs, strict=True):
            if run is None:
                continue
            (values, gradients, first, second), step = run
            adamw(
                [values],
                [gradients],
                [first],
                [second],
                [],
                [step],
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        for group in self.param_groups:
            for weight in group["params"][1:]:
                self._own[weight]["step"].copy_(self._own[group["params"][0]]["step"])
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for weight, own in self._own.items():
            for name, place in own.items():
                place.copy_(self.state[weight][name])
        self.state.update(self._own)
