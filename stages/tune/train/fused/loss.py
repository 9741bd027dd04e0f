"""The loss of completions, computed a few positions at a time: logits of a whole batch would not fit."""

from typing import Any

import torch

_LOGITS_AT_ONCE = 1 << 25
LOSS_BYTES = 20 * _LOGITS_AT_ONCE  # logits in 16 and 32 bit, their logarithms, and what goes back through each


def completion_loss(
    hidden: torch.Tensor, predictors: torch.Tensor, targets: torch.Tensor, head: Any, count: int
) -> torch.Tensor:
    """Sum of the negative log-likelihoods, in nats, of `targets` (n), over `count`.

    `hidden` is positions x width; `predictors` (n) are the positions whose next tokens are the targets.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in _chunks(predictors, targets, head):
        total += _sum_over(head, hidden[part], wanted) / count
    return total


def completion_loss_and_gradient(
    hidden: torch.Tensor, predictors: torch.Tensor, targets: torch.Tensor, head: Any, count: int, gradient: torch.Tensor
) -> torch.Tensor:
    """The same loss; writes what it gives back to `hidden` into `gradient`, and adds to the head's own gradient.

    A chunk's backward pass follows its forward pass at once, so no more than one chunk of logits is ever held
    (as in Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989; compare Wijmans et al. 2024, arXiv 2411.09009).
    """
    gradient.zero_()
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in _chunks(predictors, targets, head):
        piece = hidden[part].detach().requires_grad_()
        loss = _sum_over(head, piece, wanted) / count
        loss.backward()  # type: ignore[no-untyped-call]
        gradient[part] = piece.grad.to(gradient.dtype)  # type: ignore[union-attr]
        total += loss.detach()
    return total


def _chunks(predictors: torch.Tensor, targets: torch.Tensor, head: Any) -> Any:
    size = max(16, _LOGITS_AT_ONCE // head.vocabulary)
    return zip(torch.split(predictors, size), torch.split(targets, size), strict=True)


def _sum_over(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


class Head:
    """From hidden states to logits as the model itself does, scaled or capped where its configuration says so."""

    def __init__(self, causal: Any) -> None:
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
