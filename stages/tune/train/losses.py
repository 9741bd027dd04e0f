"""metrics/train.json: what was trained, how the losses went, and warnings read off their curves."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from stages.tune.train.examples import Examples

# A validation loss is called worse, and a plateau flat, beyond this share of its value.
_TOLERANCE = 0.02
_SPIKE = 2.0


def summarise(trainer: Any, train: Examples) -> dict[str, Any]:
    """Nested numbers. Losses are means over completion tokens, in nats."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
    summary: dict[str, Any] = {
        "rows": {"train": len(train), "left_out_too_long": len(train.left_out)},
        "tokens": {"total": train.tokens, "trained": train.trained_tokens},
        "parameters": {"trainable": sum(n for n, trained in sizes if trained), "all": sum(n for n, _ in sizes)},
        "steps": trainer.state.global_step,
        "loss": {},
        "red_flags": red_flags(losses, validation),
    }
    if losses:
        summary["loss"] |= {"train_first": losses[0], "train_last": losses[-1]}
    if validation:
        summary["loss"] |= {
            "validation_first": validation[0],
            "validation_best": min(validation),
            "validation_last": validation[-1],
        }
    if trainer.state.best_global_step:
        summary["best_step"] = trainer.state.best_global_step
    return summary


def red_flags(train: Sequence[float], validation: Sequence[float]) -> dict[str, int]:
    """1 for each warning that the curves give, else 0.

    overfitting: validation rose by over 2 % above its best for two measurements in a row while training fell;
    plateau: training in the second half of the run improved by under 2 %, short of zero loss;
    unstable: a loss that is not finite, or twice the mean of the five before it.
    """
    return {
        "overfitting": int(_overfitting(train, validation)),
        "plateau": int(_plateau(train)),
        "unstable": int(_unstable(train) or _not_finite(validation)),
    }


def _overfitting(train: Sequence[float], validation: Sequence[float]) -> bool:
    if len(validation) < 3 or len(train) < 2:
        return False
    worse = [loss > min(validation) * (1 + _TOLERANCE) for loss in validation]
    after_best = worse[validation.index(min(validation)) :]
    return any(a and b for a, b in pairwise(after_best)) and train[-1] < train[0]


def _plateau(train: Sequence[float]) -> bool:
    if len(train) < 8 or _not_finite(train):
        return False
    quarter = len(train) // 4
    middle = sum(train[2 * quarter : 3 * quarter]) / quarter
    end = sum(train[-quarter:]) / quarter
    return end > middle * (1 - _TOLERANCE) and end > 0.1


def _unstable(train: Sequence[float]) -> bool:
    if _not_finite(train):
        return True
    # Near zero loss, doubling is noise of single rows.
    return any(train[i] > _SPIKE * max(sum(train[i - 5 : i]) / 5, 0.1) for i in range(5, len(train)))


def _not_finite(losses: Sequence[float]) -> bool:
    return any(loss != loss or loss in (float("inf"), float("-inf")) for loss in losses)
